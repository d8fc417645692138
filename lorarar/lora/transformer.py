"""LoRA files of transformers such as FLUX.1: every naming scheme in and out, by the data of each base.

A key is a beginning (`transformer.`, `diffusion_model.`, `lora_unet_` ...), the name of a module with dots or with
underscores for them, and an end (`.lora_A.weight`, `.lora_down.weight`, `.alpha` ...). Names are paths of diffusers or
those of the base's first code. There, a module can stack layers: `img_attn.qkv` has the rows of `to_q`, `to_k` and
`to_v`. Such a module is split on reading, A for each layer and the layer's rows of B, so that a merging method sees
single layers. It is put together again on writing: with one A if the layers have the same, else in blocks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from lorarar.errors import UserError
from lorarar.lora import base_models, diffusers, kohya, peft
from lorarar.lora.bases import Base, bases, claimed
from lorarar.lora.factors import Factors, Layers, gather
from lorarar.lora.lazy import Lazy, blanks


class Format(NamedTuple):
    """How keys begin and end, and whether names have dots."""

    beginning: str
    dots: bool
    down: str
    up: str
    alpha: bool
    encoder: str | None  # what the names of text encoders begin with; None if the format has no place for them


_KOHYA = Format("lora_unet_", False, "lora_down.weight", "lora_up.weight", True, "{}_")
FORMATS = {
    "kohya": _KOHYA,
    "comfyui": Format(
        "diffusion_model.", True, "lora_A.weight", "lora_B.weight", False, "text_encoders.{}.transformer."
    ),
    "onetrainer": _KOHYA._replace(beginning="lora_transformer_"),
    "xlabs": Format("", True, "down.weight", "up.weight", False, None),
}
"""Formats that only transformers have, or that name their layers in a way of their own."""

_BEGINNINGS = {
    "base_model.model.": "peft",
    "model.diffusion_model.": "comfyui",
    "diffusion_model.": "comfyui",
    "transformer.": "diffusers",
    "unet.": "diffusers",
    "lora_unet_": "kohya",
    "lycoris_": "kohya",
    "lora_transformer_": "onetrainer",
}
_ENDS = {
    **dict.fromkeys(("lora_A.weight", "lora_A.default.weight", "lora_down.weight", "lora.down.weight"), "down"),
    **dict.fromkeys(("lora_B.weight", "lora_B.default.weight", "lora_up.weight", "lora.up.weight"), "up"),
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
    "down.weight": "down",
    "up.weight": "up",
}
_KEY = re.compile(
    rf"(?P<beginning>(?:{'|'.join(map(re.escape, _BEGINNINGS))})*)(?P<name>.+?)"
    rf"\.(?P<end>{'|'.join(map(re.escape, _ENDS))})"
)
_ENCODER = re.compile(
    r"(?:(?P<component>text_encoder(?:_[23])?)\.|(?P<kohya>lora_te[123]?)_|text_encoders\.(?P<comfy>\w+?)\.(?:transformer\.)?)"
    r"(?P<path>.+)"
)
_COMFY = {"lora_te1": "clip_l", "lora_te2": "clip_g", "lora_te3": "t5xxl"}
_T5 = re.compile(
    r"encoder[._]block[._](?P<block>\d+)[._]layer[._](?P<layer>[01])[._](?P<part>SelfAttention|DenseReluDense)[._]"
    r"(?P<end>[qkvo]|w[io](?:_[01])?)"
)


class Module(NamedTuple):
    """What a name stands for."""

    paths: tuple[str, ...]
    """The layers whose rows it stacks."""
    own: bool
    """Whether the name is the path in diffusers."""


def known(keys: Iterable[str]) -> frozenset[str]:
    """The keys that the transformer which knows most of them knows, its text encoders' included; none of a UNet's."""
    names = {key: match for key in keys if (match := _KEY.fullmatch(key)) and match["name"] in _all_names()}
    if not names:
        return frozenset()
    base = max(_transformers(), key=lambda base: sum(match["name"] in _modules(base) for match in names.values()))
    return frozenset(
        key for key in keys if (key in names and names[key]["name"] in _modules(base)) or _encoder(key, base)
    )


def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> tuple[Layers, str]:
    """The layers of a file of a transformer, and its format: `transformer.<path>` and `text_encoder.<path>` -> factors.

    Raises
    ------
    UserError
        A key belongs to no layer of the base which knows most, or the shapes are those of no base known here.
    """
    located: dict[str, tuple[str, str]] = {}
    counts: Counter[str] = Counter()
    most = len(known(tensors))
    candidates = [base for base in _transformers() if sum(_knows(base, key) for key in tensors) == most]
    for key in tensors:
        if found := _encoder(key, candidates[0]):
            located[key] = found
        elif (match := _KEY.fullmatch(key)) and match["name"] in _modules(candidates[0]):
            located[key] = (f"transformer.{match['name']}", _ENDS[match["end"]])
            counts[_format(match["beginning"], match["name"], candidates[0])] += 1
        else:
            raise UserError(f"{source}: {key} belongs to no linear layer of {candidates[0].name}; give another file")
    ((format, _),) = counts.most_common(1)
    scales: Callable[[str, int], float] = lambda layer, rank: 1.0  # noqa: E731
    if format in ("diffusers", "peft"):
        scales = diffusers.scales(metadata, source) if format == "diffusers" else peft.scales(source)
    found_layers = gather(tensors, located.get, scales, source)
    modules = {
        name.removeprefix("transformer."): factors
        for name, factors in found_layers.items()
        if name.startswith("transformer.")
    }
    for name, factors in modules.items():
        if factors.down.ndim != 2:
            raise UserError(f"{source}: {name} is a convolution, but in {candidates[0].name} it is a linear layer")
    base = _of_shapes(candidates, modules, source)
    layers = {name: factors for name, factors in found_layers.items() if not name.startswith("transformer.")}
    for name, factors in modules.items():
        for path, part in _split(factors, _modules(base)[name], base).items():
            if f"transformer.{path}" in layers:
                raise UserError(f"{source}: {name} is the second name of layer {path}; the file is damaged")
            layers[f"transformer.{path}"] = part
    return dict(sorted(layers.items())), format if format in base.formats else "diffusers"


def renamed(
    layers: Layers, format: str, metadata: Mapping[str, str]
) -> tuple[Layers, Callable[[str, Factors], dict[str, Tensor]]]:
    """The modules of a file by their names there, and the function that gives the tensors of one.

    Parameters
    ----------
    layers
        As `read` gives them. Lazy ones stay lazy; those that may share their A are computed twice.
    format
        A key of `FORMATS`.

    Raises
    ------
    UserError
        The format has no name for a layer, or bases with other names have the same layers.
    """
    style = FORMATS[format]
    known, paths = blanks(layers), []
    for layer in layers:
        component, _, path = layer.partition(".")
        if component == "transformer":
            paths.append(path)
    base = _of_paths(paths, known, format, metadata)
    scheme = base.writes[format]
    stacks: dict[str, Module] = {}
    for name, stacked in base.names[scheme].items():
        if any(f"transformer.{path}" in known for path in stacked):
            stacks[style.beginning + (name if style.dots else name.replace(".", "_"))] = Module(stacked, scheme == "")
    named = {path for module in stacks.values() for path in module.paths}
    for path in paths:
        if path not in named:
            raise UserError(f"layer transformer.{path} has no name in {format}'s format; save in another")
    encoders = {_encoder_name(layer, base, format): layer for layer in layers if not layer.startswith("transformer.")}
    shared = _shared(layers, stacks)

    def module(name: str, of: Layers) -> Factors:
        if name in encoders:
            return of[encoders[name]]
        parts = {path: of[layer] for path in stacks[name].paths if (layer := f"transformer.{path}") in known}
        return _stack(parts, stacks[name], base, name in shared)

    found = {name: module(name, known) for name in (*encoders, *stacks)}
    if isinstance(layers, Lazy):
        return Lazy(found, partial(module, of=layers)), partial(_tensors, style=style)
    return {name: module(name, layers) for name in found}, partial(_tensors, style=style)


def refuse(layer: str, factors: Factors) -> dict[str, Tensor]:
    """Raise `UserError`: a format of transformers has no name for a UNet's layer."""
    raise UserError(f"layer {layer} is not of a transformer, for which this format is; save in another")


