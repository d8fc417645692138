"""The frame of every stage: parameters, catalogue, paths, and the fan-out of its tasks."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lorarar.data.catalog import Catalog, Pair, Split, Style, Subject, own_tables, pair_name
from lorarar.data.controls import CONTROLS
from lorarar.data.pairs import balanced
from lorarar.errors import UserError
from slurm.dry_run import show
from slurm.local import cores
from slurm.store import Store
from slurm.task import WORK, Task, paths_sha256
from stages.shared import tracking
from stages.shared.params import Params, load

GPUS = "LORARAR_GPUS"
"""Tells the task that trains on several GPUs how many its job has: an argument would be part of its key."""

MINIMUM_FREE = 1 << 30
"""Bytes that a stage wants to find free: the whole chain of pocket, its cache included, fills less."""


class Group(NamedTuple):
    """Tasks of one kind, and the store of those that are done."""

    store: Store
    tasks: Sequence[Task]
    description: str


@dataclass(frozen=True)
class Context:
    """One run of one stage. Paths are relative to the root of the repository, where stages run."""

    params: Params
    catalog: Catalog
    plan: bool = False

    @classmethod
    def load(cls, plan: bool = False) -> Context:
        """Read params.yaml and the catalogue, and check that the disk has room.

        Parameters
        ----------
        plan
            Let `fan_out` show the tasks instead of running them.

        Raises
        ------
        UserError
            One of them has a mistake, or the disk is full.
        """
        catalog = Catalog.load()
        params = load(Path("params.yaml"), catalog)
        context = cls(params, catalog.divided(params.evaluate.scheme), plan)
        free = shutil.disk_usage(".").free
        if free < MINIMUM_FREE:
            raise UserError(f"{Path.cwd()}: only {free >> 20} MiB of disk free, {MINIMUM_FREE >> 20} needed; free some")
        return context

    @property
    def base(self) -> str:
        return self.params.base

    @property
    def knobs(self) -> Any:
        """The chosen recipe of params.yaml."""
        return self.params.chosen

    @property
    def drawn(self) -> bool:
        """True if the world is drawn, so that the right picture of every pair is known; else it is photographs."""
        return self.params.bases[self.base].base is not None

    @property
    def drawn_scheme(self) -> str:
        """The scheme whose subjects and styles examine judges and LoRAs: the paper's, or one with tables of its own."""
        scheme = self.params.evaluate.scheme
        return scheme if own_tables(scheme) else "paper"

    @property
    def methods(self) -> list[str]:
        """The evaluated methods, without the ceilings where the truth is not known."""
        return [
            name
            for name in self.params.evaluate.methods
            if self.drawn or name not in CONTROLS or CONTROLS[name].bound != "ceiling"
        ]

    @property
    def workers(self) -> int:
        return self.params.workers or cores()

    def workers_of(self, name: str) -> int:
        """Local worker processes; one for tasks that need a GPU, as all of them would share it."""
        return self.params.workers or (1 if self.params.jobs[name].gpus else self.workers)

    @property
    def work(self) -> Path:
        """Finished tasks and temporary files."""
        return WORK / self.base

    @property
    def data(self) -> Path:
        """Shipped files of the base: weights and judges."""
        return Path("data") / self.base

    @property
    def artifacts(self) -> Path:
        return Path("artifacts") / self.base

    @property
    def results(self) -> Path:
        return Path("results") / self.base

    @property
    def subjects(self) -> list[Subject]:
        """Subjects of the bank."""
        return [s for s in self.catalog.subjects.values() if _listed(s.name, self.knobs.bank.subjects)]

    @property
    def styles(self) -> list[Style]:
        """Styles of the bank."""
        return [s for s in self.catalog.styles.values() if _listed(s.name, self.knobs.bank.styles)]

    @property
    def members(self) -> list[Subject | Style]:
        """All of the bank."""
        return [*self.subjects, *self.styles]

    def pairs(self, split: Split) -> list[Pair]:
        """Pairs of a split that are evaluated: those that `evaluate` lists or samples, or all."""
        bank, evaluate = self.knobs.bank, self.params.evaluate
        pairs = self.catalog.pairs(split, bank.subjects, bank.styles)
        if evaluate.sample:
            subjects, styles = (list(dict.fromkeys(one.name for one in side)) for side in zip(*pairs, strict=True))
            drawn = set(balanced(subjects, styles, evaluate.sample.pairs, evaluate.sample.seed))
            return [(subject, style) for subject, style in pairs if (subject.name, style.name) in drawn]
        return [pair for pair in pairs if _listed(pair_name(*pair), evaluate.pairs)]

    @property
    def evaluated(self) -> list[Pair]:
        """Pairs of all evaluated splits."""
        return [pair for split in self.params.evaluate.splits for pair in self.pairs(split)]

    def pictures(self, entry: Subject | Style) -> list[Path]:
        """Files of the reference pictures of a subject or a style."""
        kind, number = ("subjects", entry.images) if isinstance(entry, Subject) else ("styles", 1)
        folder = self.artifacts / "images" / kind / entry.name
        return [folder / f"{index:02}.png" for index in range(number)]

    def adapter(self, entry: Subject | Style) -> Path:
        """File of the bank's adapter for a subject or a style."""
        return self.artifacts / "bank" / f"{entry.name}.safetensors"

    def seed(self, *names: str | int) -> int:
        """A seed that belongs to these names alone, in [0, 2^31). The first one is the stage's."""
        seed = self.params.seed + self.params.seeds.get(str(names[0]), 0)
        digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
        return int.from_bytes(digest[:4], "little") >> 1

    def store(self, stage: str, *shared: Path, name: str = "", without: str | tuple[str, ...] = ()) -> Store:
        """Finished tasks of a stage.

        Parameters
        ----------
        shared
            Files that all of its tasks read.
        name
            Folder of the store, by default the stage's name.
        without
            Leave out the code below these paths: it is run by other tasks of the stage.
        """
        code = [path for path in code_of(stage) if not path.startswith(without)]
        return Store(self.work / (name or stage), paths_sha256([*map(present, code), *map(present, shared)]))

    def fan_out(self, *groups: Group) -> list[dict[str, Path]]:
        """Run the tasks that are not done yet with the executor of params.yaml.

        Returns
        -------
        list of dict
            For each group, name of a task -> the folder of its result.
        """
        if not self.plan:
            for group in groups:
                for path in (path for task in group.tasks for path in task.reads):
                    present(path)
        executor = self.params.executor
        tracking.ask(self.params.tracking)
        os.environ[GPUS] = str(self.params.jobs["hypernet"].gpus)
        asked = [(self.params.jobs[group.store.root.name], self.workers_of(group.store.root.name)) for group in groups]
        if self.plan:
            for group, (resources, workers) in zip(groups, asked, strict=True):
                show(group.store, group.tasks, resources, executor, workers, group.description)
            raise SystemExit(0)
        if executor == "inline":
            import torch

            torch.set_num_threads(1)  # as worker processes and jobs have, so that sums round alike
        return [
            group.store.run(group.tasks, resources, group.description, executor, workers)
            for group, (resources, workers) in zip(groups, asked, strict=True)
        ]


