"""Makes a LoRA of the difference between two checkpoints, layer by layer, with the error that it costs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lorarar.errors import UserError
from lorarar.files import refuse_existing
from lorarar.lora import formats
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.checkpoint_file import Checkpoint
from lorarar.lora.factors import finite
from lorarar.merging import svd
from lorarar.resize import Change, Size, relative_error, save, worst


@dataclass
class Extracted:
    """A LoRA of a difference, and what the LoRA leaves out.

    Attributes
    ----------
    adapter
        Has `relative_error`, over the updates of its layers together, in its metadata.
    changes
        By the names in `Adapter.matrices`; the rank before is the smaller side of the matrix.
    equal
        The number of layers that do not differ.
    rest
        Biases, norms and other tensors that differ -> squared norm of the difference, which no LoRA holds.
    alone
        Names of tensors that only one checkpoint has.
    """

    adapter: Adapter
    changes: dict[str, Change]
    equal: int = 0
    rest: dict[str, float] = field(default_factory=dict)
    alone: list[str] = field(default_factory=list)


@torch.no_grad()
def extract(tuned: Checkpoint, base: Checkpoint, size: Size, dtype: torch.dtype) -> Extracted:
    """A LoRA of each linear layer and convolution that differs; a few layers are in memory at a time.

    Parameters
    ----------
    size
        A rank, or the share of each layer's update that stays.
    dtype
        The dtype of the factors; errors include its rounding.

    Raises
    ------
    UserError
        The checkpoints have no layer in common, or one of another shape, or none that differs, or hold NaN.
    """
    shared = [layer for layer in tuned.layers if layer in base.layers]
    if not shared:
        raise UserError(f"{tuned.path} and {base.path} have no layer in common; give checkpoints of one architecture")
    layers: dict[str, Factors] = {}
    others: dict[str, Factors] = {}
    changes: dict[str, Change] = {}
    for layer in shared:
        update = _difference(layer, tuned, base, tuned.weight(layer), base.weight(layer))
        if update is None:
            continue
        cut, changes[layer] = _cut(update.flatten(1), size, dtype)
        if update.ndim == 4:
            others[f"unet.{layer}"] = cut.convolution(update.shape[1:])
        else:
            (others if layer.startswith("text_encoder") else layers)[layer] = cut
    rest, alone = _others(tuned, base, shared)
    if not changes:
        held = f"; only {len(rest)} biases, norms or other tensors differ, such as {next(iter(rest))}" if rest else ""
        raise UserError(f"{tuned.path} and {base.path} have equal layers{held}: there is no LoRA to extract")
    metadata = {"relative_error": f"{relative_error(changes):.6g}"}
    adapter = Adapter(layers, metadata, others)
    return Extracted(adapter, changes, len(shared) - len(changes), rest, alone)


def extract_files(
    tuned: Path, base: Path, out: Path, size: Size, *, format: str | None = None, dtype: str | None = None,
    force: bool = False,
) -> list[str]:  # fmt: skip
    """Write a LoRA of the difference between two checkpoints; its metadata has the error.

    Parameters
    ----------
    tuned, base
        Files or folders, as `Checkpoint.open` reads them.
    format
        A key of `formats.WRITERS`; None is diffusers'.
    dtype
        A key of `formats.DTYPES`; None is that of the tuned checkpoint, or fp16 if it has fewer bits.

    Returns
    -------
    list of str
        Notes for the user; the last says who opens the file.

    Raises
    ------
    UserError
        As `extract`, or a checkpoint cannot be read, or `out` exists and `force` is not given.
    """
    after, before = Checkpoint.open(tuned), Checkpoint.open(base)
    sources = [*after.metadata, *before.metadata]
    refuse_existing(out, force, *sources)
    kind = after.tensors[next(iter(after.layers.values())).tensor].dtype
    kind = formats.DTYPES[dtype] if dtype else kind if kind in formats.DTYPES.values() else torch.float16
    found = extract(after, before, size, kind)
    found.adapter.metadata |= {
        "lorarar.extracted_from": json.dumps({"tuned": after.path.name, "base": before.path.name}, sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": out.stem,
    }
    opened = save(found.adapter, out, format or "diffusers", force, *sources)
    notes = worst(found.changes)
    if found.equal:
        notes.append(f"{found.equal} layers are equal in both checkpoints and left out")
    if found.rest:
        held, whole = sum(found.rest.values()), sum(change.whole for change in found.changes.values())
        names = sorted(found.rest, key=lambda name: -found.rest[name])
        notes.append(
            f"a LoRA has no place for biases, norms and embeddings: {len(names)} differ, with "
            f"{held / (held + whole):.3g} of the squared difference, such as {', '.join(names[:3])}"
        )
    if found.alone:
        notes.append(f"{len(found.alone)} tensors are in one checkpoint only, not compared, such as {found.alone[0]}")
    return [*notes, opened]


def _cut(update: Tensor, size: Size, dtype: torch.dtype) -> tuple[Factors, Change]:
    """The factors of dW (m_out, n_in) in a dtype, and what they lose of it as they are stored."""
    full = min(update.shape)
    if size.rank is None:
        wide = (update if len(update) <= update.shape[1] else update.T).double()
        # Squared singular values, by the smaller side's Gram matrix: an SVD of the whole takes several times longer.
        squares = torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).flip(0)
        rank = size.ranks({"": squares.sqrt()})[""]
    else:
        rank = min(size.rank, full)
    factors = svd.truncate(update, rank).factors.to(dtype)
    lost = (update.double() - factors.up.double() @ factors.down.double()).square().sum()
    return factors, Change(full, rank, float(lost), float(update.double().square().sum()))


def _difference(name: str, tuned: Checkpoint, base: Checkpoint, after: Tensor, before: Tensor) -> Tensor | None:
    """tuned - base in float32, None if there is none."""
    if after.shape != before.shape:
        raise UserError(
            f"{name} is {tuple(after.shape)} in {tuned.path} and {tuple(before.shape)} in {base.path}; "
            "give checkpoints of one architecture"
        )
    difference = after.float() - before.float()
    if not finite(difference):
        raise UserError(f"{name} holds NaN or infinity in {tuned.path} or {base.path}; take other checkpoints")
    return difference if difference.any() else None


def _others(tuned: Checkpoint, base: Checkpoint, shared: list[str]) -> tuple[dict[str, float], list[str]]:
    """Tensors that belong to no shared layer: the squared differences of those in both, and names of all others."""
    covered = {one.layers[layer].tensor for one in (tuned, base) for layer in shared}
    rest, alone = {}, sorted((tuned.tensors.keys() ^ base.tensors.keys()) - covered)
    for name in sorted((tuned.tensors.keys() & base.tensors.keys()) - covered):
        difference = _difference(name, tuned, base, tuned.tensors[name].read(), base.tensors[name].read())
        if difference is not None:
            rest[name] = float(difference.double().square().sum())
    return rest, alone