def _tensors(name: str, factors: Factors, style: Format) -> dict[str, Tensor]:
    found = {f"{name}.{style.down}": factors.down, f"{name}.{style.up}": factors.up}
    return found | ({f"{name}.alpha": torch.tensor(float(factors.rank))} if style.alpha else {})


# Names.


@cache
def _transformers() -> tuple[Base, ...]:
    return tuple(base for base in bases() if base.component == "transformer")


@cache
def _modules(base: Base) -> dict[str, Module]:
    """Every name that a module has in a file, with dots or underscores -> what it stands for."""
    found: dict[str, Module] = {}
    for scheme, names in base.names.items():
        for name, paths in names.items():
            for spelling in (name, name.replace(".", "_")):
                found.setdefault(spelling, Module(paths, scheme == ""))
    return found


@cache
def _all_names() -> frozenset[str]:
    return frozenset(name for base in _transformers() for name in _modules(base))


def _knows(base: Base, key: str) -> bool:
    match = _KEY.fullmatch(key)
    return bool((match and match["name"] in _modules(base)) or _encoder(key, base))


def _format(beginning: str, name: str, base: Base) -> str:
    """The format of a key: its beginning tells; without one, the scheme of its name does."""
    if ".processor." in name:
        return "xlabs"
    format = next((format for known, format in _BEGINNINGS.items() if beginning.startswith(known)), "diffusers")
    return format if format not in ("diffusers", "peft") or _modules(base)[name].own else "comfyui"


