"""The device to compute on, and how fast its dtypes are."""

from __future__ import annotations

import os
from functools import cache
from math import inf
from time import perf_counter

import torch


def best_device() -> str:
    """ "cuda" if PyTorch sees a GPU, else "cpu".

    On a GPU PyTorch is set, for all of the process, to compute the same numbers from the same seeds each time:
    otherwise some sums are taken in whichever order their terms come. What it cannot compute so it warns of.
    """
    if not torch.cuda.is_available():
        return "cpu"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the GPU is first used
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs half the time
    return "cuda"


@cache
def gain_of_bfloat16() -> float:
    """Speed of this CPU in bfloat16, in multiples of float32's: measured, as some claim to have it and are slower."""
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), inf)
    for _ in range(5):
        for dtype, least in seconds.items():
            matrix = torch.ones(512, 512, dtype=dtype)
            begun = perf_counter()
            matrix @ matrix
            seconds[dtype] = min(least, perf_counter() - begun)
    return seconds[torch.float32] / seconds[torch.bfloat16]
