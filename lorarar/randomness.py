"""Streams of random numbers that belong to a key, so that any step can be repeated."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_turn = threading.Lock()


def generator(*key: int) -> torch.Generator:
    """A stream of random numbers for each key, such as (seed, step), so that any step can be done again."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's own stream within the block, for one thread at a time; afterwards it is as it was before."""
    with _turn, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