def _encoder(key: str, base: Base) -> tuple[str, str] | None:
    """(`text_encoder.<path>`, "down", "up" or "alpha") of a key of a text encoder that the base has; else None."""
    end = _KEY.fullmatch(key)
    match = end and _ENCODER.fullmatch(key.removesuffix(f".{end['end']}"))
    if not (end and match and base.encoders):
        return None
    if t5 := _T5.fullmatch(match["path"]):
        component = base.encoders.get("lora_te3")
        path: str | None = "encoder.block.{block}.layer.{layer}.{part}.{end}".format(**t5.groupdict())
    else:
        from_comfy = next((prefix for prefix, name in _COMFY.items() if name == match["comfy"]), None)
        prefix = from_comfy or (match["kohya"] or "").replace("lora_te_", "lora_te1_")
        component = match["component"] or base.encoders.get("lora_te1" if prefix == "lora_te" else prefix)
        path = kohya.dotted(match["path"].replace(".", "_"))
        path = path or kohya.dotted(f"text_model_{match['path'].replace('.', '_')}")
    return (f"{component}.{path}", _ENDS[end["end"]]) if component in base.encoders.values() and path else None


def _encoder_name(layer: str, base: Base, format: str) -> str:
    """The name of a text encoder's layer in a file; raises `UserError` if it has none."""
    component, _, path = layer.partition(".")
    prefix = next((prefix for prefix, name in base.encoders.items() if name == component), None)
    style = FORMATS[format]
    if prefix is None or style.encoder is None:
        raise UserError(f"layer {layer} has no name in {format}'s format for {base.name}; save in another")
    return style.encoder.format(_COMFY[prefix] if style.dots else prefix) + (
        path if style.dots else path.replace(".", "_")
    )


# Bases.


def _of_shapes(candidates: Collection[Base], modules: Mapping[str, Factors], source: str) -> Base:
    """The first candidate with these shapes, or else the first whose stacked modules have these proportions."""

    def whole(base: Base, name: str, rows: int, columns: int) -> bool:
        shapes = [base.shapes[path] for path in _modules(base)[name].paths]
        tells = any(path in base.layers for path in _modules(base)[name].paths)
        return not tells or (rows, columns) == (sum(shape[0] for shape in shapes), shapes[0][1])

    def in_proportion(base: Base, name: str, rows: int, columns: int) -> bool:
        shapes = [base.shapes[path] for path in _modules(base)[name].paths]
        total = sum(shape[0] for shape in shapes)
        return len(shapes) == 1 or rows * shapes[0][1] == columns * total

    sizes = [(name, len(factors.up), factors.down.shape[1]) for name, factors in modules.items()]
    for fits in (whole, in_proportion):
        for base in candidates:
            if all(fits(base, *size) for size in sizes):
                return base
    name, rows, columns = next(size for size in sizes if not in_proportion(next(iter(candidates)), *size))
    names = " or ".join(base.name for base in candidates)
    raise UserError(f"{source}: {name} is of {rows} x {columns}, which no layer of {names} is; give another file")


