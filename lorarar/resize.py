"""Makes a LoRA smaller: each layer's best approximation of a lower rank, with the error that it costs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lorarar import describe
from lorarar.errors import UserError
from lorarar.files import refuse_existing, sha256
from lorarar.lora import base_models, formats
from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging import svd
from lorarar.parallel import map_layers
from lorarar.version import __version__

SHOWN = 5
"""Layers that a note lists."""


@dataclass(frozen=True)
class Size:
    """The rank that each layer gets: a number, or the smallest that keeps a share of the update.

    Attributes
    ----------
    rank
        The rank of every layer that has a larger one.
    energy
        The share of |dW|^2, Frobenius, that stays, in (0, 1]. Give either this or `rank`.
    per
        "layer": each layer keeps the share. "all": the layers keep it together, by one threshold for all singular
        values, so that a layer of small ones keeps few, or none.
    max_rank
        The largest rank that `energy` may choose; where it acts, less than the share stays.

    Raises
    ------
    UserError
        An option is out of range, or two exclude each other.
    """

    rank: int | None = None
    energy: float | None = None
    per: str = "layer"
    max_rank: int | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise UserError("--rank and --energy: give one of them")
        for option, number in (("--rank", self.rank), ("--max-rank", self.max_rank)):
            if number is not None and number < 1:
                raise UserError(f"{option} {number}: give a whole number of at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UserError(f"--energy {self.energy}: give a share above 0 and at most 1, such as 0.95")
        if self.per not in ("layer", "all"):
            raise UserError(f"--per {self.per}: choose one of layer, all")
        if self.rank is not None and (self.per, self.max_rank) != ("layer", None):
            raise UserError("--per and --max-rank: they go with --energy; leave them out, or give it for --rank")

    def ranks(self, spectra: Mapping[str, Tensor]) -> dict[str, int]:
        """The rank of each layer by its singular values (k,), largest first."""
        if self.rank is not None:
            return {name: min(self.rank, len(sigma)) for name, sigma in spectra.items()}
        assert self.energy is not None
        squares = {name: sigma.double().square() for name, sigma in spectra.items()}
        if self.per == "layer":
            ranks = {name: _needed(values, self.energy) for name, values in squares.items()}
        else:
            every = torch.cat([*squares.values()]).sort(descending=True).values
            needed = _needed(every, self.energy)
            least = every[needed - 1] if needed else math.inf
            ranks = {name: int((values >= least).sum()) for name, values in squares.items()}
        return {name: min(rank, self.max_rank or rank) for name, rank in ranks.items()}


class Change(NamedTuple):
    """A layer before and after, with squared Frobenius norms of its update."""

    before: int  # rank
    after: int
    lost: float  # of the difference between the update and the stored factors
    whole: float  # of the update

    @property
    def error(self) -> float:
        """|dW - dW'| / |dW|, 0 for an update of zeros."""
        return math.sqrt(self.lost / (self.whole or 1.0))


@torch.no_grad()
def resize(adapter: Adapter, size: Size, dtype: torch.dtype) -> tuple[Adapter, dict[str, Change]]:
    """The best approximation of each layer at a lower rank; no update is formed in full.

    Layers that are no larger than wanted keep their factors. A layer that keeps no rank is left out.

    Parameters
    ----------
    dtype
        The dtype of the result; errors include its rounding.

    Returns
    -------
    adapter
        Has `relative_error`, over all layers together, in its metadata.
    changes
        By the names in `Adapter.matrices`.

    Raises
    ------
    UserError
        No layer keeps any rank.
    """
    matrices = adapter.matrices
    spectra = dict(zip(matrices, map_layers(_spectrum, zip(matrices.values(), strict=True)), strict=True))
    ranks = size.ranks(spectra)

    def cut(name: str, factors: Factors) -> tuple[Factors, Change]:
        rank, kept = ranks[name], factors
        if rank < factors.rank:
            u, sigma, vh = svd.decompose(factors.to(torch.float64))
            root = sigma[:rank].sqrt()  # on both sides, so that half precision holds either factor
            kept = Factors(root[:, None] * vh[:rank], u[:, :rank] * root)
        kept = kept.to(dtype)
        whole = float(spectra[name].square().sum())
        return kept, Change(factors.rank, rank, distance(factors, kept) ** 2, whole)

    found = dict(zip(matrices, map_layers(cut, matrices.items()), strict=True))
    kept = {name: factors for name, (factors, _) in found.items() if factors.rank}
    if not kept:
        raise UserError("every update is zero: nothing would be left; give a LoRA that changes something")
    changes = {name: change for name, (_, change) in found.items()}
    metadata = {**adapter.metadata, "relative_error": f"{relative_error(changes):.6g}"}
    return Adapter.from_matrices(kept, adapter, metadata=metadata, format=adapter.format), changes


