"""Merging: from a content and a style adapter, one. `registry.METHODS` is the table of contents.

The package itself can be called: `lorarar.merge(content, style, method="direct")` is `api.merge`. Python sets
`lorarar.merge` to this package whenever a module of it is imported, so a function of that name would not last.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    @property
    def __wrapped__(self) -> Callable[..., Any]:  # `inspect.signature` and `help` look here
        from lorarar.merge.api import merge

        return merge

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.__wrapped__(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