def _of_paths(paths: Collection[str], layers: Layers, format: str, metadata: Mapping[str, str]) -> Base:
    """The base whose names a file of these layers gets."""
    candidates = [base for base in _transformers() if format in base.writes and base.shapes.keys() >= set(paths)]
    fitting = base_models.fitting(candidates, {path: layers[f"transformer.{path}"] for path in paths}) or candidates
    fitting = [base for base in fitting if base.name == claimed(metadata)] or fitting
    if not fitting:
        lost = next((path for path in paths if not any(path in base.shapes for base in _transformers())), None)
        layer = f"layer transformer.{lost}" if lost else "an adapter of these layers"
        raise UserError(f"{layer} has no name in {format}'s format; save in another")

    def names(base: Base) -> list[str]:
        return sorted(name for name, of in base.names[base.writes[format]].items() if set(of) & set(paths))

    if any(names(base) != names(fitting[0]) for base in fitting):
        found = " or ".join(base.name for base in fitting)
        raise UserError(f"these layers are of {found}, whose names in {format}'s format differ; save as diffusers")
    return fitting[0]


# Stacked modules.


def _rows(module: Module, base: Base, path: str, rows: int) -> list[int]:
    """The rows of each layer of a module, in the base's proportions, where the layer at `path` has `rows`."""
    return [base.shapes[one][0] * rows // base.shapes[path][0] for one in module.paths]


def _split(factors: Factors, module: Module, base: Base) -> dict[str, Factors]:
    """The layers of a module: each has A and its rows of B, without columns at the ends that are zero there."""
    if len(module.paths) == 1:
        (path,) = module.paths
        return {path: _swapped(factors, path, module, base)}
    total = sum(base.shapes[path][0] for path in module.paths)
    rows = [base.shapes[path][0] * len(factors.up) // total for path in module.paths]
    parts = zip(module.paths, factors.up.split(rows), strict=True)
    return {path: _trimmed(Factors(factors.down, up)) for path, up in parts}


def _trimmed(factors: Factors) -> Factors:
    """The same update without the ranks before and after those that it uses: a block of a module in blocks."""
    used = (factors.up != 0).any(0).nonzero().flatten()
    if len(used) in (0, factors.rank):
        return factors
    block = slice(int(used[0]), int(used[-1]) + 1)
    return Factors(factors.down[block], factors.up[:, block])


def _stack(parts: Mapping[str, Factors], module: Module, base: Base, shared: bool) -> Factors:
    """The factors of a module, of whose layers `parts` has some; the others get zeros."""
    if len(module.paths) == 1:
        ((path, factors),) = parts.items()
        return _swapped(factors, path, module, base)
    first, some = next(iter(parts.items()))
    rows = dict(zip(module.paths, _rows(module, base, first, len(some.up)), strict=True))
    rank = some.rank if shared else sum(factors.rank for factors in parts.values())
    up = some.up.new_zeros(sum(rows.values()), rank)
    top = left = 0
    for path in module.paths:
        if path in parts:
            factors = parts[path]
            up[top : top + rows[path], left : left + factors.rank] = factors.up
            left += 0 if shared else factors.rank
        top += rows[path]
    return Factors(some.down if shared else torch.cat([factors.down for factors in parts.values()]), up)


def _shared(layers: Layers, stacks: Mapping[str, Module]) -> frozenset[str]:
    """The modules whose layers all have the same A. If the first has not, none is looked at."""
    known = blanks(layers)
    found = set()
    for name, module in stacks.items():
        group = [layer for path in module.paths if (layer := f"transformer.{path}") in known]
        if len(group) == 1 or len({known[layer].down.shape for layer in group}) > 1:
            continue
        first = layers[group[0]].down
        if all(torch.equal(first, layers[layer].down) for layer in group[1:]):
            found.add(name)
        elif not found:
            break
    return frozenset(found)


def _swapped(factors: Factors, path: str, module: Module, base: Base) -> Factors:
    """The factors with the halves of B's rows exchanged, if the module's name has them so."""
    if module.own or path not in base.swapped:
        return factors
    return Factors(factors.down, torch.cat(factors.up.chunk(2)[::-1]))
