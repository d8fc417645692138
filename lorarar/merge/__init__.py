"""Merging: from a content and a style adapter, one. `registry.METHODS` is the table of contents.

The package can itself be called: `lorarar.merge(content, style, method="direct")` is `api.merge`.
"""

import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return import_module("lorarar.merge.api").merge(*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(import_module("lorarar.merge.api").merge)


sys.modules[__name__].__class__ = _Callable
