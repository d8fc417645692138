"""diffusers' LoRA keys: `unet.<path>.lora.down.weight` and `text_encoder.<path>.lora_linear_layer.down.weight`.

A file without alpha means alpha = r. Older spellings are read too: peft's `lora_A` and `lora_B`, `unet.` twice
or not at all, and the attention processors' `attn1.processor.to_q_lora.down.weight`.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lorarar.errors import UserError
from lorarar.lora import peft
from lorarar.lora.factors import Factors, Layers, gather

if TYPE_CHECKING:
    from torch import Tensor

# diffusers keeps peft's configuration, and with it alpha, as JSON under this metadata key.
CONFIGURATION = "lora_adapter_metadata"
FOLDED = frozenset({CONFIGURATION})
PREFIXES = ("unet.", "text_encoder.", "text_encoder_2.", "down_blocks.", "mid_block.", "up_blocks.")

_KEY = re.compile(
    r"(?:(?P<component>unet|text_encoder(?:_2)?)\.(?:unet\.)*|(?=(?:down|mid|up)_block))(?P<path>.+?)"
    r"(?:(?:\.lora|\.lora_linear_layer|(?:\.processor)?\.to_(?P<processor>q|k|v|out)_lora)\.(?P<part>down|up)\.weight"
    r"|\.lora_(?P<matrix>A|B)(?:\.default)?\.weight|\.alpha)"
)


def parse(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> Layers:
    """Layer -> (down, up) with alpha folded into `up`; `source` names the file in messages."""
    return gather(tensors, _locate, scales(metadata, source), source)


def scales(metadata: Mapping[str, str], source: str) -> Callable[[str, int], float]:
    """The function (layer, rank) -> factor of up @ down that the configuration in the metadata gives."""
    try:
        configuration = peft.json_object(metadata.get(CONFIGURATION, "{}"))
    except ValueError:
        raise UserError(
            f"{source}: metadata `{CONFIGURATION}` is not a JSON object, so alpha is unknown; save it again"
        ) from None
    components: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, value in configuration.items():
        component, _, entry = key.partition(".")
        components[component][entry] = value

    def scale(layer: str, rank: int) -> float:
        component, _, path = layer.partition(".")
        return peft.scale(components[component], path, rank, source)

    return scale


def tensors(layer: str, factors: Factors) -> dict[str, Tensor]:
    """The tensors of a layer in a file that `load_lora_weights` of diffusers' pipelines reads."""
    if layer.startswith("transformer."):
        return {f"{layer}.lora_A.weight": factors.down, f"{layer}.lora_B.weight": factors.up}
    stem = f"{layer}.{'lora' if layer.startswith('unet.') else 'lora_linear_layer'}"
    return {f"{stem}.down.weight": factors.down, f"{stem}.up.weight": factors.up}


def metadata(layers: Layers) -> dict[str, str]:
    """The entry that tells each layer's alpha; none is needed if each component has one rank.

    Without it, if ranks differ, older versions of diffusers take the rank of one layer for the alpha of all.
    """
    components: dict[str, dict[str, Factors]] = defaultdict(dict)
    for layer, factors in layers.items():
        component, _, path = layer.partition(".")
        # diffusers takes `text_model` from names where the encoder has none, but not from these.
        components[component][path.removeprefix("text_model.")] = factors
    configurations = {component: peft.configuration(part) for component, part in components.items()}
    if not any(configuration["rank_pattern"] for configuration in configurations.values()):
        return {}
    entries = {f"{component}.{key}": value for component, all in configurations.items() for key, value in all.items()}
    return {CONFIGURATION: json.dumps(entries, sort_keys=True)}


def _locate(key: str) -> tuple[str, str] | None:
    match = _KEY.fullmatch(key)
    if not match:
        return None
    component, path, processor = match["component"] or "unet", match["path"], match["processor"]
    if component == "unet":
        path += {None: "", "out": ".to_out.0"}.get(processor, f".to_{processor}")
    else:
        path += f".{processor}_proj" if processor else ""
        # CLIP's layers are in `text_model`, which recent transformers leave out; diffusers reads names with it always.
        path = re.sub(r"^encoder\.", "text_model.encoder.", path)
    return f"{component}.{path}", match["part"] or {"A": "down", "B": "up", None: "alpha"}[match["matrix"]]
