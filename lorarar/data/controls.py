"""Controls: images that show the bounds between which the scores of merging methods lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Control:
    """A floor or a ceiling.

    Attributes
    ----------
    adapter : which of the pair's two adapters is applied, if any.
    prompt : the pair's prompt, the same without the rare token, or None where nothing is sampled.
    vae : whether the VAE encodes and decodes what is drawn where nothing is sampled.
    """

    name: str
    title: str
    bound: Literal["floor", "ceiling"]
    adapter: Literal["content", "style"] | None
    prompt: Literal["pair", "class"] | None
    vae: bool = True


CONTROLS: dict[str, Control] = {
    control.name: control
    for control in [
        Control("base_only", "Base alone", "floor", None, "class"),
        Control("content_only", "Content LoRA alone", "floor", "content", "pair"),
        Control("style_only", "Style LoRA alone", "floor", "style", "pair"),
        # Renderings of the pair itself, as the VAE decodes them: only a world that is drawn knows them.
        Control("truth", "Known truth", "ceiling", None, None),
        # The same renderings as they are: what the VAE costs lies between the two.
        Control("truth_rendered", "Known truth before the VAE", "ceiling", None, None, vae=False),
    ]
}
