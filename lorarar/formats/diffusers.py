"""diffusers' LoRA keys: `unet.<path>.lora.down.weight` and `.lora.up.weight`, or peft's `lora_A`, `lora_B`.

The effective update is (alpha / r) up @ down. A file without alpha means alpha = r.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorarar.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# diffusers keeps peft's configuration, and with it alpha, as JSON under this metadata key.
CONFIGURATION = "lora_adapter_metadata"
FOLDED = frozenset({CONFIGURATION})

_KEY = re.compile(
    r"(?:unet\.)+(?P<path>.+?)\."
    r"(?:(?P<down>(?:lora\.down|lora_A)(?:\.default)?\.weight)"
    r"|(?P<up>(?:lora\.up|lora_B)(?:\.default)?\.weight)|alpha)"
)
_log = logging.getLogger(__name__)


def parse(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Module path -> (down, up) with alpha folded into `up`; `source` names the file in messages.

    Text encoder layers are left out with a warning; whatever else cannot become (down, up) pairs is refused.
    """
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    left_out = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match:
            part = "down" if match["down"] else "up" if match["up"] else "alpha"
            found[match["path"]][part] = tensor
        elif key.startswith("unet."):
            raise UserError(f"{source}: {key} is not part of a plain LoRA; convert the file to one first")
        else:
            left_out.append(key)
    if not found:
        raise UserError(f"{source}: no UNet LoRA in diffusers' format inside; keys must start with `unet.`")
    if left_out:
        _log.warning("%s: left out %d tensors outside the UNet, such as %s", source, len(left_out), left_out[0])

    configuration = _configuration(metadata, source)
    layers = {}
    for path, parts in sorted(found.items()):
        layers[path] = _factors(path, parts, configuration, source)
    return layers


def keys(layers: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a file that `StableDiffusionXLPipeline.load_lora_weights` reads."""
    return {
        f"unet.{path}.lora.{part}.weight": tensor
        for path, factors in layers.items()
        for part, tensor in zip(("down", "up"), factors, strict=True)
    }


def _factors(
    path: str, parts: Mapping[str, Tensor], configuration: Mapping[str, Any], source: str
) -> tuple[Tensor, Tensor]:
    for part in ("down", "up"):
        if part not in parts:
            raise UserError(f"{source}: layer {path} has no `{part}` matrix; the file is incomplete, make it again")
    down, up = parts["down"], parts["up"]
    if down.ndim != 2 or up.ndim != 2:
        raise UserError(f"{source}: layer {path} is a convolution; only linear layers can be merged")
    if down.shape[0] != up.shape[1]:
        shapes = f"down {tuple(down.shape)} and up {tuple(up.shape)}"
        raise UserError(f"{source}: layer {path} has {shapes}, which share no rank; the file is damaged")
    rank = down.shape[0]
    pattern = configuration.get("unet.alpha_pattern") or {}
    alpha = float(parts.get("alpha", pattern.get(path, configuration.get("unet.lora_alpha", rank))))
    divisor = rank**0.5 if configuration.get("unet.use_rslora") else rank
    return down, up if alpha == divisor else (up.float() * (alpha / divisor)).to(up.dtype)


def _configuration(metadata: Mapping[str, str], source: str) -> dict[str, Any]:
    try:
        return dict(json.loads(metadata.get(CONFIGURATION, "{}")))
    except ValueError:
        raise UserError(
            f"{source}: metadata `{CONFIGURATION}` is not JSON, so alpha is unknown; save it again"
        ) from None
