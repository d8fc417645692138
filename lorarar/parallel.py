"""Runs many small computations side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import starmap
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def map_layers(function: Callable[..., T], items: Iterable[tuple[Any, ...]]) -> list[T]:
    """`function(*item)` of every item, in order: as many at a time as torch has threads, and each with one thread.

    The layers of an adapter are many small products, which finish sooner side by side than one after another with all
    cores on each; and the result of one thread does not depend on the number of threads. Where gradients are recorded
    they are computed in turn instead.
    """
    count, items = torch.get_num_threads(), list(items)

    @torch.no_grad()  # which a new thread does not inherit, unlike the number of threads
    def every(start: int) -> list[T]:
        return [function(*item) for item in items[start::count]]

    with one_thread():
        if count == 1 or torch.is_grad_enabled():
            return list(starmap(function, items))
        found: list[Any] = [None] * len(items)
        with ThreadPoolExecutor(count) as threads:
            for start, results in enumerate(threads.map(every, range(count))):
                found[start::count] = results
        return found


@contextmanager
def one_thread() -> Iterator[None]:
    """One core for each product within the block: small products take longer on several, as do those of threads."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


class Scratch(threading.local):
    """Memory that each thread computes in again and again: fresh pages take as long as the products written to them.

    Parameters
    ----------
    like
        A tensor of the dtype and on the device that the memory is to have.
    """

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._memory: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """The tensor of this name and shape, holding whatever was last written to it."""
        if (name, shape) not in self._memory:
            self._memory[name, shape] = self._like.new_empty(shape)
        return self._memory[name, shape]

    def cast(self, name: str, tensor: Tensor) -> Tensor:
        """`tensor` itself if it has the dtype, else a copy under this name."""
        return tensor if tensor.dtype == self._like.dtype else self(name, *tensor.shape).copy_(tensor)
