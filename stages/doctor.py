"""Can this base be worked with here, and what will it cost? Looks, reckons, and starts nothing: `lorarar doctor`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from rich.console import Console
from rich.table import Table

from lorarar import hub
from lorarar.controls import CONTROLS
from lorarar.errors import UserError
from lorarar.merge.registry import METHODS
from lorarar.scoring.judges import HUB_ID, JudgePrompts
from slurm.fanout import choose
from stages import scorers
from stages.context import Context
from stages.intact import shipped
from stages.sections import Merger, Training

COSTS = Path("data/costs.yaml")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    about: str
    ready: bool
    says: str


@dataclass(frozen=True)
class Cost:
    """What a stage will take: `hours` of a GPU, or of a core for a base that wants none, None if nobody knows."""

    stage: str
    tasks: int
    hours: float | None
    gigabytes: float


def examine(context: Context, download: bool = False) -> Iterator[Finding]:
    """All that a run needs, one finding each. With `download`, what is missing is fetched first."""
    base = context.data / "base"
    world = context.data / "world.yaml"
    yield Finding("world", world.exists(), f"{world}{'' if world.exists() else ': no such file; restore it from git'}")
    yield _tried("base model", lambda: _weights(context, download))
    for kind in ("judge", "clip", "dino"):
        yield _tried(kind, lambda kind=kind: _scorer(context, kind, base, download))  # type: ignore[misc]
    if context.knobs.backbone.eight_bit_adam:
        there = find_spec("bitsandbytes") is not None
        yield Finding("bitsandbytes", there, "installed" if there else "missing; `pip install bitsandbytes`")
    yield _gpu(context)
    wanted, there = _memory(context), psutil.virtual_memory().total / 1e9
    yield Finding("memory", there >= wanted, f"{there:.0f} GB here, {wanted:.0f} GB asked for by the largest job")
    needed, free = sum(cost.gigabytes for cost in costs(context)), shutil.disk_usage(".").free / 1e9
    yield Finding("disk", free >= needed, f"{free:.1f} GB free, about {needed:.1f} GB needed")


def costs(context: Context) -> list[Cost]:
    """What each stage will take, by data/costs.yaml, if nothing of it has been done yet.

    A training step on a picture is a forward and a backward pass, whose weights are frozen, and with checkpointing
    another forward pass; Eq. 3 adds the two adapters' own predictions. Files of `artifacts/` count twice, as DVC's
    cache has them too, unless it is set to links; what tasks made a third time, as finished tasks are kept.
    """
    reckoned = yaml.safe_load(COSTS.read_text(encoding="utf-8"))
    knobs, methods = context.knobs, context.methods
    counted, assumed = reckoned["counted"][context.base], reckoned["assumed"]
    measured = reckoned["measured"].get(context.base, {})
    area = (knobs.backbone.resolution / 1024) ** 2
    lora = counted["lora_per_rank"] * knobs.bank.rank * 4 / 1e9
    passes = 2 + knobs.backbone.gradient_checkpointing
    pairs, members = context.evaluated, context.members
    merging = [name for name in methods if name in METHODS]
    # Merged LoRAs have both ranks; a schedule is two LoRAs; controls apply one of them, or none.
    merged = sum(2 if name in METHODS else CONTROLS[name].adapter is not None for name in methods)
    images = knobs.generate.images_per_pair * len(pairs) * len(methods)
    questions = sum(subject.images + 1 for subject, _ in pairs) * knobs.generate.images_per_pair * len(methods)
    # The judge in the paper's words is asked in stage score already.
    rewordings = len(JudgePrompts.variants(scorers.PROMPTS)) - 1 + len(knobs.score.ranking.judges)
    share = min(knobs.score.ranking.images / knobs.generate.images_per_pair, 1) * len(merging) / len(methods)
    forward, encode, decode = (counted.get(name, 0) * area for name in ("forward", "encode", "decode"))

    def training(one: Training, pictures: int) -> float:
        return one.steps * one.batch_size * passes * forward + pictures * encode

    def fitting(one: Merger) -> float:
        return one.steps * one.batch_size * 2 * (1 + passes + (one.fidelity == "relative")) * forward

    sides = 2 if knobs.generate.guidance > 1 else 1
    bank = sum(training(knobs.bank.subject, s.images) for s in context.subjects)
    bank += len(context.styles) * training(knobs.bank.style, 1)
    fits = len(pairs) * ("ziplora" in merging)
    joints = len(pairs) * ("joint" in merging)
    picture = assumed["picture_mb"] * area / 1e3
    tasks = len(pairs) * len(methods)
    sampling = images * (knobs.generate.steps * sides * forward + decode)
    rows = [
        ("bank", len(members), bank, 3 * lora * len(members)),
        ("hypernet", 1, fitting(knobs.hypernet), 0.0),
        ("ziplora", fits, fits * fitting(knobs.ziplora), 0.0),
        ("joint", joints, joints * training(knobs.joint, 0), 3 * lora * joints),
        ("merge", 0, 0.0, 2 * lora * merged * len(pairs)),
        ("generate", tasks, sampling, 3 * picture * images),
        ("score", tasks, questions * assumed["question"], 0.0),
        ("ranking", len(pairs) * len(merging), questions * share * rewordings * assumed["question"], 0.0),
    ]

    def hours(stage: str, tasks: int, tflop: float) -> float | None:
        if not tasks:
            return 0.0
        if "forward" not in counted:
            return tasks * measured[stage] / 3600 if stage in measured else None
        return tflop / assumed["tflop_per_second"] / 3600

    return [Cost(stage, tasks, hours(stage, tasks, tflop), size) for stage, tasks, tflop, size in rows]


def gpu_gigabytes(context: Context) -> float:
    """Memory that a training step takes: weights, factors with gradients and AdamW's state, and activations."""
    reckoned = yaml.safe_load(COSTS.read_text(encoding="utf-8"))
    counted, knobs = reckoned["counted"][context.base], context.knobs
    width = 4 if knobs.backbone.training_dtype == "float32" else 2
    factors = counted["lora_per_rank"] * knobs.bank.rank * (10 if knobs.backbone.eight_bit_adam else 16)
    return (counted["parameters"] * width + factors) / 1e9 + reckoned["assumed"]["activations_gb"]


