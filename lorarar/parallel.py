"""Many small computations side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import starmap
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def each(function: Callable[..., T], items: Iterable[tuple[Any, ...]]) -> list[T]:
    """`function(*item)` of every item, in order: as many at a time as torch has threads, and each with one thread.

    The layers of an adapter are many small products, which finish sooner side by side than one after another with all
    cores on each; and what one thread computes does not depend on how many there are. Where gradients are recorded
    they are computed in turn instead.
    """
    count = torch.get_num_threads()
    if count == 1 or torch.is_grad_enabled():
        return list(starmap(function, items))

    @torch.no_grad()  # which a new thread does not inherit, unlike the number of threads
    def call(item: tuple[Any, ...]) -> T:
        return function(*item)

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(call, items))
    finally:
        torch.set_num_threads(count)
