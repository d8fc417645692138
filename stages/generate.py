"""Stage generate: sample the images of every method on every split, from the same seeds for all methods."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarar import pictures
from lorarar.errors import UserError
from slurm.task import Task
from stages.shared.base_model import Model, base_model
from stages.shared.context import Context, Group, collect, present
from stages.shared.entry_point import run
from stages.shared.sample_task import Sample

DRAWING = "lorarar/pocket/world"
"""The code that only drawn truths depend on: sampled images stay when it changes."""


@dataclass(frozen=True)
class DrawTruth:
    """Renders the known answer of one pair; with `vae` the VAE encodes and decodes it."""

    model: Model
    subject: str
    style: str
    seeds: list[int]
    vae: bool
    scheme: str

    def run(self, folder: Path) -> None:
        from lorarar.diffusion.backbone import to_images
        from lorarar.pocket.world.world import World

        world = World.load(scheme=self.scheme)
        truth = [world.truth(self.subject, self.style, seed) for seed in self.seeds]
        if self.vae:
            model = self.model.load()
            truth = to_images(model.decode(model.encode_images(pictures.as_tensor(truth))))
        for index, image in enumerate(truth):
            pictures.write(folder / f"{index:02}.png", image)


def main(context: Context) -> None:
    """Sample the pairs that are not there yet."""
    sampled: list[Task] = []
    drawn: list[Task] = []
    merged = context.artifacts / "merge"
    for method in context.params.evaluate.methods:
        if method not in context.methods:
            print(f"generate {method}: no images: the truth of {context.base}'s photographs is not known")
        plan = _read(merged / method / "plan.json")
        for split in context.params.evaluate.splits:
            for pair, entry in _split(plan, split, merged / method).items():
                task = _task(context, method, split, pair, entry)
                (drawn if isinstance(task.work, DrawTruth) else sampled).append(task)
    base = context.data / "base"
    found = context.fan_out(
        Group(context.store("generate", base, without=DRAWING), sampled, "generate"),
        Group(context.store("generate", base), drawn, "generate truth"),
    )
    collect(context.artifacts / "generate", found[0] | found[1])
    for method in context.params.evaluate.methods:
        for split in context.params.evaluate.splits:
            (context.artifacts / "generate" / method / split).mkdir(parents=True, exist_ok=True)


def _task(context: Context, method: str, split: str, pair: str, entry: dict[str, Any]) -> Task:
    settings = context.knobs.generate.model_dump()
    # The same seeds for every method.
    seeds = [context.seed("generate", pair, index) for index in range(settings.pop("images_per_pair"))]
    name, model = f"{method}/{split}/{pair}", base_model(context)
    if entry["prompt"] is None:
        subject, style = pair.split("+")
        scheme = context.params.evaluate.scheme
        return Task(name, DrawTruth(model, subject, style, seeds, entry["vae"], scheme), [context.data / "world.yaml"])
    adapter = context.artifacts / "merge" / method / f"{pair}.safetensors" if entry["adapter"] else None
    work = Sample(model, str(adapter) if adapter else None, entry["prompt"], seeds, settings, entry["schedule"])
    return Task(name, work, [adapter] if adapter else [])


def _read(path: Path) -> Any:
    try:
        return json.loads(present(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); run `dvc repro merge`") from None


def _split(plan: Any, split: str, folder: Path) -> dict[str, Any]:
    if not isinstance(plan, dict) or split not in plan:
        raise UserError(f"{folder / 'plan.json'}: no plan for {split}; run `dvc repro merge`")
    return plan[split]


if __name__ == "__main__":
    run(main)