class NotMade(UserError):
    """A file or folder does not exist yet."""


def code_of(stage: str) -> list[str]:
    """The code that a stage runs: its dependencies in dvc.yaml that are modules or packages of this repository."""
    deps = _stages(present("dvc.yaml").read_text(encoding="utf-8"))[stage]["deps"]
    return [path for path in deps if path.startswith(("lorarar/", "stages/"))]


@lru_cache(maxsize=1)
def _stages(text: str) -> dict[str, Any]:
    return yaml.safe_load(text)["stages"]


def present(path: Path | str) -> Path:
    """Return the path if it exists; raise `UserError` otherwise."""
    path = Path(path)
    if not path.exists():
        raise NotMade(f"{path}: no such file or folder; `dvc repro` makes it, `git checkout` restores what git keeps")
    return path


def collect(out: Path, files: Mapping[str, Path]) -> None:
    """Make the folder `out` of copies: name inside it -> file or folder. It is replaced as a whole.

    Copies, not links: an edit of an output must not reach the finished task behind it.
    """
    hidden = out.with_name(f".{out.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    for name, source in files.items():
        target = hidden / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*"))  # the record of how the task went
        else:
            shutil.copyfile(source, target)
    shutil.rmtree(out, ignore_errors=True)
    hidden.rename(out)


def _listed(name: str, names: list[str] | None) -> bool:
    return names is None or name in names
