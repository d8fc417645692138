"""Stage hypernet: train the hypernetwork of LoRA.rar on pairs of the training split (Algorithm 1)."""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path
from typing import Any

from lorarar.files import atomic
from slurm.job import asked_to_stop
from slurm.task import state
from stages.shared.bank_members import described, entry
from stages.shared.context import Context, backbone, collect
from stages.shared.entry_point import run

CODE = [
    "lorarar/lora/adapter.py",
    "lorarar/diffusion/backbone.py",
    "lorarar/training/checkpoint.py",
    "lorarar/device.py",
    "lorarar/lora",
    "lorarar/diffusion/hub.py",
    "lorarar/merge/hypernet.py",
    "lorarar/training/hypernet.py",
    "lorarar/merge/columns.py",
    "lorarar/training/objective.py",
    "lorarar/parallel.py",
    "lorarar/diffusion/vae.py",
    "lorarar/training/references.py",
    "stages/shared/bank_members.py",
    "stages/hypernet.py",
]


def fit(
    folder: Path,
    base: dict[str, Any],
    resolution: int,
    contents: list[dict[str, Any]],
    styles: list[dict[str, Any]],
    network: dict[str, Any],
    settings: dict[str, Any],
    seed: int,
) -> None:
    """Task: train on the pairs of these members, or go on from the state of an interrupted attempt."""
    from tqdm import tqdm

    from lorarar.merge.hypernet import HyperNetwork
    from lorarar.training.checkpoint import Checkpoint
    from lorarar.training.hypernet import train

    model = backbone(**base)
    banks = [[entry(model, resolution, **member) for member in members] for members in (contents, styles)]
    made = HyperNetwork.for_adapter(banks[0][0].adapter, seed=seed, **network)
    interval = 0.1 if sys.stderr.isatty() else 15
    with tqdm(total=settings["steps"], desc="hypernet", unit="step", mininterval=interval, leave=False) as bar:

        def show(step: int, _: Any) -> None:
            bar.update(step - bar.n)

        history = train(
            made,
            model,
            *banks,
            **settings,
            seed=seed,
            checkpoint=Checkpoint(state(folder), stop=asked_to_stop),
            progress=show,
        )
    made.save(folder / "hypernet.safetensors")
    with (folder / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "loss", "content", "style", "orthogonality"])
        for row in history:
            terms = [row[name] for name in ("total", "content", "style", "orthogonality")]
            writer.writerow([row["step"], *(f"{term:.6g}" for term in terms)])


def main(context: Context) -> None:
    """Train it, if that has not been done."""
    settings, backbone_knobs = context.knobs.hypernet.model_dump(), context.knobs.backbone
    banks = [[m for m in bank if m.split == "train"] for bank in (context.subjects, context.styles)]
    contents, styles = ([described(context, member) for member in bank] for bank in banks)
    if (prompt := settings.pop("style_prompt")) != "own":
        styles = [style | {"prompt": prompt} for style in styles]
    arguments = {
        "base": context.model(training=True),
        "resolution": backbone_knobs.resolution,
        "contents": contents,
        "styles": styles,
        "network": {name: settings.pop(name) for name in ("guided", "constants", "initial", "scale", "context")},
        "settings": settings | {"gradient_checkpointing": backbone_knobs.gradient_checkpointing},
        "seed": context.seed("hypernet"),
    }
    reads = [path for bank in banks for member in bank for path in (context.adapter(member), *context.pictures(member))]
    store = context.store("hypernet", CODE, context.data / "base")
    folder = context.fan_out(store, fit, {"hypernet": (arguments, reads)}, "hypernet")["hypernet"]
    collect(context.artifacts / "hypernet", {"hypernet.safetensors": folder / "hypernet.safetensors"})
    with atomic(context.results / "plots" / "hypernet.csv") as temporary:
        shutil.copyfile(folder / "history.csv", temporary)


if __name__ == "__main__":
    run(main)
