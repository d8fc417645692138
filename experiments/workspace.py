"""A clone of the repository in which settings run one after the other, beside the tree that is being worked on.

It shares DVC's cache, and begins with links to the finished tasks, so that only what a setting changes is computed.
Each setting becomes an experiment of DVC, of the commit that is checked out: `dvc exp show` lists them all.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

from experiments.experiment import Experiment, Setting, hydra
from lorarar.errors import UserError
from lorarar.files import write_json
from lorarar.scoring import score_table

FOLDER = Path(".work/experiments")
CODE = ("data", "dvc.yaml", "lorarar", "params.yaml", "slurm", "stages")
"""What results depend on."""


def commit() -> str:
    """The commit that is checked out.

    Raises
    ------
    UserError : what results depend on differs from it: they would name a commit that does not make them.
    """
    edited = _output("git", "status", "--porcelain", "--", *CODE)
    if edited:
        name = edited.splitlines()[0].split(maxsplit=1)[1]
        raise UserError(f"{name}: differs from the last commit, which is what runs; commit it first")
    return _output("git", "rev-parse", "HEAD")


def key(experiment: Experiment, setting: Setting, commit: str) -> str:
    """Name of a setting's record: its parameters, what is evaluated, and the code, wherever that is committed."""
    code = [_output("git", "rev-parse", f"{commit}:{path}") for path in CODE if path != "params.yaml"]
    return hashlib.sha256(json.dumps([setting.digest, experiment.base, code]).encode()).hexdigest()[:24]


def record(experiment: Experiment, setting: Setting, commit: str) -> dict[str, Any] | None:
    """What `run` wrote about a setting, or None."""
    path = _record(experiment, setting, commit)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def run(experiment: Experiment, setting: Setting, commit: str) -> dict[str, Any]:
    """Run a setting and keep its figures.

    Raises
    ------
    UserError : a stage failed; it has said why.
    """
    tree = _prepare(commit)
    revision = experiment.revision(setting, commit)
    where = f"refs/exps/{commit[:2]}/{commit[2:]}/{revision}"
    _output("git", "-C", str(tree), "update-ref", "-d", where)  # of an attempt whose record is lost
    changes = [f"-S{key}={hydra(value)}" for key, value in experiment.overrides(setting).items()]
    started = time.time()
    # The clone's own packages, whatever the tree beside it holds by now.
    environment = {**_environment(), "PYTHONPATH": str(tree)}
    command = ["dvc", "exp", "run", "--name", revision, *changes, *experiment.targets]
    if subprocess.run(command, cwd=tree, env=environment).returncode:
        raise UserError(f"{experiment.name}: {setting.label}: failed, see above; the same command goes on from there")
    figures = {}
    for method in experiment.methods:
        for split in experiment.splits:
            name = f"{method}-{split}"
            text = (tree / "results" / experiment.base / "metrics" / f"{name}.json").read_text(encoding="utf-8")
            scores = tree / "artifacts" / experiment.base / "score" / f"{name}.parquet"
            rows_of = score_table.by_pair(score_table.read(scores))
            right = {"+".join(pair): [row.right for row in rows] for pair, rows in rows_of.items()}
            figures[name] = {**json.loads(text), "right": right}
    _output("git", "fetch", "--quiet", str(tree), f"+{where}:{where}")
    facts = {
        "revision": revision,
        "commit": commit[:12],
        "params": setting.digest,
        "seconds": round(time.time() - started),
        "figures": figures,
        "loss": _loss(tree / "results" / experiment.base / "plots" / "hypernet.csv")
        if "lorarar" in experiment.methods
        else None,
    }
    write_json(_record(experiment, setting, commit), facts)
    return facts


def _loss(path: Path) -> dict[str, float]:
    """Of the hypernetwork and its terms of content and style: means over the last quarter of its training."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    last = rows[len(rows) * 3 // 4 :]
    names = {"loss": "loss", "loss_content": "content", "loss_style": "style"}
    return {name: mean(float(row[column]) for row in last) for name, column in names.items()}


def _record(experiment: Experiment, setting: Setting, commit: str) -> Path:
    return FOLDER / experiment.base / f"{key(experiment, setting, commit)}.json"


def _prepare(commit: str) -> Path:
    """The clone, as it is at this commit."""
    tree = (FOLDER / "tree").absolute()
    if not (tree / ".git").exists():
        shutil.rmtree(tree, ignore_errors=True)
        hidden = tree.with_name(f".tree.{os.getpid()}")
        shutil.rmtree(hidden, ignore_errors=True)
        _output("git", "clone", "--quiet", "--no-checkout", ".", str(hidden))
        for base in Path(".work").iterdir():
            if base.is_dir() and base.name not in ("experiments", "code"):
                shutil.copytree(base, hidden / ".work" / base.name, copy_function=os.link)
        hidden.rename(tree)
    _output("git", "-C", str(tree), "fetch", "--quiet", "origin", "HEAD")
    _output("git", "-C", str(tree), "checkout", "--quiet", "--force", "--detach", commit)
    _output("git", "-C", str(tree), "clean", "-fdq", "results")
    cache = _output("dvc", "cache", "dir")
    _output("dvc", "--cd", str(tree), "config", "--local", "cache.dir", str(Path(cache).absolute()))
    return tree


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"{' '.join(command[:3])}: {reason}")
    return done.stdout.strip()


def _environment() -> dict[str, str]:
    """With the commands that are installed beside this Python first, whether or not its environment is activated."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
