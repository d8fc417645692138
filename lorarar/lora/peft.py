"""peft's LoRA keys, `base_model.model.<path>.lora_A.weight`, and its configuration, which holds alpha.

A peft file is for one model, here the UNet. Layers of text encoders are written as `text_encoder.<path>` with
alpha = rank, which peft skips.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from statistics import mode
from typing import TYPE_CHECKING, Any

from lorarar.errors import UserError
from lorarar.lora.factors import Factors, Layers, gather

if TYPE_CHECKING:
    from torch import Tensor

CONFIGURATION = "adapter_config.json"
FOLDED: frozenset[str] = frozenset()
PREFIXES = ("base_model.model.",)
MAIN = ("unet", "transformer")
"""The component whose file it is."""

_KEY = re.compile(r"base_model\.model\.(?:unet\.)?(?P<path>.+?)\.lora_(?P<matrix>A|B)(?:\.default)?\.weight")
# These begin with parts of the base's weights and take them out of the base.
_CHANGES_BASE = ("pissa", "olora", "corda")
_log = logging.getLogger(__name__)


def parse(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> Layers:
    """Layer -> (down, up), scaled as `adapter_config.json` in the folder of the file `source` says."""
    layers = gather(tensors, _locate, scales(source), source)
    wide = any(down.shape[1] == 1280 for layer, (down, _) in layers.items() if layer.startswith("text_encoder."))
    if not wide:
        return layers
    # This width is that of SDXL's second text encoder.
    return {re.sub(r"^text_encoder\.", "text_encoder_2.", layer): factors for layer, factors in layers.items()}


def scales(source: str) -> Callable[[str, int], float]:
    """The function (layer, rank) -> factor of up @ down that `adapter_config.json` next to the file gives."""
    sidecar = Path(source).with_name(CONFIGURATION)
    configuration: dict[str, Any] = {}
    try:
        configuration = json_object(sidecar.read_text(encoding="utf-8"))
    except FileNotFoundError:
        _log.warning("%s: no %s in its folder, so alpha is taken to be the rank", source, CONFIGURATION)
    except (ValueError, OSError):
        raise UserError(f"{sidecar}: not a JSON object, so alpha is unknown; fetch or make it again") from None

    def scale_of(layer: str, rank: int) -> float:
        component, _, path = layer.partition(".")
        return scale(configuration, path, rank, source) if component in MAIN else 1.0

    return scale_of


def tensors(layer: str, factors: Factors) -> dict[str, Tensor]:
    """The tensors of a layer in an `adapter_model.safetensors` that `PeftModel.from_pretrained` reads."""
    stem = f"base_model.model.{layer.removeprefix('unet.').removeprefix('transformer.')}"
    return {f"{stem}.lora_A.weight": factors.down, f"{stem}.lora_B.weight": factors.up}


def adapter_config(layers: Layers) -> dict[str, Any]:
    """The content of `adapter_config.json`; raises `UserError` if there is no layer of the UNet or transformer."""
    parts = ((*layer.partition("."), factors) for layer, factors in layers.items())
    main = {path: factors for component, _, path, factors in parts if component in MAIN}
    if not main:
        raise UserError("a peft file is of the UNet, of which this adapter has no layer; save in another format")
    return {"peft_type": "LORA", **configuration(main)}


def configuration(layers: Layers) -> dict[str, Any]:
    """The entries of a `LoraConfig` for layers, by their paths in one model, with alpha = rank."""
    ranks = {path: layers[path].rank for path in sorted(layers)}
    usual = mode(sorted(ranks.values()))
    others = {path: rank for path, rank in ranks.items() if rank != usual}
    return {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(ranks),
    }


def scale(configuration: Mapping[str, Any], path: str, rank: int, source: str) -> float:
    """The number by which peft multiplies up @ down of the layer at `path`; 1 if the configuration is empty.

    Raises
    ------
    UserError
        The configuration belongs to other factors, or to a method that also changes the base's weights.
    """
    begins = str(configuration.get("init_lora_weights")).lower()
    if begins.startswith(_CHANGES_BASE):
        raise UserError(f"{source}: its {begins} also changed the base's weights; convert it to a plain LoRA first")
    try:
        expected = _chosen(configuration.get("rank_pattern"), path, configuration.get("r", rank))
        alpha = float(_chosen(configuration.get("alpha_pattern"), path, configuration.get("lora_alpha", rank)))
    except (AttributeError, TypeError, ValueError, OverflowError, re.error) as error:
        raise UserError(
            f"{source}: its configuration tells no alpha of layer {path} ({error}); "
            "give the file the configuration it was saved with"
        ) from None
    if expected != rank:
        raise UserError(
            f"{source}: layer {path} has rank {rank} but its configuration says {expected}; "
            "give the file the configuration it was saved with"
        )
    return alpha / (rank**0.5 if configuration.get("use_rslora") else rank)


def json_object(text: str) -> dict[str, Any]:
    """Parse an untrusted text as a JSON object; raises `ValueError` if it is none."""
    try:
        value = json.loads(text)
    except RecursionError:
        value = None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _chosen(pattern: Mapping[str, Any] | None, path: str, otherwise: Any) -> Any:
    """peft's rule: the value of the first key that, as a regular expression, is the path or its end after a dot."""
    return next((value for key, value in (pattern or {}).items() if _ending(key).fullmatch(path)), otherwise)


@lru_cache(maxsize=4096)  # re's own cache is smaller than the patterns of one file can be
def _ending(key: str) -> re.Pattern[str]:
    # It comes with the file: with few repetitions, and none of a group, it cannot take for ever.
    if len(key) > 300 or sum(map(key.count, "*+?{")) > 3 or re.search(r"\)[*+?{]", key):
        raise ValueError(f"{key!r} is no simple pattern")
    return re.compile(rf"(?:.*\.)?(?:{key})")


def _locate(key: str) -> tuple[str, str] | None:
    match = _KEY.fullmatch(key)
    if not match:
        return None
    path = match["path"]
    if re.match(r"(?:text_model\.)?encoder\.layers\.|text_projection", path):  # a file of CLIP itself
        path = "text_encoder." + re.sub(r"^encoder\.", "text_model.encoder.", path)
    layer = path if path.startswith(("text_encoder.", "text_encoder_2.")) else f"unet.{path}"
    return layer, {"A": "down", "B": "up"}[match["matrix"]]
