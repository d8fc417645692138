"""What every stage knows: parameters, catalogue and where files are."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarar.data.catalog import Catalog, Pair, Split, Style, Subject, pair_name
from lorarar.data.controls import CONTROLS
from lorarar.errors import UserError
from slurm.dry_run import show
from slurm.local import cores
from slurm.store import Store
from slurm.task import Task, fingerprint
from stages.shared.params import BaseSections, Params, Training, load

if TYPE_CHECKING:
    from lorarar.diffusion.backbone import Backbone

MINIMUM_FREE = 1 << 30
"""Bytes that a stage wants to find free: the whole chain of pocket, its cache included, fills less."""


@dataclass(frozen=True)
class Context:
    """One run of one stage. Paths are relative to the root of the repository, where stages run."""

    params: Params
    catalog: Catalog
    arguments: tuple[str, ...] = ()
    plan: bool = False

    @classmethod
    def load(cls, arguments: Sequence[str] = (), plan: bool = False) -> Context:
        """Read params.yaml and the catalogue, and see that there is room on the disk.

        Parameters
        ----------
        plan
            Let `fan_out` show what it would do instead of doing it.

        Raises
        ------
        UserError
            Something is wrong with them, or the disk is full.
        """
        catalog = Catalog.load()
        params = load(Path("params.yaml"), catalog)
        context = cls(params, catalog.divided(params.evaluate.scheme), tuple(arguments), plan)
        free = shutil.disk_usage(".").free
        if free < MINIMUM_FREE:
            raise UserError(f"{Path.cwd()}: only {free >> 20} MiB of disk free, {MINIMUM_FREE >> 20} needed; free some")
        return context

    @property
    def base(self) -> str:
        return self.params.base

    @property
    def knobs(self) -> BaseSections:
        """The parameters of the chosen base."""
        return self.params.chosen

    @property
    def drawn(self) -> bool:
        """Whether the world is drawn, so that the right picture of every pair is known; else it is photographs."""
        return self.knobs.base is not None

    @property
    def methods(self) -> list[str]:
        """What is evaluated, less the ceilings where the truth is not known."""
        return [
            name
            for name in self.params.evaluate.methods
            if self.drawn or name not in CONTROLS or CONTROLS[name].bound != "ceiling"
        ]

    @property
    def workers(self) -> int:
        return self.params.workers or cores()

    def workers_of(self, stage: str) -> int:
        """Local worker processes: of a stage that wants a GPU one, as all of them would use the same."""
        return self.params.workers or (1 if self.params.resources_of(stage).gpus else self.workers)

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
        """Pairs of a split that are evaluated."""
        bank = self.knobs.bank
        pairs = self.catalog.pairs(split, bank.subjects, bank.styles)
        return [pair for pair in pairs if _listed(pair_name(*pair), self.params.evaluate.pairs)]

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
        seed = self.params.seed + self.params.seeds.model_dump().get(str(names[0]), 0)
        digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
        return int.from_bytes(digest[:4], "little") >> 1

    def model(self, training: bool = False) -> dict[str, Any]:
        """What `backbone` takes, in JSON values."""
        knobs = self.knobs.backbone
        dtype = knobs.training_dtype if training else knobs.dtype
        return {"folder": str(self.data / "base"), "dtype": dtype, "training": training, "offload": knobs.offload}

    def dreambooth(self, knobs: Training) -> dict[str, Any]:
        """Options of `train_adapter`: a section's, and how the base model is to be computed with."""
        backbone = self.knobs.backbone
        return {
            **knobs.model_dump(),
            "gradient_checkpointing": backbone.gradient_checkpointing,
            "eight_bit_adam": backbone.eight_bit_adam,
        }

    def store(self, stage: str, code: Sequence[str], *shared: Path) -> Store:
        """Finished tasks of a stage: `code` are the sources they run, `shared` what all of them read."""
        return Store(Path(".work") / self.base / stage, fingerprint([*map(present, code), *map(present, shared)]))

    def fan_out(
        self,
        store: Store,
        function: Callable[..., None],
        tasks: Mapping[str, tuple[dict[str, Any], Sequence[Path]]],
        description: str,
    ) -> dict[str, Path]:
        """Do what is missing of name -> (arguments, files read), where params.yaml says; return each one's folder."""
        listed = [
            Task(name, arguments, [present(path) for path in reads]) for name, (arguments, reads) in tasks.items()
        ]
        stage = store.root.name
        resources, executor = self.params.resources_of(stage), self.params.executor
        if self.plan:
            show(store, function, listed, resources, executor, self.workers_of(stage), description)
            raise SystemExit(0)
        if executor == "inline":
            import torch

            torch.set_num_threads(1)  # as worker processes and jobs have, so that sums round alike
        return store.run(function, listed, resources, description, executor, self.workers_of(stage))


def present(path: Path | str) -> Path:
    """The path, if there is something.

    Raises
    ------
    UserError
        There is nothing.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; `dvc repro` makes it, `git checkout` restores what git keeps")
    return path


def collect(out: Path, files: Mapping[str, Path]) -> None:
    """Make the folder `out` of copies: name inside it -> file or folder. It is replaced as a whole.

    Copies, not links: whoever edits an out must not edit the finished task behind it.
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


@cache
def backbone(folder: str, dtype: str = "auto", training: bool = False, offload: bool = False) -> Backbone:
    """The base model, loaded once in each process.

    Parameters
    ----------
    dtype : to compute in, by its name in PyTorch; `auto` is what this machine does fastest.
    training : `auto` has to do for training, too.
    offload : keep on the GPU only what is at work.
    """
    import torch

    from lorarar.diffusion.backbone import Backbone, best_dtype

    chosen = best_dtype(training)[0] if dtype == "auto" else getattr(torch, dtype)
    return Backbone.load(folder, chosen, offload=offload)


def _listed(name: str, names: list[str] | None) -> bool:
    return names is None or name in names
