"""Checkpoints of base models, read tensor by tensor: a file or a folder, in diffusers' or the original names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lorarar.errors import UserError
from lorarar.lora import base_models, container, kohya
from lorarar.lora.bases import Base, bases
from lorarar.lora.container import Stored


class Weight(NamedTuple):
    """The place of a layer's weight: a tensor, or some of its rows where layers are fused."""

    tensor: str
    rows: slice
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a base model on disk.

    Attributes
    ----------
    path
        The file or folder that it was opened from.
    tensors
        Name -> its place. The name is `<layer>.weight` or `<layer>.bias` where the layer is known, whatever it is
        called in the file; elsewhere it is the key in the file, after `<folder>.` in a pipeline's folder.
    layers
        Layer -> its weight: linear layers and convolutions that can have a LoRA, by their names in
        `Adapter.matrices`: a path in the UNet or transformer, or `text_encoder.<path>` and `text_encoder_2.<path>`.
    metadata
        Each file's own, by its path.
    model
        The component of the layers without a prefix: "unet" or "transformer"; "" if there are none.
    """

    path: Path
    tensors: Mapping[str, Stored]
    layers: Mapping[str, Weight]
    metadata: Mapping[Path, Mapping[str, str]]
    model: str

    @classmethod
    def open(cls, path: Path | str) -> Checkpoint:
        """Read the headers of a .safetensors file, of a model's folder, sharded or not, or of a pipeline's folder.

        Raises
        ------
        UserError
            Something is missing, damaged, there twice, or quantised with scales of its own, or no layer is known.
        """
        path = Path(path)
        tensors: dict[str, Stored] = {}
        layers: dict[str, Weight] = {}
        metadata, models = {}, set()
        for file in _files(path):
            keys, metadata[file] = container.stored(file)
            component = _component(keys, file.parent.name if path.is_dir() else "")
            stacks = _stacks(keys) if component in ("", "transformer") else {}
            component = "" if stacks else component
            for key, place in keys.items():
                if key.endswith((".scale_weight", ".weight_scale", ".absmax", ".quant_map")) or key == "scaled_fp8":
                    raise UserError(
                        f"{file}: {key} is a scale of quantised weights; give the checkpoint in fp16, bf16 or fp32"
                    )
                stack, _, end = key.rpartition(".")
                parts = stacks.get(stack, {})
                name = f"{next(iter(parts))}.{end}" if len(parts) == 1 else key if parts else _name(key, component)
                if name in tensors:
                    other = tensors[name]
                    raise UserError(
                        f"{path}: {other.key} of {other.file.name} is also {key} of {file.name}; give one of the files"
                    )
                tensors[name] = place
                if parts:
                    layers |= _parts(name, place, parts) if end == "weight" else {}
                else:
                    layers |= _weights(name, place, component)
            if stacks or component == "transformer":
                models.add("transformer")
            elif component == "unet" or any(map(_UNET.match, keys)):
                models.add("unet")
        if not layers:
            raise UserError(
                f"{path}: no layer of a UNet, transformer or CLIP text encoder by diffusers' or original names, "
                f"but {next(iter(tensors), 'nothing')}; give a base model's checkpoint"
            )
        if len(models) > 1:
            raise UserError(f"{path}: holds a UNet and a transformer; give the folder of one of them")
        return cls(path, tensors, layers, metadata, next(iter(models), ""))

    def weight(self, layer: str) -> Tensor:
        """The weight of a layer, (m_out, n_in) or (c_out, c_in, h, w), in the dtype of the file."""
        place = self.layers[layer]
        return self.tensors[place.tensor].read()[place.rows]


_MODELS = ("unet", "transformer")
_ENCODERS = ("text_encoder", "text_encoder_2")
# The UNet of a single file, and of what other programs make of it alone.
_UNET = re.compile(
    r"(?:model\.)?diffusion_model\.|(?=(?:(?:in|out)put_blocks|middle_block|time_embed|label_emb|out)\.\d)"
)
_LAYER = re.compile(
    r"(?:(?:down|up)_blocks|mid_block|conv_in|conv_out|(?:time|add)_embedding|encoder_hid_proj)\b.*"
    r"|text_encoder(?:_2)?\.(?:text_model\.encoder\.layers\..*|text_projection)"
)
_CLIP = {  # in single files: SD 1 has the first, SD 2 the second, SDXL the last two
    "cond_stage_model.transformer.": "text_encoder",
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}
_OPEN_CLIP = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
_FUSED = re.compile(r"(text_encoder(?:_2)?\.text_model\.encoder\.layers\.\d+\.)attn\.in_proj_weight")


def _files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in order."""
    if not path.is_dir():
        return [path]
    for index in sorted([*path.glob("*.safetensors.index.json"), *path.glob("*/*.safetensors.index.json")]):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(name for name in named if not (index.parent / name).is_file())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{index}: not an index of weights; fetch it again") from None
        if missing:
            raise UserError(f"{index}: names {missing[0]}, which is not there; fetch it")
    files = sorted([*path.glob("*.safetensors"), *path.glob("*/*.safetensors")])
    if not files:
        raise UserError(f"{path}: a folder without .safetensors files; give a checkpoint's file or folder")
    return files


