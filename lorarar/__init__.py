"""LoRA.rar and its rivals: train, merge and judge subject and style LoRAs of SDXL-shaped models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lorarar.version import __version__

if TYPE_CHECKING:
    from lorarar.api import merge as merge
    from lorarar.contents import inspect as inspect
    from lorarar.lora.adapter import Adapter as Adapter
    from lorarar.merging.registry import methods as methods

__all__ = ["Adapter", "__version__", "inspect", "merge", "methods"]

_HOME = {
    "Adapter": "lorarar.lora.adapter",
    "inspect": "lorarar.contents",
    "merge": "lorarar.api",
    "methods": "lorarar.merging.registry",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for: `import lorarar` loads nothing else."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value
