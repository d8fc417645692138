"""The task that samples images: of stage generate, and of stage quality."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarar import pictures
from stages.shared.base_model import Model


@dataclass(frozen=True)
class Sample:
    """Samples the images of one prompt with an adapter, a schedule of two, or the base model only.

    Attributes
    ----------
    adapter : file of the adapter, or of the schedule; None for the base model only.
    settings : options of `lorarar.diffusion.sampling.generate`.
    """

    model: Model
    adapter: str | None
    prompt: str
    seeds: list[int]
    settings: dict[str, Any]
    schedule: bool = False

    def run(self, folder: Path) -> None:
        from lorarar.diffusion.sampling import generate
        from lorarar.lora.adapter import Adapter
        from lorarar.merging.klora import Schedule

        loaded = (Schedule if self.schedule else Adapter).load(self.adapter) if self.adapter else None
        images = generate(self.model.load(), loaded, self.prompt, seeds=self.seeds, **self.settings)
        for index, image in enumerate(images):
            pictures.write(folder / f"{index:02}.png", image)
