"""Every merging method, one row each. To add one, write its function in this folder and add its row."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lorarar.merging import blocks, core, joint, klora, linear, lorarar, nplora, schedules, svd, ziplora
from lorarar.merging.sparse import Sparse


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes
    ----------
    exact
        True if the result is one standard LoRA that equals the method's formula.
    needs
        Inputs beyond two adapters: none, a trained hypernetwork (keyword `hypernet`), or a base model and the
        reference images, from which `lorarar.training.ziplora.optimise` finds the keyword `coefficients` and
        `lorarar.training.joint.train` makes the keyword `adapter`.
    merge
        `(content, style, **options) -> Adapter`, or `Schedule`. All take `dtype`, that of the result. The adapter's
        layers may be lazy: `Adapter.computed` brings them into memory.
    schedule
        True if the result is a `klora.Schedule`, which gives an adapter for each denoising step.
    invariant
        True if only the updates dW matter: factors (B G, G^-1 A) give the same result as (B, A).
    """

    name: str
    title: str
    paper: str
    exact: bool
    needs: Literal["", "hypernet", "base+images"]
    merge: Callable[..., Any]
    schedule: bool = False
    invariant: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """The options that a user may set, with their defaults: the keywords of `merge` that have one, except dtype."""
        parameters = inspect.signature(self.merge).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "dtype"}


METHODS: dict[str, Method] = {
    method.name: method
    for method in [
        Method("direct", "Direct merge", "arXiv 2203.05482", True, "", linear.direct),
        Method("average", "Average", "arXiv 2203.05482", True, "", linear.average),
        Method("concat", "Concatenation", "peft", True, "", linear.direct),
        Method("svd", "SVD", "peft", False, "", svd.merge),
        Method("dare", "DARE", "arXiv 2311.03099", False, "", Sparse("random", elects=False), invariant=False),
        Method("ties", "TIES", "arXiv 2306.01708", False, "", Sparse("smallest", elects=True), invariant=False),
        Method("dare_ties", "DARE-TIES", "arXiv 2403.13257", False, "", Sparse("random", elects=True), invariant=False),
        Method(
            "magnitude_prune", "Magnitude pruning", "peft", False, "", Sparse("smallest", elects=False), invariant=False
        ),
        Method("ziplora", "ZipLoRA", "arXiv 2311.13600", True, "base+images", ziplora.merge),
        Method("lorarar", "LoRA.rar", "arXiv 2412.05148", True, "hypernet", lorarar.merge),
        Method("klora", "K-LoRA", "arXiv 2502.18461", False, "", klora.merge, schedule=True),
        Method("nplora", "NP-LoRA", "arXiv 2511.11051", True, "", nplora.merge),
        Method("core_sum", "Core space: sum", "arXiv 2509.17786", True, "", core.add),
        Method("core_ties", "Core space: TIES", "arXiv 2509.17786", True, "", core.Sparse("smallest", True, "core")),
        Method("core_dare", "Core space: DARE", "arXiv 2509.17786", True, "", core.Sparse("random", False, "core")),
        Method(
            "core_dare_ties", "Core space: DARE-TIES", "arXiv 2509.17786", True, "", core.Sparse("random", True, "core")
        ),
        Method("knots_ties", "KnOTS-TIES", "arXiv 2410.19735", True, "", core.Sparse("smallest", True, "knots")),
        Method("tsv", "TSV-Merge", "arXiv 2412.00081", True, "", core.tsv),
        Method("iso_c", "Iso-C", "arXiv 2502.04959", True, "", core.iso),
        Method("balanced", "Norm-balanced sum", "this project", True, "", linear.balanced),
        Method("balanced_layers", "Norm-balanced by layer", "this project", True, "", linear.balanced_layers),
        Method("est", "EST-LoRA", "arXiv 2508.02165", False, "", schedules.est, schedule=True),
        Method("switch", "LoRA Switch", "arXiv 2402.16843", False, "", schedules.switch, schedule=True),
        Method("split", "Step split", "arXiv 2502.18461", False, "", schedules.split, schedule=True),
        Method("blora_blocks", "Blocks of B-LoRA", "arXiv 2403.14572", True, "", blocks.merge),
        Method("craft_blocks", "Blocks of CRAFT-LoRA", "arXiv 2602.18936", True, "", blocks.craft),
        Method("klora_released", "K-LoRA as released", "HVision-NKU/K-LoRA", False, "", klora.released, schedule=True),
        Method("joint", "Joint training", "arXiv 2208.12242", True, "base+images", joint.merge),
    ]
}


def methods() -> dict[str, Method]:
    """Every merging method by its name, in the order of `lorarar methods`."""
    return dict(METHODS)
