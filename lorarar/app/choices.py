"""What the page offers: methods with their options, as the registry's rows have them."""

from __future__ import annotations

import inspect
import re
from ast import literal_eval
from collections.abc import Mapping
from typing import Any

from lorarar.errors import UserError
from lorarar.lora import formats
from lorarar.merging.registry import METHODS, Method

FORMATS = [name for name in formats.WRITERS if not formats.sidecars("merged.safetensors", name)]
"""Formats of one file: what a browser downloads."""


def methods(hypernet: bool) -> list[dict[str, Any]]:
    """Rows for the page, without the methods whose inputs are not at hand.

    Parameters
    ----------
    hypernet : a trained hypernetwork is at hand.
    """
    needs = {"", "hypernet"} if hypernet else {""}
    return [_row(method) for method in METHODS.values() if method.needs in needs]


def options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The page's values as the method takes them: lists become tuples where its default is one.

    Raises
    ------
    UserError : the method is unknown, or has no such option; a path, such as that of a hypernetwork, is none.
    """
    if method not in METHODS:
        raise UserError(f"method {method}: unknown; choose one of {', '.join(METHODS)}")
    known = METHODS[method].options
    for name in given:
        if name not in known or name == "hypernet":
            raise UserError(f"method {method}: has no option {name}; it has {', '.join(known) or 'none'}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _row(method: Method) -> dict[str, Any]:
    parameters = inspect.signature(method.merge).parameters
    given = {name: default for name, default in method.options.items() if name != "hypernet"}
    return {
        "name": method.name,
        "title": method.title,
        "paper": method.paper,
        "kind": "schedule" if method.schedule else "exact" if method.exact else "approximated",
        "options": [
            {"name": name, "default": default, "choices": _choices(parameters[name].annotation)}
            for name, default in given.items()
        ],
    }


def _choices(annotation: Any) -> list[str]:
    """The texts that an option may be, from its annotation; empty if it says none."""
    found = re.fullmatch(r"(?:typing\.)?Literal\[(.*)\]", str(annotation))
    return [str(choice) for choice in literal_eval(f"({found[1]},)")] if found else []
