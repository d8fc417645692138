"""Renderings made once and kept: a training set as a folder of files, each of which is made whole or not at
all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lorarar.files import atomic

Columns = dict[str, npt.NDArray]


def shards(
    folder: Path, make: Callable[[np.random.Generator], Columns], *, name: str, count: int, seed: int
) -> Columns:
    """Make the shards that are missing in `folder`, and return all of them joined.

    Parameters
    ----------
    folder : named by the caller after everything the content depends on, the VAE's hash above all.
    make : generator -> columns of one shard, all of one length.
    name : for progress lines.
    count : number of shards.
    seed : shard i is made with a generator of (seed, i), so order and interruptions do not matter.
    """
    begun, made = time.monotonic(), 0
    for index in range(count):
        path = folder / f"{seed}-{index:03d}.npz"
        if not path.is_file():
            columns = make(np.random.default_rng((seed, index)))
            with atomic(path) as temporary:
                np.savez(temporary, **columns)  # type: ignore[arg-type]
            made += 1
            left = (time.monotonic() - begun) / made * (count - index - 1)
            print(f"rendering {name} {index + 1}/{count}  {left / 60:.1f} min left", file=sys.stderr)
    loaded = [np.load(folder / f"{seed}-{index:03d}.npz") for index in range(count)]
    return {key: np.concatenate([shard[key] for shard in loaded]) for key in loaded[0].files}
