"""Checks of a method's options, which may come from a command line or a file of settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from lorarar.errors import UserError


def require(name: str, value: Any, fits: Callable[[Any], bool], wanted: str) -> None:
    """Raise `UserError` unless `value` fits; one of a type that the check cannot handle does not."""
    try:
        good = fits(value)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise UserError(f"{name} {value}: give {wanted}")


def require_weights(name: str, value: Any, count: int = 2) -> None:
    """Raise `UserError` unless `value` is a weight for each of `count` adapters."""

    def fits(weights: Any) -> bool:
        return isinstance(weights, list | tuple) and len(weights) == count and all(map(isfinite, weights))

    example = ", ".join(["0.7", "0.5", *["0.3"] * count][:count])
    require(name, value, fits, f"{'two' if count == 2 else count} number{'s'[: count > 1]}, as in ({example})")


def weights_of(value: Any, count: int) -> Sequence[float]:
    """A weight for each of `count` adapters: those of a user, or 1 for each where there is None.

    Raises
    ------
    UserError
        `value` is no such list.
    """
    if value is None:
        return (1.0,) * count
    require_weights("weights", value, count)
    return tuple(value)


def require_rank(value: Any) -> None:
    """Raise `UserError` unless `value` is a rank, or None for a method's own choice."""
    require("rank", value, lambda rank: rank is None or (isinstance(rank, int) and rank >= 1), "a whole number from 1")
