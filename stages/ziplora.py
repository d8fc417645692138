"""Stage ziplora: fit ZipLoRA's coefficients to every evaluated pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorarar.data.catalog import pair_name
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
    "lorarar/merge/columns.py",
    "lorarar/merge/ziplora.py",
    "lorarar/training/objective.py",
    "lorarar/parallel.py",
    "lorarar/diffusion/vae.py",
    "lorarar/training/references.py",
    "stages/shared/bank_members.py",
    "stages/ziplora.py",
]


def fit(
    folder: Path,
    base: dict[str, Any],
    resolution: int,
    content: dict[str, Any],
    style: dict[str, Any],
    settings: dict[str, Any],
    seed: int,
) -> None:
    """Task: fit the coefficients of one pair."""
    from lorarar.merge import columns
    from lorarar.training import ziplora
    from lorarar.training.checkpoint import Checkpoint

    model = backbone(**base)
    members = [entry(model, resolution, **member) for member in (content, style)]
    coefficients = ziplora.optimise(
        model,
        members[0].adapter,
        members[1].adapter,
        members[0].references,
        members[1].references,
        **settings,
        seed=seed,
        checkpoint=Checkpoint(state(folder), stop=asked_to_stop),
    )
    columns.save(folder / "coefficients.safetensors", coefficients, {"method": "ziplora"})


def main(context: Context) -> None:
    """Fit those pairs that are not there yet; none at all if ZipLoRA is not compared."""
    knobs = context.knobs.backbone
    settings = context.knobs.ziplora.model_dump() | {"gradient_checkpointing": knobs.gradient_checkpointing}
    tasks: dict[str, tuple[dict[str, Any], list[Path]]] = {}
    for pair in context.evaluated if "ziplora" in context.params.evaluate.methods else []:
        name = pair_name(*pair)
        content, style = (described(context, member) for member in pair)
        arguments = {
            "base": context.model(training=True),
            "resolution": knobs.resolution,
            "content": content,
            "style": style,
            "settings": settings,
            "seed": context.seed("ziplora", name),
        }
        reads = [path for member in pair for path in (context.adapter(member), *context.pictures(member))]
        tasks[name] = (arguments, reads)
    done = context.fan_out(context.store("ziplora", CODE, context.data / "base"), fit, tasks, "ziplora")
    collect(
        context.artifacts / "ziplora",
        {f"{name}.safetensors": folder / "coefficients.safetensors" for name, folder in done.items()},
    )


if __name__ == "__main__":
    run(main)
