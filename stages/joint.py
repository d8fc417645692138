"""Stage joint: one LoRA trained on subject and style together, for every evaluated pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorarar import pictures
from lorarar.data.catalog import pair_name
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
    "lorarar/merge/joint.py",
    "lorarar/diffusion/vae.py",
    "lorarar/training/references.py",
    "stages/joint.py",
]


def train(
    folder: Path,
    base: dict[str, Any],
    resolution: int,
    content: dict[str, Any],
    style: dict[str, Any],
    rank: int,
    training: dict[str, Any],
    seed: int,
) -> None:
    """Task: train the adapter of one pair."""
    from lorarar.diffusion.backbone import to_tensor
    from lorarar.training import joint
    from lorarar.training.checkpoint import Checkpoint
    from lorarar.training.references import fit

    concepts: list[Any] = []
    for member in (content, style):
        images = [fit(pictures.read(path), resolution) for path in member["images"]]
        concepts += [to_tensor(images), [member["prompt"]] * len(images)]
    checkpoint = Checkpoint(state(folder), stop=asked_to_stop)
    adapter = joint.train(backbone(**base), *concepts, rank=rank, seed=seed, checkpoint=checkpoint, **training)
    adapter.save(folder / "adapter.safetensors")


def main(context: Context) -> None:
    """Train those that are not there yet; none at all if joint training is not compared."""
    tasks: dict[str, tuple[dict[str, Any], list[Path]]] = {}
    for pair in context.evaluated if "joint" in context.params.evaluate.methods else []:
        name = pair_name(*pair)
        content, style = (
            {"images": [str(path) for path in context.pictures(member)], "prompt": member.prompt} for member in pair
        )
        arguments = {
            "base": context.model(training=True),
            "resolution": context.knobs.backbone.resolution,
            "content": content,
            "style": style,
            "rank": context.knobs.bank.rank,
            "training": context.dreambooth(context.knobs.joint),
            "seed": context.seed("joint", name),
        }
        tasks[name] = (arguments, [path for member in pair for path in context.pictures(member)])
    done = context.fan_out(context.store("joint", CODE, context.data / "base"), train, tasks, "joint")
    collect(
        context.artifacts / "joint",
        {f"{name}.safetensors": folder / "adapter.safetensors" for name, folder in done.items()},
    )


if __name__ == "__main__":
    run(main)
