"""Forecasts the benchmark's cost with more adapters: hours, bytes and files at 56, 1,000 and 100,000.

Units are measured: seconds and bytes of a task in the records below .work, what keeping tasks and hashing files takes
on folders made for it. Everything else is multiplication, so the last column says how each term grows.

    python -m bench.cost        # after `make repro`, in the root of the repository; half a minute
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import yaml

from lorarar.data.catalog import Subject
from lorarar.errors import UserError
from slurm.store import Store
from slurm.task import Task, perform
from stages.shared import task_records
from stages.shared.context import Context, collect

SIZES = (56, 1_000, 100_000)
TRIES = (250, 1_000)
"""Numbers of tasks on which keeping them is measured; a straight line through both gives the price of one more."""
PICTURE = 6_100
"""Bytes of a file in these tasks: that of a picture of pocket."""


@dataclass(frozen=True)
class Units:
    """Prices: seconds on one core, bytes, and numbers that the catalogue and params.yaml give."""

    subject_seconds: float
    style_seconds: float
    ziplora_seconds: float
    joint_seconds: float  # 0 if joint training is not compared
    generate_seconds: float
    score_seconds: float
    hypernet_seconds: float
    adapter_bytes: float
    picture_bytes: float
    verdicts: float  # files of a picture
    images: int
    methods: int
    plan_seconds: float
    check_seconds: float
    collect_seconds: float
    dvc_seconds: float


@dataclass(frozen=True)
class World:
    """So many adapters, in the proportions of the catalogue."""

    subjects: float
    styles: float
    test_subjects: float
    test_styles: float

    @property
    def adapters(self) -> float:
        return self.subjects + self.styles

    @property
    def pairs(self) -> float:
        return self.test_subjects * self.test_styles

    def scaled(self, adapters: int) -> World:
        factor = adapters / self.adapters
        return World(*(factor * n for n in (self.subjects, self.styles, self.test_subjects, self.test_styles)))


@dataclass(frozen=True)
class WritePictures:
    """Write files that differ, as many and as large as a pair's pictures."""

    number: int
    names: list[str]

    def run(self, folder: Path) -> None:
        for name in self.names:
            (folder / name).write_bytes(f"{self.number} {name}".encode().ljust(PICTURE, b"."))


def housekeeping() -> dict[str, float]:
    """Seconds that one more task of ten pictures costs store, stages and DVC, on top of the work itself."""
    from bench.cost import WritePictures  # not that of __main__

    taken: dict[str, list[float]] = {"plan": [], "check": [], "collect": [], "dvc": []}
    names = [f"{index:02}.png" for index in range(10)]
    for number in TRIES:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            source = root / "input"
            source.write_bytes(bytes(1 << 21))  # two adapters
            store = Store(root / "store", "code")
            tasks = [Task(str(i), WritePictures(i, names), [source]) for i in range(number)]
            begun = _cpu()
            planned = store.plan(tasks)
            taken["plan"].append(_cpu() - begun)
            for task in planned:
                perform(task)
            begun = _cpu()
            assert not store.missing(planned, checksums=True)
            taken["check"].append(_cpu() - begun)
            begun = _cpu()
            collect(root / "out", {task.name: task.folder for task in planned})
            taken["collect"].append(_cpu() - begun)
            for command in (["git", "init", "--quiet"], [sys.executable, "-m", "dvc", "init", "--quiet"]):
                subprocess.run(command, cwd=root, check=True)
            begun = _cpu()
            subprocess.run([sys.executable, "-m", "dvc", "add", "--quiet", "out"], cwd=root, check=True)
            taken["dvc"].append(_cpu() - begun)
    step = TRIES[1] - TRIES[0]
    return {name: (seconds[1] - seconds[0]) / step for name, seconds in taken.items()}


