"""Streams of random numbers that belong to a key, so that any step can be repeated."""

from __future__ import annotations

import hashlib

import torch


def generator(*key: int) -> torch.Generator:
    """A stream of random numbers for each key, such as (seed, step), so that any step can be done again."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
