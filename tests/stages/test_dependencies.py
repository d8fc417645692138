"""dvc.yaml lists the code that each stage runs: no less, so that no old result is taken for new, and no more."""

from __future__ import annotations

import ast
import shutil
from functools import cache
from pathlib import Path

import pytest
import yaml

from stages.shared.context import Context, code_of

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
FRAME = ("slurm/", "stages/__init__.py", "stages/shared/__init__.py", "lorarar/__init__.py", "lorarar/version.py")
FRAME += tuple(f"stages/shared/{name}.py" for name in ("entry_point", "params", "schema"))
FRAME += tuple(f"stages/shared/{name}.py" for name in ("preflight", "integrity", "tracking"))
"""Code that decides whether and where a task runs, and not what it writes: it is in no stage's dependencies."""


@cache
def imports(path: str) -> frozenset[str]:
    """Modules of ours that a module imports, at its top or inside of functions, as paths."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import) and id(node) not in typing:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("lorarar."):
            names.add(node.value.partition(":")[0])  # tables name classes as `module:Class`
    found = set()
    for name in names:
        parts = name.split(".")
        found |= {"/".join(parts[:end]) + "/__init__.py" for end in range(1, len(parts) + 1)}
        found.add("/".join(parts) + ".py")
    return frozenset(name for name in found if (ROOT / name).is_file())


def closure(path: str) -> set[str]:
    """All code of ours that a script may run, without the frame."""
    seen, left = {path}, [path]
    while left:
        new = {name for name in imports(left.pop()) if not name.startswith(FRAME)} - seen
        seen |= new
        left += new
    return {name for name in seen if code(name)}


@cache
def code(path: str) -> bool:
    """False for a package's `__init__.py` that has nothing but a docstring."""
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def covers(dep: str, path: str) -> bool:
    return path == dep or path.startswith(f"{dep}/")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_it_runs_and_on_no_other(stage: str) -> None:
    deps, needed = [*code_of(stage)], closure(f"stages/{stage}.py")
    missing = sorted(path for path in needed if not any(covers(dep, path) for dep in deps))
    assert not missing, f"dvc.yaml: {stage} lacks {', '.join(missing)}"
    listed = [ROOT / dep for dep in deps]
    files = {str(path.relative_to(ROOT)) for dep in listed for path in (dep.rglob("*.py") if dep.is_dir() else [dep])}
    more = sorted(path for path in files - needed if code(path))
    assert not more, f"dvc.yaml: {stage} does not run {', '.join(more)}"


@pytest.mark.parametrize("stage", [stage for stage in STAGES if f'context.store("{stage}"' in
                                   (ROOT / f"stages/{stage}.py").read_text(encoding="utf-8")])  # fmt: skip
def test_one_byte_in_any_module_that_a_task_runs_changes_its_key(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lorarar", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.html"))
    for name in ("data", "params.yaml", "dvc.yaml", "slurm"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    context = Context.load()
    before, needed = context.store(stage).code, closure(f"stages/{stage}.py")
    for module in sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("lorarar/**/*.py")):
        path = tmp_path / module
        whole = path.read_bytes()
        path.write_bytes(whole + b"#")
        if code(module):
            assert (context.store(stage).code != before) == (module in needed), module
        path.write_bytes(whole)
    assert context.store(stage).code == before


def test_an_import_inside_of_a_function_counts() -> None:
    assert "lorarar/training/dreambooth.py" in closure("stages/bank.py"), "its task imports it when it runs"
    assert "lorarar/pictures.py" in closure("stages/bank.py") and "stages/shared/context.py" in closure(
        "stages/bank.py"
    )


def test_stages_that_merge_depend_on_every_method_that_the_table_names() -> None:
    methods = {str(path.relative_to(ROOT)) for path in ROOT.glob("lorarar/merging/*.py")}
    assert {path for path in methods if code(path)} <= closure("stages/merge.py")