def measured(context: Context) -> Units:
    """Prices from the records of the last run."""
    found = task_records.records(context)
    missing = {"bank", "hypernet", "ziplora", "generate", "score"} - found.keys()
    if missing:
        raise UserError(f".work/{context.base}: no records of {', '.join(sorted(missing))}; run `make repro` first")

    def seconds(stage: str) -> float:
        return mean(record["cpu_seconds"] for record in found[stage])

    def size(paths: Sequence[Path]) -> float:
        return mean(path.stat().st_size for path in paths)

    bank = {record["name"]: record["cpu_seconds"] for record in found["bank"]}
    kinds = {kind: [bank[m.name] for m in context.members if isinstance(m, Subject) == kind] for kind in (True, False)}
    adapter = size(list((context.artifacts / "bank").glob("*.safetensors")))
    pictures = list((context.artifacts / "generate").rglob("*.png"))
    verdicts = list((Path(".work") / context.base / "verdicts").rglob("*.json"))
    each = housekeeping()
    return Units(
        subject_seconds=mean(kinds[True]),
        style_seconds=mean(kinds[False]),
        ziplora_seconds=seconds("ziplora"),
        joint_seconds=seconds("joint") if "joint" in found else 0.0,
        generate_seconds=seconds("generate"),
        score_seconds=seconds("score"),
        hypernet_seconds=seconds("hypernet"),
        adapter_bytes=adapter,
        picture_bytes=size(pictures),
        verdicts=len(verdicts) / len(pictures),
        images=context.knobs.generate.images_per_pair,
        methods=len(context.params.evaluate.methods),
        plan_seconds=each["plan"],
        check_seconds=each["check"],
        collect_seconds=each["collect"],
        dvc_seconds=each["dvc"],
    )


def terms(u: Units, w: World, pairs: float) -> dict[str, tuple[str, float]]:
    """What it takes, each with how it grows: in the adapters N or in the evaluated pairs P."""
    tasks = pairs * u.methods  # of stages generate and score each
    return {
        "adapters in the bank": ("N", w.adapters),
        "pairs evaluated": ("P", pairs),
        "core hours: bank": ("N", (w.subjects * u.subject_seconds + w.styles * u.style_seconds) / 3600),
        "core hours: hypernetwork": ("1", u.hypernet_seconds / 3600),
        "core hours: ZipLoRA": ("P", pairs * u.ziplora_seconds / 3600),
        "core hours: joint training": ("P", pairs * u.joint_seconds / 3600),
        "core hours: generate": ("P M", tasks * u.generate_seconds / 3600),
        "core hours: score": ("P M", tasks * u.score_seconds / 3600),
        "core hours, one process: plan and check tasks": ("P M", 2 * tasks * (u.plan_seconds + u.check_seconds) / 3600),
        "core hours, one process: collect and hash": ("P M", tasks * (u.collect_seconds + u.dvc_seconds) / 3600),
        "GB: bank": ("N", w.adapters * u.adapter_bytes / 1e9),
        "GB: LoRAs of joint training, each kept three times": (
            "P",
            3 * pairs * u.adapter_bytes / 1e9 * (u.joint_seconds > 0),
        ),
        "GB: pictures, each kept three times": ("P M", 3 * tasks * u.images * u.picture_bytes / 1e9),
        "files: pictures of one method": ("P", pairs * u.images),
        "files: all pictures, each kept three times": ("P M", 3 * tasks * u.images),
        "files: verdicts of the judge": ("P M", tasks * u.images * u.verdicts),
        "MB: DVC's list of all pictures": ("P M", tasks * u.images * 90 / 1e6),
        "folders in one store (.work/.../generate)": ("P M", tasks),
    }


def table(u: Units, world: World) -> str:
    """Markdown: 56 as it is, then all test pairs of more adapters, then 25 pairs whatever their number."""
    columns: list[dict[str, tuple[str, float]]] = []
    header = ["", "grows as"]
    for size in SIZES:
        w = world.scaled(size)
        columns.append(terms(u, w, w.pairs))
        header.append(f"{size:,}")
    for size in SIZES[1:]:
        columns.append(terms(u, world.scaled(size), world.pairs))
        header.append(f"{size:,}, {world.pairs:.0f} pairs")
    rows = [
        [name, growth, *(_number(column[name][1]) for column in columns)] for name, (growth, _) in columns[0].items()
    ]
    lines = [header, ["---", "---", *["---:"] * len(columns)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cpu() -> float:
    """Processor seconds of this process and those it waited for: unlike a clock's, none of its neighbours'."""
    return sum(os.times()[:4])


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """Measure and print."""
    try:
        context = Context.load()
        units = measured(context)
    except UserError as error:
        sys.exit(f"error: {error}")
    subjects, styles = context.subjects, context.styles
    test = [sum(member.split == "test" for member in members) for members in (subjects, styles)]
    world = World(len(subjects), len(styles), *test)
    print(yaml.safe_dump({name: float(f"{value:.4g}") for name, value in vars(units).items()}, sort_keys=False))
    print(table(units, world))


if __name__ == "__main__":
    main()
