"""Stage bank: one DreamBooth LoRA for every subject and every style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorarar import pictures
from lorarar.data.catalog import Subject
from slurm.job import asked_to_stop
from slurm.task import state
from stages.shared.context import Context, backbone, collect
from stages.shared.entry_point import run

CODE = [
    "lorarar/lora/adapter.py",
    "lorarar/diffusion/backbone.py",
    "lorarar/training/checkpoint.py",
    "lorarar/device.py",
    "lorarar/training/dreambooth.py",
    "lorarar/lora",
    "lorarar/diffusion/hub.py",
    "lorarar/diffusion/vae.py",
    "lorarar/training/references.py",
    "stages/bank.py",
]


def train(
    folder: Path,
    base: dict[str, Any],
    images: list[str],
    resolution: int,
    prompt: str,
    rank: int,
    training: dict[str, Any],
    seed: int,
) -> None:
    """Task: train one adapter on some pictures."""
    from lorarar.diffusion.backbone import to_tensor
    from lorarar.training.checkpoint import Checkpoint
    from lorarar.training.dreambooth import train_adapter
    from lorarar.training.references import fit

    references = [fit(pictures.read(path), resolution) for path in images]
    adapter = train_adapter(
        backbone(**base),
        to_tensor(references),
        [prompt] * len(references),
        rank=rank,
        seed=seed,
        checkpoint=Checkpoint(state(folder), stop=asked_to_stop),
        **training,
    )
    adapter.metadata["prompt"] = prompt
    adapter.save(folder / "adapter.safetensors")


def main(context: Context) -> None:
    """Train those adapters that are not there yet."""
    knobs = context.knobs.bank
    tasks = {}
    for entry in context.members:
        images = context.pictures(entry)
        training = knobs.subject if isinstance(entry, Subject) else knobs.style
        arguments = {
            "base": context.model(training=True),
            "images": [str(path) for path in images],
            "resolution": context.knobs.backbone.resolution,
            "prompt": entry.prompt,
            "rank": knobs.rank,
            "training": context.dreambooth(training),
            "seed": context.seed("bank", entry.name),
        }
        tasks[entry.name] = (arguments, images)
    done = context.fan_out(context.store("bank", CODE, context.data / "base"), train, tasks, "bank")
    collect(
        context.artifacts / "bank",
        {f"{name}.safetensors": folder / "adapter.safetensors" for name, folder in done.items()},
    )


if __name__ == "__main__":
    run(main)