def _tried(about: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(about, True, look())
    except UserError as error:
        return Finding(about, False, str(error))


def _weights(context: Context, download: bool) -> str:
    from lorarar.backbone import check_files

    base = context.data / "base"
    if not (base / hub.NAME).exists():
        shipped(context.data)
        return f"{context.data}: shipped, as SHA256SUMS says"
    folder, variant = hub.locate(base, download)
    check_files(folder, variant, hub.fetch_command(base))
    source = hub.Source.read(base / hub.NAME)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9
    loose = source.hub and folder.name != source.revision
    advice = f"; `revision: {folder.name}` in {base / hub.NAME} would keep it the same" if loose else ""
    return f"{folder}: {size:.1f} GB{advice}"


def _scorer(context: Context, kind: str, base: Path, download: bool) -> str:
    name = getattr(context.knobs.score, kind)
    if (context.data / "judges" / name).is_dir():
        return f"{context.data / 'judges' / name}"
    if name.startswith("http"):
        return f"{name}: a server, which is not looked at"
    if kind == "clip":
        import open_clip

        model, _, tag = name.partition(":")
        published = open_clip.get_pretrained_cfg(model, tag).get("hf_hub", "")
        name = published.strip("/")
    if not HUB_ID.fullmatch(name):
        raise UserError(f"{name}: not a model of open_clip on the hub; see `params.yaml`")
    options = {"ignore_patterns": ["*.onnx", "*.msgpack", "*.h5", "*.ot"]}
    revision = context.knobs.score.judge_options.get("revision", "main") if kind == "judge" else "main"
    return str(hub.snapshot(name, revision, hub.fetch_command(base), download, **options))


def _gpu(context: Context) -> Finding:
    if not context.params.resources_of("bank").gpus:
        return Finding("GPU", True, f"none needed; computes in {_dtype()}")
    wanted = f"about {gpu_gigabytes(context):.0f} GB of GPU memory needed"
    if torch.cuda.is_available():
        name, size = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / 1e9
        return Finding("GPU", size >= gpu_gigabytes(context), f"{name}, {size:.0f} GB, {_dtype()}; {wanted}")
    if choose(context.params.executor) == "slurm":
        return Finding("GPU", True, f"none here; jobs ask Slurm for one; {wanted}")
    return Finding("GPU", False, f"none that PyTorch sees; {wanted}")


def _dtype() -> str:
    from lorarar.backbone import best_dtype

    dtype, reason = best_dtype()
    return f"{str(dtype).removeprefix('torch.')} ({reason})"


def _memory(context: Context) -> float:
    resources = getattr(context.params.resources, context.base)
    return max(getattr(resources, stage).memory_gb for stage in ("bank", "hypernet", "generate", "score"))


def main() -> None:
    """Print findings and costs; the exit status is 0 if all is ready, else 1."""
    parser = argparse.ArgumentParser(prog="lorarar doctor", description=__doc__)
    parser.add_argument("--base", help="by default that of params.yaml")
    parser.add_argument("--download", action="store_true", help="fetch models that are not on this machine yet")
    given = parser.parse_args()
    try:
        context = Context.load()
        if given.base:
            if given.base not in type(context.params.bases).model_fields:
                known = ", ".join(type(context.params.bases).model_fields)
                raise UserError(f"--base {given.base}: no such base; known: {known}")
            context = replace(context, params=context.params.model_copy(update={"base": given.base}))
        found, reckoned = list(examine(context, given.download)), costs(context)
    except UserError as error:
        print(*(f"error: {line}" for line in str(error).splitlines()), sep="\n", file=sys.stderr)
        sys.exit(1)
    show(context, found, reckoned)
    sys.exit(not all(finding.ready for finding in found))


def show(context: Context, found: list[Finding], reckoned: list[Cost]) -> None:
    """A line for each finding, a table of costs."""
    for finding in found:
        print(f"{'ok' if finding.ready else 'MISSING':8} {finding.about:12} {finding.says}")
    unit = "GPU" if context.params.resources_of("bank").gpus else "core"
    cost = Table("stage", "tasks", f"{unit} hours, estimated", "GB on disk")
    for row in reckoned:
        cost.add_row(row.stage, str(row.tasks or ""), _hours(row.hours), f"{row.gigabytes:.1f}")
    total = sum(row.hours or 0 for row in reckoned), sum(row.gigabytes for row in reckoned)
    cost.add_row("all", "", _hours(total[0]), f"{total[1]:.1f}")
    Console().print(cost)
    counted: Any = (
        "as measured on one core of an AMD EPYC" if unit == "core" else "on an RTX 4090, of which none was measured"
    )
    print(f"Hours are {counted}; {COSTS} says how they are reckoned. Sizes of LoRAs are exact, of pictures assumed.")


def _hours(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}" if value < 1 else f"{value:.1f}"


if __name__ == "__main__":
    main()
