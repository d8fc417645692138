"""Tells from the names and shapes of an adapter's layers which base model it was made for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from lorarar.errors import UserError
from lorarar.lora.bases import Base, bases
from lorarar.lora.factors import Layers


def component(path: str) -> str:
    """The component of a pipeline that has a layer at this path: "transformer", or else "unet"."""
    return "transformer" if path.partition(".")[0] in _parts() else "unet"


def guess(layers: Layers) -> str:
    """The base models that have all these layers, such as "SDXL or KOALA".

    Parameters
    ----------
    layers
        As in `Adapter.layers`.

    Returns
    -------
    str
        "unknown (widths 32, 64)" if no base has them or none of them tells a base; "Qwen-Image of unknown size
        (width 32)" if only their shapes fit no base.
    """
    if names := possible(layers):
        return " or ".join(names)
    if not layers:
        return "unknown (no linear layer of a UNet or transformer)"
    widths = sorted({down.shape[1] for down, _ in layers.values()})
    listed = f"(widths {', '.join(map(str, widths))})"
    families = _families(layers) if all(component(path) == "transformer" for path in layers) else []
    return f"{' or '.join(families)} of unknown size {listed}" if families else f"unknown {listed}"


def possible(layers: Layers) -> list[str]:
    """Names of the bases that have every layer which tells a base; none if that is no base or every one."""
    names = _possible(layers)
    return [base.name for base in bases() if base.name in names] if len(names) < len(bases()) else []


def same(content: Layers, style: Layers, *, names: Sequence[str] = ("the first", "the second")) -> None:
    """Raise `UserError`, calling the adapters `names`, if no base model can have the layers of both."""
    ours, theirs = _possible(content), _possible(style)
    other = content and style and not set(_families(content)) & set(_families(style))
    if (ours != theirs and not ours & theirs) or (not ours and not theirs and other):
        found = (guess(content), guess(style))
        raise UserError(f"{names[0]} is for {found[0]}, {names[1]} for {found[1]}: merge adapters of one base model")


def fitting(candidates: Iterable[Base], layers: Layers) -> list[Base]:
    """Those of the candidates that have every layer which tells a base."""
    shapes = {
        path: (up.shape[0], down.shape[1]) for path, (down, up) in layers.items() if skeleton(path) in _skeletons()
    }
    return [base for base in candidates if all(base.layers.get(path) == shape for path, shape in shapes.items())]


def skeleton(path: str) -> str:
    """A path with # for its numbers."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", path)


def _possible(layers: Layers) -> set[str]:
    """Names of the bases that have every layer which tells a base; all of them if there is none."""
    return {base.name for base in fitting(bases(), layers)}


def _families(layers: Layers) -> list[str]:
    """The families that have layers of these names, whatever their shapes and numbers."""
    parts = {skeleton(path) for path in layers} & {one for family in _by_family().values() for one in family}
    return [family for family, known in _by_family().items() if parts <= known]


@cache
def _parts() -> frozenset[str]:
    """The first parts of the paths in all transformers."""
    return frozenset(
        path.partition(".")[0] for base in bases() if base.component == "transformer" for path in base.shapes
    )


@cache
def _skeletons() -> frozenset[str]:
    """The skeletons of the layers that tell a base."""
    return frozenset(skeleton(path) for base in bases() for path in base.layers)


@cache
def _by_family() -> dict[str, set[str]]:
    """Family -> the skeletons of all its layers."""
    found: dict[str, set[str]] = {}
    for base in bases():
        found.setdefault(base.family, set()).update(map(skeleton, base.shapes))
    return found
