"""Keeps Markdown from taking the matrices in docstrings, `[a b] [c; d]`, for links."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object


class Formulas(Extension):
    """Escapes the bracket that follows another."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Changes the docstring in place."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("] [", "] \\[")
