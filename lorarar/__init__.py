"""LoRA.rar and its rivals: train, merge and judge subject and style LoRAs of SDXL-shaped models."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

__all__ = ["Adapter", "__version__", "merge"]


def __getattr__(name: str) -> Any:
    """Import `merge`, which is a package and a function, and `Adapter` when they are first asked for."""
    if name == "merge":
        return import_module("lorarar.merge")
    if name == "Adapter":
        return import_module("lorarar.lora.adapter").Adapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
