"""Merges on the fly: the pictures are those of a merged file, nothing is kept, and a key has its own method's code."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lorarar.data.controls import CONTROLS
from lorarar.merging.registry import METHODS
from stages import generate, merge
from stages.shared import merging
from stages.shared.base_model import Model
from stages.shared.context import Context
from stages.shared.merging import Merge, SampleMerged, merge_of
from stages.shared.sample_task import Sample

ROOT = Path(__file__).parents[2]
CONTENT, STYLE = (str(ROOT / f"examples/pocket/{name}.safetensors") for name in ("dog8", "glowing"))
HYPERNET = ("lorarar.merging.hypernet:HyperNetwork.load", str(ROOT / "examples/pocket/hypernet.safetensors"))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the code of merging, in a folder where stages can run."""
    shutil.copytree(ROOT / "lorarar/merging", tmp_path / "lorarar/merging")
    for name in ("data", "dvc.yaml", "params.yaml", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    for path in (ROOT / "lorarar").iterdir():
        if path.name != "merging":
            (tmp_path / "lorarar" / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    merging._code.cache_clear()
    yield tmp_path
    merging._code.cache_clear()


@pytest.mark.parametrize("method", ["direct", "ties", "nplora", "lorarar", "klora", "core_ties"])
def test_pictures_are_those_of_a_merged_file_bit_for_bit(method: str, tmp_path: Path) -> None:
    trained = {"hypernet": HYPERNET} if method == "lorarar" else {}
    made = Merge(method, "dog8+glowing", CONTENT, STYLE, {}, trained, "", "")
    sample = Sample(Model(str(ROOT / "data/pocket/base"), "float32"), None, "a dog", [1, 2], {"steps": 2})
    made.adapter().save(tmp_path / "merged.safetensors")  # with all threads
    kept = replace(sample, adapter=str(tmp_path / "merged.safetensors"), schedule=METHODS[method].schedule)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as workers have
    try:
        for name, work in (("kept", kept), ("fly", SampleMerged(made, sample))):
            (tmp_path / name).mkdir()
            work.run(tmp_path / name)
    finally:
        torch.set_num_threads(threads)
    found = {path.name: path.read_bytes() for path in (tmp_path / "fly").iterdir()}
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}
    assert found.keys() == {"00.png", "01.png"}, "the merged file is gone"


def merges(context: Context) -> dict[str, Merge]:
    merging._code.cache_clear()
    return {method: merge_of(context, method, context.evaluated[0]) for method in METHODS}


def test_a_merge_changes_with_the_code_of_its_own_method_only(world: Path) -> None:
    context = Context.load()
    before = merges(context)

    def edited(module: str) -> set[str]:
        path = world / "lorarar/merging" / module
        whole = path.read_bytes()
        path.write_bytes(whole + b"# changed\n")
        after = merges(context)
        path.write_bytes(whole)
        return {method for method in METHODS if after[method] != before[method]}

    assert edited("registry.py") == set(), "where another method gets its row"
    assert edited("nplora.py") == {"nplora"}
    assert edited("hypernet.py") == {"lorarar"}, "whose network is read by it"
    assert {"klora", "est", "switch"} <= edited("klora.py") and "direct" not in edited("klora.py")
    assert edited("sparse.py") == {"dare", "ties", "dare_ties", "magnitude_prune"}
    assert merges(context) == before
    assert len({merge.function for merge in before.values()}) == len(METHODS) - 1, "concat is direct"


def test_a_method_from_elsewhere_depends_on_all_of_merging(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mine", replace(METHODS["direct"], function="elsewhere.mine:merge"))
    context = Context.load()
    before = merges(context)["mine"]
    (world / "lorarar/merging/linear.py").write_text("# changed")
    assert merges(context)["mine"] != before


def test_tasks_read_what_their_adapter_is_made_of_and_of_truths_the_world(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = {}

    def fan_out(self: Context, *groups: object) -> None:
        tasks.update({task.name: task for group in groups for task in group.tasks})
        raise SystemExit

    monkeypatch.setattr(Context, "fan_out", fan_out)
    with pytest.raises(SystemExit):
        generate.main(Context.load())
    reads = {
        method: [str(path).removeprefix("artifacts/pocket/") for path in tasks[f"{method}/test/dog8+glowing"].reads]
        for method in (*CONTROLS, "direct", "ziplora", "lorarar", "joint")
    }
    both = ["bank/dog8.safetensors", "bank/glowing.safetensors"]
    assert reads == {
        "base_only": [], "content_only": both[:1], "style_only": both[1:],
        "truth": ["data/pocket/world.yaml"], "truth_rendered": ["data/pocket/world.yaml"],
        "direct": both, "ziplora": [*both, "ziplora/dog8+glowing.safetensors"],
        "lorarar": [*both, "hypernet/hypernet.safetensors"], "joint": [*both, "joint/dog8+glowing.safetensors"],
    }  # fmt: skip
    assert tasks["lorarar/test/dog8+glowing"].work.sample.prompt == "A תת dog in glowing style"


def test_merged_files_are_kept_when_asked(world: Path) -> None:
    context = Context.load()
    bank = world / "artifacts/pocket/bank"
    bank.mkdir(parents=True)
    for path in (CONTENT, STYLE):
        shutil.copy(path, bank)
    evaluate = context.params.evaluate.model_copy(
        update={"methods": ["direct", "klora", "content_only"], "pairs": ["dog8+glowing"]}
    )
    for keep in (True, False):
        changed = context.params.model_copy(update={"evaluate": evaluate, "keep_merged": keep})
        merge.main(replace(context, params=changed))
        found = {str(path.relative_to(world / "artifacts/pocket/merge")) for path in world.rglob("merge/*/*")}
        names = {f"{method}/dog8+glowing.safetensors" for method in ("direct", "klora")}
        assert found - {"__pycache__"} == (names if keep else set())
