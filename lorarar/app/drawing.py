"""Pictures of merges, by the base model at hand."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from lorarar import shipped
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from lorarar.merging.klora import Schedule

if TYPE_CHECKING:
    from lorarar.diffusion.backbone import Backbone


class Artist:
    """Draws with one base model, which is loaded when the first picture is asked for.

    Parameters
    ----------
    base : a folder; None is the miniature.
    """

    def __init__(self, base: Path | None = None) -> None:
        from lorarar import preview

        self.folder = shipped.root() / "data/pocket/base" if base is None else base
        self.name = "pocket" if base is None else base.parent.name if base.name == "base" else base.name
        self.guidance = preview.GUIDANCE[base is None]
        self._backbone: Backbone | None = None

    def draw(self, adapter: Adapter | Schedule | None, prompt: str, seed: int, steps: int) -> bytes:
        """One picture as PNG; None draws with the base alone.

        Raises
        ------
        UserError : the adapter was made for another base.
        """
        from PIL import Image

        from lorarar.diffusion.backbone import Backbone
        from lorarar.diffusion.sampling import generate

        if self._backbone is None:
            self._backbone = Backbone.load(self.folder)
        (picture,) = generate(self._backbone, adapter, prompt, seeds=[seed], steps=steps, guidance=self.guidance)
        file = BytesIO()
        Image.fromarray(picture).save(file, format="PNG")
        return file.getvalue()


def at_hand(base: Path | None) -> Artist | None:
    """An artist, or None where the miniature or the libraries that draw are not installed, and no base is named."""
    from importlib.util import find_spec

    try:
        return Artist(base) if base or all(map(find_spec, ("diffusers", "transformers", "PIL"))) else None
    except UserError:
        return None
