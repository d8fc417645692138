"""The whole chain in a very small configuration, in a folder of its own, and how to run commands there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
COPIED = [
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvcignore",
    ".gitignore",
    "data",
    "dvc.yaml",
    "lorarar",
    "requirements.lock",
    "slurm",
    "stages",
]
METHODS = ("direct", "ziplora", "lorarar", "truth")
SMALL: dict[str, dict[str, Any]] = {
    "bank": {
        "subjects": ["dog", "vase", "dog8"],
        "styles": ["sticker", "line_drawing", "glowing"],
        "rank": 2,
        "subject": {"learning_rate": 0.002, "steps": 3, "batch_size": 2},
        "style": {"learning_rate": 0.002, "steps": 3, "batch_size": 2},
    },
    "hypernet": {"steps": 4, "batch_size": 1},
    "ziplora": {"steps": 3, "batch_size": 1},
    "joint": {"steps": 3, "batch_size": 2},
    "generate": {"images_per_pair": 2, "steps": 4, "batch_size": 2},
    "score": {"resamples": 50, "judge_questions": 20},
}

Change = Callable[[dict[str, Any]], Any]


def make(folder: Path, methods: Sequence[str] = METHODS, executor: str = "inline") -> Path:
    """A copy of the repository with a very small configuration, in a git repository of its own."""
    for name in COPIED:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    shutil.copy(ROOT / "params.yaml", folder / "params.yaml")

    def shrink(params: dict[str, Any]) -> None:
        params["executor"] = executor  # also where there is a Slurm
        params["evaluate"] = {"methods": list(methods), "splits": ["test"], "pairs": "all", "scheme": "paper"}
        params["headline_method"] = methods[0]
        for section, values in SMALL.items():
            params["recipes"]["pocket"][section].update(values)

    change(folder, shrink)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    return folder


def change(folder: Path, edit: Change) -> None:
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    edit(params)
    path.write_text(yaml.safe_dump(params, sort_keys=False, allow_unicode=True), encoding="utf-8")


def environment() -> dict[str, str]:
    """Variables with this Python first on the path."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def call(folder: Path, *command: str) -> tuple[int, str]:
    """Exit status and all output of a command in the folder."""
    done = subprocess.run(
        command, cwd=folder, env=environment(), text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def succeed(folder: Path, *command: str) -> str:
    status, output = call(folder, *command)
    assert status == 0, output
    return output


def fail(folder: Path, expected: str, *command: str) -> None:
    """The command ends with one clear line."""
    status, output = call(folder, *command)
    assert status != 0, output
    assert "Traceback" not in output, output
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert expected in line, line


def content(folder: Path, pattern: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob(pattern) if path.is_file()}
