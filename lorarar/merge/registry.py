"""Every merging method, one row each. To add one, write its function beside this file and add its row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lorarar.adapter import Adapter
from lorarar.merge import linear, lorarar, ziplora


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes
    ----------
    exact
        Whether the result is one standard LoRA that equals the method's formula.
    needs
        What beyond two adapters it takes: nothing, a trained hypernetwork (keyword `hypernet`), or a base
        model and the reference images, from which its `optimise` finds the keyword `coefficients`.
    merge
        `(content, style, **options) -> Adapter`.
    """

    name: str
    title: str
    paper: str
    exact: bool
    needs: Literal["", "hypernet", "base+images"]
    merge: Callable[..., Adapter]


METHODS: dict[str, Method] = {
    method.name: method
    for method in [
        Method("direct", "Direct merge", "arXiv 2203.05482", True, "", linear.direct),
        Method("average", "Average", "arXiv 2203.05482", True, "", linear.average),
        Method("ziplora", "ZipLoRA", "arXiv 2311.13600", True, "base+images", ziplora.merge),
        Method("lorarar", "LoRA.rar", "arXiv 2412.05148", True, "hypernet", lorarar.merge),
    ]
}
