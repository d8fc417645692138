"""Keeps a training set as a folder of files, each of which is rendered once, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from lorarar.files import atomic

Columns = dict[str, npt.NDArray]


def shards(
    folder: Path, make: Callable[[np.random.Generator], Columns], *, name: str, count: int, seed: int
) -> Columns:
    """Make the shards that are missing in `folder`, and return all of them joined.

    Parameters
    ----------
    folder : its name must hold everything that the content depends on, above all the VAE's hash.
    make : generator -> columns of one shard, all of one length.
    name : for the progress bar.
    count : number of shards.
    seed : shard i is made with a generator of (seed, i), so order and interruptions do not matter.
    """
    paths = [folder / f"{seed}-{index:03d}.npz" for index in range(count)]
    missing = [index for index, path in enumerate(paths) if not path.is_file()]
    for index in tqdm(missing, f"rendering {name}", disable=not missing):
        columns = make(np.random.default_rng((seed, index)))
        with atomic(paths[index]) as temporary:
            np.savez(temporary, **columns)  # type: ignore[arg-type]
    loaded = [np.load(path) for path in paths]
    return {key: np.concatenate([shard[key] for shard in loaded]) for key in loaded[0].files}
