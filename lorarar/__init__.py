"""LoRA.rar and its rivals: train, merge and judge subject and style LoRAs of SDXL-shaped models."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lorarar.lora.adapter import Adapter
    from lorarar.merge.api import merge
else:
    from lorarar import merge  # the package, which can be called; it imports torch only then

    def __getattr__(name: str) -> Any:
        if name != "Adapter":
            raise AttributeError(f"module {__name__} has no attribute {name}")
        from lorarar.lora.adapter import Adapter

        return Adapter


__all__ = ["Adapter", "__version__", "merge"]
