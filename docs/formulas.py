"""Keeps Markdown from taking the matrices in docstrings, `[a b] [c; d]`, for links."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object


class Formulas(Extension):
    """Escapes the bracket that follows another."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Changes the docstring in place."""
        if obj.docstring:
            lines = obj.docstring.value.splitlines()  # an indented one is code, where nothing is a link
            escaped = [line if line.startswith(" ") else line.replace("] [", "] \\[") for line in lines]
            obj.docstring.value = "\n".join(escaped)
