"""Imports point down in one order of packages, and no module imports itself by way of others."""

from __future__ import annotations

import ast
import graphlib
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    [
        "lorarar.version",
        "lorarar.errors",
        "lorarar.files",
        "lorarar.randomness",
        "lorarar.parallel",
        "lorarar.device",
        "lorarar.pictures",
    ],
    ["lorarar.lora"],
    ["lorarar.merging"],
    ["lorarar.data"],
    ["lorarar.diffusion"],
    ["lorarar.training"],
    ["lorarar.scoring"],
    ["lorarar.pocket.world"],
    ["lorarar.pocket.recogniser", "lorarar.pocket.quality"],
    ["lorarar.pocket"],  # its trainings
    ["lorarar.tables", "lorarar.web"],
    ["lorarar.study"],
    ["lorarar.report"],
    ["lorarar.describe"],
    ["lorarar.shipped", "lorarar.contents", "lorarar.recipe", "lorarar.resize", "lorarar.extract", "lorarar.bake"],
    ["lorarar.api"],
    ["lorarar.preview"],
    ["lorarar.app", "lorarar.sweep"],
    ["lorarar.cli"],
    ["slurm"],
    ["stages.shared"],
    ["stages"],
    ["experiments"],
]
"""Packages, lowest first: each imports only lower ones, and `lorarar` and `slurm` do not know each other."""
FACADE = "lorarar"
CORE = {"torch", "numpy", "safetensors"}
"""Libraries that `lorarar.lora` and `lorarar.merging` may import."""


@cache
def modules() -> dict[str, set[str]]:
    """Every module here -> the modules that it imports, also in functions and for type checking."""
    files = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in ("lorarar", "slurm", "stages", "experiments")
        for path in (ROOT / package).rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= full & files.keys() or {node.module}
        found[module] = names - {module}
    return found


def layer(module: str) -> int:
    places = [place for place, names in enumerate(LAYERS) for name in names if f"{module}.".startswith(f"{name}.")]
    return places[0] if places else -1


def arrows() -> list[tuple[str, str]]:
    """Imports between modules; the package's own names, for its users, are made of all layers and stand above them."""
    known = modules().keys() - {FACADE}
    return [(module, other) for module in known for other in modules()[module] if other in modules()]


def test_every_module_has_a_layer() -> None:
    assert [module for module in modules() if layer(module) < 0 and "." in module] == []


def test_imports_point_down() -> None:
    up = [f"{module} -> {other}" for module, other in arrows() if layer(module) < layer(other)]
    scripts = [f"{a} -> {b}" for a, b in arrows() if a != b and layer(a) == layer(b) == LAYERS.index(["stages"])]
    across = [f"{a} -> {b}" for a, b in arrows() if a.startswith("slurm") and b.partition(".")[0] == "lorarar"]
    assert up + scripts + across == []


def test_there_is_no_circle() -> None:
    try:
        graphlib.TopologicalSorter(modules()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_lora_files_and_merging_need_little() -> None:
    known = {*sys.stdlib_module_names, *CORE, "lorarar"}
    more = {
        f"{module} -> {other}"
        for module, others in modules().items()
        for other in others
        if module.startswith(("lorarar.lora", "lorarar.merging")) and other.partition(".")[0] not in known
    }
    assert more == set()
