"""LoRA.rar and its rivals: train, merge and judge subject and style LoRAs of SDXL-shaped models."""

__version__ = "0.1.0"

from lorarar import merge

__all__ = ["__version__", "merge"]
