"""LoRA.rar and its rivals: train, merge and judge subject and style LoRAs of SDXL-shaped models."""

__version__ = "0.1.0"
