"""Every merging method, one row each. To add one, write its function in this folder and add its row.

Nothing here imports torch: a row names its function, which is imported when it first merges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal

from lorarar.errors import UserError

GROUP = "lorarar.methods"
"""The entry points of other packages' methods: each names a `Method` of the same name."""


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes
    ----------
    exact
        True if the result is one standard LoRA that equals the method's formula.
    needs
        Inputs beyond the adapters: none, a trained hypernetwork (keyword `hypernet`), or a base model and the
        reference images, from which `lorarar.training.ziplora.optimise` finds the keyword `coefficients` and
        `lorarar.training.joint.train` makes the keyword `adapter`.
    function
        `package.module:name` of `(content, style, **options) -> Adapter`, or `Schedule`; of `(*adapters, **options)`
        if the method takes many. All take `dtype`, that of the result. The adapter's layers may be lazy:
        `Adapter.computed` brings them into memory.
    options
        The options that a user may set, with their defaults: the keywords of the function that have one, except dtype.
    schedule
        True if the result is a `klora.Schedule`, which gives an adapter for each denoising step.
    invariant
        True if only the updates dW matter: factors (B G, G^-1 A) give the same result as (B, A).
    many
        True if the formula has a term for each of any number of adapters; False if it needs a content and a style.
    """

    name: str
    title: str
    paper: str
    exact: bool
    needs: Literal["", "hypernet", "base+images"]
    function: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    schedule: bool = False
    invariant: bool = True
    many: bool = False

    def require(self, count: int) -> None:
        """Raise `UserError` unless the method merges so many adapters."""
        if not self.many and count != 2:
            more = "`lorarar methods` tells which take many"
            raise UserError(f"method {self.name}: takes two adapters, a content and a style, not {count}; {more}")
        if count < 1:
            raise UserError(f"method {self.name}: no adapter is left to merge; give one, or a weight other than 0")

    def merge(self, *adapters: Any, **options: Any) -> Any:
        """Merge adapters by the method's function.

        Raises
        ------
        UserError
            Their number does not fit the method, or whatever the function raises.
        """
        self.require(len(adapters))
        module, _, name = self.function.partition(":")
        return getattr(import_module(module), name)(*adapters, **options)


WEIGHTS = {"weights": None}
ELECTION = {"density": 0.5, "weights": None, "majority": None, "seed": 0}
SPARSE = {"density": 0.5, "weights": None, "majority": None, "space": "factors", "rank": None, "seed": 0}
BLORA = {"content_blocks": ("up_blocks.0.attentions.0",), "style_blocks": ("up_blocks.0.attentions.1",)}
CRAFT = {
    "content_blocks": ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0.attentions.0"),
    "style_blocks": ("up_blocks.0.attentions.1", "up_blocks.1", "up_blocks.2", "up_blocks.3"),
}

METHODS: dict[str, Method] = {
    method.name: method
    for method in [
        Method(
            "direct", "Direct merge", "arXiv 2203.05482", True, "", "lorarar.merging.linear:direct", WEIGHTS, many=True
        ),
        Method(
            "average", "Average", "arXiv 2203.05482", True, "", "lorarar.merging.linear:average", WEIGHTS, many=True
        ),
        Method("concat", "Concatenation", "peft", True, "", "lorarar.merging.linear:direct", WEIGHTS, many=True),
        Method("svd", "SVD", "peft", False, "", "lorarar.merging.svd:merge", {"rank": None} | WEIGHTS, many=True),
        Method(
            "dare", "DARE", "arXiv 2311.03099", False, "", "lorarar.merging.sparse:dare", SPARSE,
            invariant=False, many=True,
        ),
        Method(
            "ties", "TIES", "arXiv 2306.01708", False, "", "lorarar.merging.sparse:ties", SPARSE,
            invariant=False, many=True,
        ),
        Method(
            "dare_ties", "DARE-TIES", "arXiv 2403.13257", False, "", "lorarar.merging.sparse:dare_ties", SPARSE,
            invariant=False, many=True,
        ),
        Method(
            "magnitude_prune", "Magnitude pruning", "peft", False, "", "lorarar.merging.sparse:magnitude_prune", SPARSE,
            invariant=False, many=True,
        ),
        Method("ziplora", "ZipLoRA", "arXiv 2311.13600", True, "base+images", "lorarar.merging.ziplora:merge"),
        Method(
            "lorarar", "LoRA.rar", "arXiv 2412.05148", True, "hypernet", "lorarar.merging.lorarar:merge",
            {"constants": None},
        ),
        Method(
            "klora", "K-LoRA", "arXiv 2502.18461", False, "", "lorarar.merging.klora:merge",
            {"alpha": 1.5, "beta": None, "variant": "s"}, schedule=True,
        ),
        Method(
            "nplora", "NP-LoRA", "arXiv 2511.11051", True, "", "lorarar.merging.nplora:merge",
            {"mu": 0.5, "hard": False},
        ),
        Method(
            "core_sum", "Core space: sum", "arXiv 2509.17786", True, "", "lorarar.merging.core:add", WEIGHTS, many=True
        ),
        Method(
            "core_ties", "Core space: TIES", "arXiv 2509.17786", True, "", "lorarar.merging.core:core_ties", ELECTION,
            many=True,
        ),
        Method(
            "core_dare", "Core space: DARE", "arXiv 2509.17786", True, "", "lorarar.merging.core:core_dare", ELECTION,
            many=True,
        ),
        Method(
            "core_dare_ties", "Core space: DARE-TIES", "arXiv 2509.17786", True, "",
            "lorarar.merging.core:core_dare_ties", ELECTION, many=True,
        ),
        Method(
            "knots_ties", "KnOTS-TIES", "arXiv 2410.19735", True, "", "lorarar.merging.core:knots_ties", ELECTION,
            many=True,
        ),
        Method("tsv", "TSV-Merge", "arXiv 2412.00081", True, "", "lorarar.merging.core:tsv", {"scale": 1.0}, many=True),
        Method("iso_c", "Iso-C", "arXiv 2502.04959", True, "", "lorarar.merging.core:iso", {"scale": 1.0}, many=True),
        Method(
            "balanced", "Norm-balanced sum", "this project", True, "", "lorarar.merging.linear:balanced",
            WEIGHTS | {"per": "total"}, many=True,
        ),
        Method(
            "balanced_layers", "Norm-balanced by layer", "this project", True, "",
            "lorarar.merging.linear:balanced_layers", WEIGHTS | {"per": "layer"}, many=True,
        ),
        Method(
            "est", "EST-LoRA", "arXiv 2508.02165", False, "", "lorarar.merging.schedules:est",
            {"alpha": 1.5, "discrepancy": 0.5, "balance": False}, schedule=True,
        ),
        Method(
            "switch", "LoRA Switch", "arXiv 2402.16843", False, "", "lorarar.merging.schedules:switch",
            {"period": 0.1}, schedule=True, many=True,
        ),
        Method(
            "split", "Step split", "arXiv 2502.18461", False, "", "lorarar.merging.schedules:split", {"share": 0.5},
            schedule=True,
        ),
        Method("blora_blocks", "Blocks of B-LoRA", "arXiv 2403.14572", True, "", "lorarar.merging.blocks:merge", BLORA),
        Method(
            "craft_blocks", "Blocks of CRAFT-LoRA", "arXiv 2602.18936", True, "", "lorarar.merging.blocks:craft", CRAFT
        ),
        Method(
            "klora_released", "K-LoRA as released", "HVision-NKU/K-LoRA", False, "", "lorarar.merging.klora:released",
            {"alpha": 1.5, "beta": 0.5, "largest": 64, "steps": 50}, schedule=True,
        ),
        Method("joint", "Joint training", "arXiv 2208.12242", True, "base+images", "lorarar.merging.joint:merge"),
    ]
}  # fmt: skip
"""The methods of this project, which the benchmark runs: its tasks depend on their code."""


def methods() -> dict[str, Method]:
    """Every merging method by its name, in the order of `lorarar methods`: this project's, then other packages'.

    Raises
    ------
    UserError
        A package's entry point cannot be loaded, is no `Method` of its name, or has a name that is taken.
    """
    found = dict(METHODS)
    for point in entry_points(group=GROUP):
        package = point.dist.name if point.dist else point.value
        source = f"method {point.name} of package {package}"
        if point.name in found:
            raise UserError(f"{source}: the name is taken already; uninstall the package, or rename its method")
        try:
            row = point.load()
        except Exception as error:  # another package's code
            raise UserError(
                f"{source}: {point.value} cannot be loaded ({error}); mend or uninstall the package"
            ) from None
        if not isinstance(row, Method) or row.name != point.name:
            raise UserError(f"{source}: {point.value} is no Method of that name; mend or uninstall the package")
        found[point.name] = row
    return found
