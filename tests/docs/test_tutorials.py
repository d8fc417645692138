"""The commands of the tutorials do what the pages say. A comment in the page marks those that are not run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "docs/tutorials"
CHANGED = ("lorarar", "tests", "slurm", "stages", "params.yaml")
"""What a tutorial may change, or the code that finds the clone by its own place: copied, all else is linked."""
BLOCK = re.compile(
    r"^(?:<!-- (?:not tested: (?P<reason>[^\n]+?)|ends with (?P<status>\d+)) -->\n)?"
    r"```(?P<kind>\w+)(?: title=\"(?P<file>[^\n]+?)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Command:
    """A line after `$`, the lines that it prints, in which `...` stands for anything, and its exit status."""

    words: str
    prints: str
    status: int


def blocks(page: Path) -> Iterator[re.Match[str]]:
    yield from BLOCK.finditer(page.read_text(encoding="utf-8"))


def commands(block: re.Match[str]) -> Iterator[Command]:
    for part in re.split(r"^\$ ", block["text"], flags=re.MULTILINE)[1:]:
        words, _, prints = part.partition("\n")
        yield Command(words, prints, int(block["status"] or 0))


def matches(said: str, prints: str) -> bool:
    """Tell whether a command said what the page shows; where the page shows nothing, anything will do."""
    pattern = ".*".join(map(re.escape, prints.strip().split("...")))
    return not prints or re.fullmatch(pattern, said.strip(), re.DOTALL) is not None


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of this checkout, without what was computed in it."""
    kept = [
        entry for entry in ROOT.iterdir() if not entry.name.startswith(".") and entry.name not in ("site", "artifacts")
    ]
    for entry in kept:
        if entry.name not in CHANGED:
            (tmp_path / entry.name).symlink_to(entry)
        elif entry.is_dir():
            shutil.copytree(entry, tmp_path / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(entry, tmp_path)
    return tmp_path


def run(command: Command, clone: Path) -> None:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    alone = {"PATH": tools, "PYTHONPATH": str(clone), "HF_HUB_OFFLINE": "1", "HF_HOME": str(clone / "huggingface")}
    done = subprocess.run(
        ["bash", "-c", command.words],
        cwd=clone,
        env={**{key: value for key, value in os.environ.items() if key != "LORARAR_WORK"}, **alone},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == command.status, f"{command.words}\n{done.stdout}"
    assert matches(done.stdout, command.prints), f"{command.words}\n{done.stdout}"


def edit(block: re.Match[str], clone: Path) -> None:
    """Do as a reader does with a block that names a file: write it, or add its lines with a plus."""
    path = clone / block["file"]
    if block["kind"] == "python":
        path.write_text(block["text"], encoding="utf-8")
    else:
        lines = block["text"].splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        text = path.read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{block['file']} has not exactly one place like\n{before}"
        path.write_text(text.replace(before, "".join(line[1:] for line in lines if line[0] != "-")), encoding="utf-8")


@pytest.mark.parametrize("page", sorted(TUTORIALS.glob("*.md")), ids=lambda page: page.stem)
def test_the_commands_do_what_the_page_says(page: Path, clone: Path) -> None:
    ran = 0
    for block in blocks(page):
        if block["file"]:
            edit(block, clone)
        elif block["kind"] == "console" and not block["reason"]:
            for command in commands(block):
                run(command, clone)
                ran += 1
    assert ran, "a tutorial has commands"


@pytest.mark.parametrize("page", sorted(TUTORIALS.glob("*.md")), ids=lambda page: page.stem)
def test_every_block_is_read_and_only_the_costly_are_left_out(page: Path) -> None:
    found = list(blocks(page))
    assert len(found) * 2 == len(re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert all(block["kind"] == "console" or block["file"] for block in found)
    assert all(block["text"].startswith("$ ") for block in found if block["kind"] == "console")
    reasons = {block["reason"] for block in found if block["reason"]}
    assert not reasons or page.stem != "merge-two-files"
    assert all(reason.startswith(("needs ", "downloads ", "takes ")) for reason in reasons)


@pytest.mark.parametrize(
    "said, prints, good",
    [
        ("a: 1.1 MB in 0.1 s\n", "a: ...\n", True),
        ("a: 1 MB\nb\n", "a: ...\nb\n", True),
        ("a\n", "b\n", False),
        ("a\nmore\n", "a\n", False),
        ("anything", "", True),
    ],
)
def test_dots_stand_for_anything_and_nothing_else_does(said: str, prints: str, good: bool) -> None:
    assert matches(said, prints) is good
