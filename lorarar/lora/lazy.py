"""Mappings whose values are computed when they are asked for, so that they are never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from lorarar.parallel import map_layers

V = TypeVar("V")


class Lazy(Mapping[str, V]):
    """A mapping that computes a value each time it is asked for, and keeps none.

    Parameters
    ----------
    blanks
        Key -> the value as tensors on the device "meta", which have dtypes and shapes but no numbers.
    compute
        Key -> the value. Raises `KeyError` for other keys.
    """

    def __init__(self, blanks: Mapping[str, V], compute: Callable[[str], V]) -> None:
        self.blanks, self._compute = blanks, compute

    def __getitem__(self, key: str) -> V:
        return self._compute(key)

    def __contains__(self, key: object) -> bool:
        return key in self.blanks

    def __iter__(self) -> Iterator[str]:
        return iter(self.blanks)

    def __len__(self) -> int:
        return len(self.blanks)


def blanks(values: Mapping[str, V]) -> Mapping[str, V]:
    """Values that tell dtypes and shapes: nothing is computed."""
    return values.blanks if isinstance(values, Lazy) else values


def computed(values: Mapping[str, V]) -> Mapping[str, V]:
    """The same values in memory, computed side by side; gradients flow through."""
    if not isinstance(values, Lazy):
        return values
    return dict(zip(values, map_layers(values.__getitem__, zip(values, strict=True)), strict=True))
