"""Checks of this machine, and a forecast of costs, before anything starts: `lorarar doctor`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from lorarar.diffusion import hub
from lorarar.errors import UserError
from lorarar.scoring.judges import HUB_ID
from slurm.fanout import choose
from stages.shared.context import Context
from stages.shared.forecast import COSTS, Cost, costs, gpu_gigabytes
from stages.shared.integrity import verify_shipped


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    about: str
    ready: bool
    says: str


def examine(context: Context, download: bool = False) -> Iterator[Finding]:
    """Check everything that a run needs; with `download`, fetch missing models first."""
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


def _tried(about: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(about, True, look())
    except UserError as error:
        return Finding(about, False, str(error))


def _weights(context: Context, download: bool) -> str:
    from lorarar.diffusion.backbone import check_files

    base = context.data / "base"
    if not (base / hub.NAME).exists():
        verify_shipped(context.data)
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
        return f"{name}: a server, which is not checked"
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
    if not context.params.jobs["bank"].gpus:
        return Finding("GPU", True, f"none needed; computes in {_dtype(context)}")
    wanted = f"about {gpu_gigabytes(context):.0f} GB of GPU memory needed"
    if torch.cuda.is_available():
        name, size = torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / 1e9
        return Finding("GPU", size >= gpu_gigabytes(context), f"{name}, {size:.0f} GB, {_dtype(context)}; {wanted}")
    if choose(context.params.executor) == "slurm":
        return Finding("GPU", True, f"none here; jobs ask Slurm for one; {wanted}")
    return Finding("GPU", False, f"none that PyTorch sees; {wanted}")


def _dtype(context: Context) -> str:
    from lorarar.diffusion.backbone import best_dtype

    if (chosen := context.knobs.backbone.dtype) != "auto":
        return chosen
    dtype, reason = best_dtype()
    return f"{str(dtype).removeprefix('torch.')} ({reason})"


def _memory(context: Context) -> float:
    return max(job.memory_gb for job in context.params.jobs.values())


def main() -> None:
    """Print findings and costs; the exit status is 0 if all is ready, else 1."""
    parser = argparse.ArgumentParser(prog="lorarar doctor", description=__doc__)
    parser.add_argument("--base", help="by default that of params.yaml")
    parser.add_argument("--download", action="store_true", help="fetch models that are not on this machine yet")
    given = parser.parse_args()
    try:
        context = Context.load()
        if given.base:
            if given.base not in context.params.bases:
                raise UserError(f"--base {given.base}: no such base; known: {', '.join(context.params.bases)}")
            chosen = {"base": given.base, "recipe": context.params.bases[given.base].recipe}
            context = replace(context, params=context.params.model_copy(update=chosen))
        found, forecast = list(examine(context, given.download)), costs(context)
    except UserError as error:
        print(*(f"error: {line}" for line in str(error).splitlines()), sep="\n", file=sys.stderr)
        sys.exit(1)
    show(context, found, forecast)
    sys.exit(not all(finding.ready for finding in found))


def show(context: Context, found: list[Finding], forecast: list[Cost]) -> None:
    """A line for each finding, a table of costs."""
    for finding in found:
        print(f"{'ok' if finding.ready else 'MISSING':8} {finding.about:12} {finding.says}")
    unit = "GPU" if context.params.jobs["bank"].gpus else "core"
    cost = Table("stage", "tasks", f"{unit} hours, estimated", "GB on disk")
    for row in forecast:
        cost.add_row(row.stage, str(row.tasks or ""), _hours(row.hours), f"{row.gigabytes:.1f}")
    total = sum(row.hours or 0 for row in forecast), sum(row.gigabytes for row in forecast)
    cost.add_row("all", "", _hours(total[0]), f"{total[1]:.1f}")
    Console().print(cost)
    where = "as measured on one core of an AMD EPYC" if unit == "core" else "on an RTX 4090, of which none was measured"
    print(f"Hours are {where}; {COSTS} explains them. Sizes of LoRAs are exact, those of pictures are assumed.")


def _hours(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}" if value < 1 else f"{value:.1f}"


if __name__ == "__main__":
    main()
