"""Merger coefficients of whole splits, as in the paper's Figures 3 and 8: they show how a method differs from a sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lorarar.merging.columns import Coefficients
from lorarar.report.tables import Provenance, Table
from lorarar.tables import title

PROJECTIONS = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "output"}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Values = npt.NDArray[np.float32]
"""(pairs, 2, columns): m_c and m_s of every pair."""


@dataclass(frozen=True)
class Layer:
    """Place of a layer: its block, such as `down_blocks.0`, and its projection."""

    block: str
    projection: str

    @classmethod
    def of(cls, path: str) -> Layer:
        """The place that the path of a module of diffusers' UNet names."""
        block = ".".join(path.split(".")[: 1 if path.startswith("mid_block") else 2])
        projection = next((name for name in PROJECTIONS if path.endswith(f".{name}")), path.rpartition(".")[2])
        return cls(block, projection)


@dataclass(frozen=True)
class Fitted:
    """Coefficients of one method.

    Attributes
    ----------
    pairs : names of the pairs, in the order of the values.
    layers : path -> values, for the layers that have coefficients.
    """

    method: str
    pairs: Sequence[str]
    layers: Mapping[str, Values]

    @classmethod
    def stack(cls, method: str, by_pair: Mapping[str, Coefficients]) -> Fitted:
        """Stacks the coefficients of each pair."""
        paths = next(iter(by_pair.values()))
        layers = {
            path: np.array([[m.detach().float().numpy() for m in found[path]] for found in by_pair.values()])
            for path in paths
        }
        return cls(method, list(by_pair), layers)

    def where(self, block: str | None = None, projection: str | None = None) -> Values:
        """Values of the layers of a block, of a projection, or of all; no columns if there are no such layers."""
        kept = [
            values
            for path, values in self.layers.items()
            if block in (None, Layer.of(path).block) and projection in (None, Layer.of(path).projection)
        ]
        return np.concatenate([np.empty((len(self.pairs), 2, 0), np.float32), *kept], axis=2)

    @property
    def blocks(self) -> list[str]:
        return list(dict.fromkeys(Layer.of(path).block for path in self.layers))

    @property
    def projections(self) -> list[str]:
        found = {Layer.of(path).projection for path in self.layers}
        return [name for name in PROJECTIONS if name in found]


def table(fitted: Sequence[Fitted], split: str, provenance: Provenance) -> Table:
    """Quantiles of m_c and m_s by method and projection, and their variation over columns and over pairs."""
    rows = []
    for method in fitted:
        for projection in (None, *method.projections):
            values = method.where(projection=projection)
            row = [title(method.method), PROJECTIONS[projection] if projection else "all", f"{values.shape[2]:,}"]
            for side in (0, 1):
                low, _, middle, _, high = np.quantile(values[:, side], QUANTILES)
                row.append(f"{middle:.3f} [{low:.3f}, {high:.3f}]")
            for side in (0, 1):
                # Mean over columns of the deviation between pairs: 0 if every pair gets the same coefficients.
                row.append(f"{values[:, side].std(axis=0).mean():.4f}")
            row.append(f"{(values < 0.05).mean():.1%}")
            rows.append(row)
    header = [
        "", "projection", "columns", "m_c median [5%, 95%]", "m_s median [5%, 95%]", "m_c between pairs",
        "m_s between pairs", "below 0.05",
    ]  # fmt: skip
    pairs = len(fitted[0].pairs)
    notes = [
        f"Coefficients of {pairs} pairs; what has none is merged by constants. Brackets are quantiles over columns and "
        "pairs, no intervals of an estimate. *Between pairs*: standard deviation over pairs, mean over columns; 0 is "
        "a method that merges all pairs alike. *Below 0.05*: columns of one of the two that are as good as left out.",
    ]
    return Table(f"Merger coefficients on the split {split}", header, rows, notes, str(provenance))


def by_block(fitted: Fitted) -> list[tuple[str, str, npt.NDArray[Any]]]:
    """(block, projection, (2, 5) `QUANTILES` of m_c and m_s) in the order of the UNet."""
    found = []
    for block in fitted.blocks:
        for projection in fitted.projections:
            values = fitted.where(block, projection)
            if values.size:
                found.append((block, projection, np.quantile(values, QUANTILES, axis=(0, 2)).T))
    return found
