"""Merging: from a content and a style adapter, one. `registry.METHODS` is the table of contents.

The package can itself be called: `lorarar.merge(content, style, method="direct")` is `files.merge`.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from lorarar.merge.api import merge

        return merge(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
