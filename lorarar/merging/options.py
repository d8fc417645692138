"""Checks of a method's options, which may come from a command line or a file of settings."""

from __future__ import annotations

from collections.abc import Callable
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


def require_weights(name: str, value: Any) -> None:
    """Raise `UserError` unless `value` is a weight for each adapter."""

    def fits(pair: Any) -> bool:
        return isinstance(pair, list | tuple) and len(pair) == 2 and all(map(isfinite, pair))

    require(name, value, fits, "two numbers, as in (0.7, 0.5)")


def require_rank(value: Any) -> None:
    """Raise `UserError` unless `value` is a rank, or None for a method's own choice."""
    require("rank", value, lambda rank: rank is None or (isinstance(rank, int) and rank >= 1), "a whole number from 1")