def _component(keys: Iterable[str], folder: str) -> str:
    """The part of a pipeline that a file holds whole, by its keys or its folder's name; "" for a single file of all."""
    if folder in (*_MODELS, *_ENCODERS) or folder.startswith(("vae", "text_encoder", "image_encoder", "safety")):
        return folder
    starts = {key.partition(".")[0] for key in keys}
    if starts & {"down_blocks", "mid_block", "up_blocks"} and not starts & {"encoder", "decoder"}:
        return "unet"
    if any(base_models.component(start) == "transformer" for start in starts):
        return "transformer"
    return "text_encoder" if "text_model" in starts else ""


def _name(key: str, component: str) -> str:
    """The name of a tensor in `Checkpoint.tensors`."""
    if component in _MODELS:
        return key
    if component in _ENCODERS:
        # CLIP's layers are in `text_model`, which recent transformers leave out.
        return f"{component}.{re.sub(r'^(?=encoder[.])', 'text_model.', key)}"
    if component:
        return f"{component}.{key}"
    module, _, end = key.rpartition(".")
    if (match := _UNET.match(key)) and (path := kohya.unet_path(module[match.end() :])):
        return f"{path}.{end}"
    for prefix, encoder in _CLIP.items():
        if key.startswith(prefix):
            path = key.removeprefix(prefix)
            if match := re.match(r"transformer\.resblocks\.(\d+)\.(.+)", path):
                module, dot, end = match[2].rpartition(".")
                path = f"text_model.encoder.layers.{match[1]}.{_OPEN_CLIP.get(module, module)}{dot}{end}"
            return f"{encoder}.{path}" if path.startswith("text_model.encoder.") else key
    return key


def _stacks(keys: Mapping[str, Stored]) -> dict[str, dict[str, int]]:
    """The modules of a transformer by its original names: beginning of a key -> the layers whose rows it stacks.

    Each layer has its rows in a base of full size, which tell its share. Empty if the names are diffusers' or unknown.
    """
    shapes = {
        _UNET.sub("", stem, count=1): place.shape
        for stem, _, end in (key.rpartition(".") for key in keys)
        if end == "weight" and len((place := keys[f"{stem}.weight"]).shape) == 2
    }

    def fit(base: Base) -> tuple[int, int]:
        """How many names of the file the base has, and how many of these in its shapes."""
        known = [(shape, names[base][name]) for name, shape in shapes.items() if name in names[base]]
        exact = [shape == (sum(base.shapes[p][0] for p in paths), base.shapes[paths[0]][1]) for shape, paths in known]
        return len(known), sum(exact)

    # Bases without original names compete too: some of diffusers' names are another base's original ones.
    transformers = [base for base in bases() if base.component == "transformer"]
    names = {base: base.names[""] | base.names.get("original", {}) for base in transformers}
    best = max(names, key=fit)
    if not any(name in names[best] and name not in best.names[""] for name in shapes):
        return {}
    found = {name: {path: best.shapes[path][0] for path in paths} for name, paths in names[best].items()}
    return {
        stem: found[name]
        for stem in dict.fromkeys(key.rpartition(".")[0] for key in keys)
        # Halves of rows that change places are no layer of diffusers' in its own order.
        if (name := _UNET.sub("", stem, count=1)) in found and not found[name].keys() & best.swapped
    }


def _parts(name: str, place: Stored, shares: Mapping[str, int]) -> dict[str, Weight]:
    """The layers that a matrix stacks, each with its share of the rows; none if the shares are no whole rows."""
    rows, whole = place.shape[0], sum(shares.values())
    if len(place.shape) != 2 or any(rows * share % whole for share in shares.values()):
        return {}
    ends = [rows * end // whole for end in accumulate(shares.values(), initial=0)]
    return {
        layer: Weight(name, slice(*pair), (pair[1] - pair[0], *place.shape[1:]))
        for layer, pair in zip(shares, pairwise(ends), strict=True)
    }


def _weights(name: str, place: Stored, component: str) -> dict[str, Weight]:
    """The layers whose weights a tensor holds: none, one, or three."""
    shape = place.shape
    if match := _FUSED.fullmatch(name):
        return _parts(name, place, {f"{match[1]}self_attn.{part}_proj": 1 for part in "qkv"})
    layer, _, end = name.rpartition(".")
    if component == "transformer":
        known = len(shape) == 2
    else:
        known = len(shape) in (2, 4) and _LAYER.fullmatch(layer) is not None
    known = known and end == "weight" and place.dtype.is_floating_point
    return {layer: Weight(name, slice(None), shape)} if known else {}
