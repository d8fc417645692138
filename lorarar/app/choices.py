"""Choices of the page: methods with their options, as the registry's rows have them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lorarar.errors import UserError
from lorarar.lora import formats
from lorarar.merging.registry import Method, methods
from lorarar.recipe import Part, Recipe

FORMATS = [name for name in formats.WRITERS if not formats.sidecars("merged.safetensors", name)]
"""Formats of one file, which a browser can download."""


def rows(hypernet: bool) -> list[dict[str, Any]]:
    """Rows for the page, without the methods whose inputs are not at hand.

    Parameters
    ----------
    hypernet : a trained hypernetwork is at hand.
    """
    needs = {"", "hypernet"} if hypernet else {""}
    return [_row(method) for method in methods().values() if method.needs in needs]


def recipe(
    files: tuple[Path, Path],
    method: str,
    weights: tuple[float, float],
    given: Mapping[str, Any],
    hypernet: Path | None,
    format: str | None = None,
    dtype: str | None = None,
) -> Recipe:
    """The merge that the page asks for: lists become tuples, as options have them.

    Raises
    ------
    UserError
        The method or format is unknown, or it has no such option; a path, such as that of a hypernetwork, is none.
    """
    if method not in methods():
        raise UserError(f"method {method}: unknown; choose one of {', '.join(methods())}")
    if format and format not in FORMATS:
        raise UserError(f"format {format}: choose one of {', '.join(FORMATS)}")
    row = methods()[method]
    known = _options(row)
    for name in given:
        if name not in known:
            raise UserError(f"method {method}: has no option {name}; it has {', '.join(known) or 'none'}")
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if row.needs == "hypernet" and hypernet:
        options["hypernet"] = hypernet
    parts = tuple(
        Part(side, file, weight, where=side)
        for side, file, weight in zip(("content", "style"), files, weights, strict=True)
    )
    return Recipe(parts, method, options, format, dtype)


def _options(method: Method) -> dict[str, Any]:
    """The options that the page shows; the files have the weights."""
    return {name: value for name, value in method.options.items() if name not in ("weights", "hypernet")}


def _row(method: Method) -> dict[str, Any]:
    module, _, name = method.function.partition(":")
    hints = _hints(getattr(import_module(module), name))
    return {
        "name": method.name,
        "title": method.title,
        "paper": method.paper,
        "kind": "schedule" if method.schedule else "exact" if method.exact else "approximated",
        "weighs": "weights" in method.options,
        "options": [
            # The choices of a text; a number or path may be any.
            {
                "name": name,
                "default": default,
                "choices": get_args(hints[name]) if get_origin(hints[name]) is Literal else (),
            }
            for name, default in _options(method).items()
        ],
    }


def _hints(function: Any) -> dict[str, Any]:
    """The types of a method's parameters."""
    while isinstance(function, partial):
        function = function.func
    return get_type_hints(function if inspect.isfunction(function) else type(function).__call__)
