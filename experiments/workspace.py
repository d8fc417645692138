"""A clone of the repository in which settings run one after the other, apart from the tree that you edit.

The clone shares DVC's cache and starts with links to the finished tasks, so only what a setting changes is computed.
Each setting becomes an experiment of DVC on the commit that is checked out: `dvc exp show` lists them all.

`dvc exp run --temp` would need no clone, but it writes the setting into params.yaml of your tree for a moment, where a
stage that starts then reads it, and deletes its folder on Ctrl-C, although jobs of Slurm still work there.
"""

from __future__ import annotations

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

import pandas as pd

from experiments.experiment import Experiment, Setting, hydra
from lorarar.errors import UserError
from lorarar.files import write_json
from lorarar.scoring import score_table
from slurm.task import WORK

FOLDER = WORK / "experiments"
CODE = ("data", "dvc.yaml", "lorarar", "params.yaml", "slurm", "stages")
"""Files and folders that results depend on."""


def commit() -> str:
    """Return the commit that is checked out.

    Raises
    ------
    UserError : uncommitted changes in `CODE`, which would not be part of what runs.
    """
    edited = _output("git", "status", "--porcelain", "--", *CODE)
    if edited:
        name = edited.splitlines()[0].split(maxsplit=1)[1]
        raise UserError(f"{name}: differs from the last commit, which is what runs; commit it first")
    return _output("git", "rev-parse", "HEAD")


def key(experiment: Experiment, setting: Setting, commit: str) -> str:
    """Hash of the parameters, the base and the code: equal code in another commit has the same."""
    code = _output("git", "rev-parse", *(f"{commit}:{path}" for path in CODE if path != "params.yaml")).splitlines()
    return hashlib.sha256(json.dumps([setting.digest, experiment.base, code]).encode()).hexdigest()[:24]


def record(experiment: Experiment, setting: Setting, commit: str) -> dict[str, Any] | None:
    """Figures that `run` wrote for a setting; None if it has not run."""
    path = _record(experiment, setting, commit)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def run(experiment: Experiment, setting: Setting, commit: str) -> dict[str, Any]:
    """Run a setting, write its figures and return them.

    Raises
    ------
    UserError : a stage failed; its own message stands above.
    """
    tree = _clone(commit)
    revision = experiment.revision(setting, commit)
    where = f"refs/exps/{commit[:2]}/{commit[2:]}/{revision}"
    _output("git", "-C", str(tree), "update-ref", "-d", where)  # of an attempt whose record is lost
    changes = [f"-S{key}={hydra(value)}" for key, value in experiment.overrides(setting).items()]
    # The clone's own packages and finished tasks: two runs at once would delete each other's unfinished tasks.
    environment = {**_environment(), "PYTHONPATH": str(tree), "LORARAR_WORK": ".work"}
    started = time.time()
    command = ["dvc", "exp", "run", "--name", revision, *changes, *experiment.targets]
    if subprocess.run(command, cwd=tree, env=environment).returncode:
        raise UserError(f"{experiment.name}: {setting.label}: failed, see above; the same command continues")
    seconds = round(time.time() - started)
    _output("git", "fetch", "--quiet", str(tree), f"+{where}:{where}")
    results, artifacts, figures = tree / "results" / experiment.base, tree / "artifacts" / experiment.base, {}
    for name in (f"{method}-{split}" for method in experiment.methods for split in experiment.splits):
        pairs = score_table.by_pair(score_table.read(artifacts / "score" / f"{name}.parquet"))
        right = {"+".join(pair): [row.right for row in rows] for pair, rows in pairs.items()}
        metrics = json.loads((results / "metrics" / f"{name}.json").read_text(encoding="utf-8"))
        figures[name] = {**metrics, "right": right}
    facts = {
        "revision": revision,
        "commit": commit[:12],
        "params": setting.digest,
        "seconds": seconds,
        "figures": figures,
        "loss": _loss(results / "plots" / "hypernet.csv") if "lorarar" in experiment.methods else None,
    }
    write_json(_record(experiment, setting, commit), facts)
    return facts


def _loss(path: Path) -> dict[str, float]:
    """Loss of the hypernetwork, and its content and style term: means over the last quarter of its training."""
    steps = pd.read_csv(path, dtype=float)
    last = steps.iloc[len(steps) * 3 // 4 :]
    return {name: mean(last[name.removeprefix("loss_")]) for name in ("loss", "loss_content", "loss_style")}


def _record(experiment: Experiment, setting: Setting, commit: str) -> Path:
    return FOLDER / experiment.base / f"{key(experiment, setting, commit)}.json"


def _clone(commit: str) -> Path:
    """The clone with this commit checked out. It is kept, as jobs of an interrupted run may still work in it."""
    tree = (FOLDER / "tree").absolute()
    if not tree.exists():
        hidden = tree.with_name(".tree")
        shutil.rmtree(hidden, ignore_errors=True)
        _output("git", "clone", "--quiet", "--no-checkout", ".", str(hidden))
        ignored = shutil.ignore_patterns("experiments", "code")
        shutil.copytree(WORK, hidden / ".work", ignore=ignored, copy_function=os.link)
        hidden.rename(tree)
    _output("git", "-C", str(tree), "fetch", "--quiet", "origin", "HEAD")
    _output("git", "-C", str(tree), "checkout", "--quiet", "--force", "--detach", commit)
    _output("git", "-C", str(tree), "clean", "-fdq", "results")
    cache = Path(_output("dvc", "cache", "dir")).absolute()
    _output("dvc", "--cd", str(tree), "config", "--local", "cache.dir", str(cache))
    return tree


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=_environment())
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"{' '.join(command[:3])}: {reason}")
    return done.stdout.strip()


def _environment() -> dict[str, str]:
    """Variables with the commands installed for this Python first, even where its environment is not activated."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