def relative_error(changes: Mapping[str, Change]) -> float:
    """|dW - dW'| / |dW| of all layers together, Frobenius."""
    lost, whole = (math.fsum(getattr(change, part) for change in changes.values()) for part in ("lost", "whole"))
    return math.sqrt(lost / (whole or 1.0))


def distance(first: Factors, second: Factors) -> float:
    """Frobenius norm of the difference of two updates (m_out, n_in), formed of neither, to a share of 1e-15 of them."""
    if first.down is second.down and first.up is second.up:
        return 0.0
    up = torch.cat([first.up.double(), -second.up.double()], 1)
    return float(_core(Factors(torch.cat([first.down.double(), second.down.double()]), up)).norm())


def resize_file(
    file: Path, out: Path, size: Size, *, format: str | None = None, dtype: str | None = None, force: bool = False
) -> list[str]:
    """Write a smaller LoRA file; its metadata has the error, and the source's checksum.

    Parameters
    ----------
    format, dtype
        Keys of `formats.WRITERS` and `formats.DTYPES`; None is the source's own.

    Returns
    -------
    list of str
        Notes for the user; the last says who opens the file.

    Raises
    ------
    UserError
        The file is no LoRA, `out` exists and `force` is not given, or an option is out of range.
    """
    file = formats.locate(file)
    refuse_existing(out, force, file)
    adapter = Adapter.load(file)
    adapter.check(str(file))
    kind = formats.DTYPES[dtype] if dtype else next(iter({**adapter.layers, **adapter.others}.values())).down.dtype
    try:
        resized, changes = resize(adapter, size, kind)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    resized.metadata["lorarar.resized_from"] = json.dumps({"file": file.name, "sha256": sha256(file)}, sort_keys=True)
    opened = save(resized, out, format or adapter.format, force, file, *formats.sidecars(file, adapter.format))
    ratio = out.stat().st_size / file.stat().st_size
    notes = [*filter(None, [adapter.note]), *worst(changes), f"{ratio:.0%} of the size of {file.name}"]
    if gone := [name for name, change in changes.items() if change.after == 0]:
        notes.append(f"{len(gone)} layers are left out, as no rank of theirs is needed, such as {gone[0]}")
    if all(change.after == change.before for change in changes.values()):
        notes.append("no layer has a larger rank than wanted: none is cut")
    return [*notes, opened]


def save(adapter: Adapter, out: Path, format: str, force: bool, *sources: Path) -> str:
    """Write a LoRA whose factors are new, with what other programs read of its base and rank; says who opens it.

    Raises `UserError` if a file would be replaced without `force`, or one of the `sources`.
    """
    for path in formats.sidecars(out, format):
        refuse_existing(path, force, *sources)
    base = describe.claimed(adapter.metadata) or next(
        (name for name in base_models.possible(adapter.layers) if name in describe.BASES), None
    )
    adapter.metadata = describe.converted(adapter.metadata, base, max(adapter.all_ranks))
    adapter.metadata["lorarar.version"] = __version__
    adapter.save(out, format=format)
    return f"opens in {formats.opened_by(format, base)}: {format} format"


def worst(changes: Mapping[str, Change]) -> list[str]:
    """Notes on the whole and on the layers with the largest relative errors."""
    before, after = ([getattr(change, part) for change in changes.values()] for part in ("before", "after"))
    notes = [
        f"{len(changes)} layers: rank {_range(before)} before, {_range(after)} after; "
        f"relative error {relative_error(changes):.3g}"
    ]
    for name, change in sorted(changes.items(), key=lambda item: -item[1].error)[:SHOWN]:
        notes.append(f"  {name}: rank {change.before} before, {change.after} after; relative error {change.error:.3g}")
    return notes


def _range(ranks: list[int]) -> str:
    return f"{min(ranks)} to {max(ranks)}" if len(set(ranks)) > 1 else str(ranks[0])


def _needed(squares: Tensor, share: float) -> int:
    """How many of the squares (k,), largest first, hold this share of their sum; 0 if it is zero."""
    sums = squares.cumsum(0)
    if not sums.numel() or sums[-1] == 0:
        return 0
    # A hair less, so that rounding of the sum does not ask for directions that hold nothing.
    return int((sums < share * sums[-1] * (1 - 1e-12)).sum()) + 1


def _core(factors: Factors) -> Tensor:
    """A matrix of at most r x r with the singular values of up @ down."""
    up, down = (torch.linalg.qr(factor.double(), mode="r").R for factor in (factors.up, factors.down.T))
    return up @ down.T


def _spectrum(factors: Factors) -> Tensor:
    """Singular values of up @ down, largest first, in float64."""
    return torch.linalg.svdvals(_core(factors)) if factors.rank else torch.zeros(0, dtype=torch.float64)
