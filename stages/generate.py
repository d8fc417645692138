"""Stage generate: sample the images of every method on every split, from the same seeds for all methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorarar import pictures
from lorarar.data.catalog import Pair, pair_name
from lorarar.data.controls import CONTROLS
from lorarar.merging.registry import METHODS
from slurm.task import Task
from stages.shared.base_model import Model, base_model
from stages.shared.context import Context, Group, collect
from stages.shared.entry_point import run
from stages.shared.merging import SampleMerged, merge_of
from stages.shared.sample_task import Sample

DRAWING = "lorarar/pocket/world"
"""The code that only drawn truths depend on: sampled images stay when it changes."""
BEFORE = (
    "lorarar/merging",
    "lorarar/training",
    "stages/shared/bank_members.py",
    "stages/shared/flops.py",
    "stages/shared/launch.py",
    "stages/shared/trained.py",
)
"""The code that makes adapters: images depend on it by their task's `Merge`, which has the code of its method only."""


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
    for method in context.params.evaluate.methods:
        if method not in context.methods:
            print(f"generate {method}: no images: the truth of {context.base}'s photographs is not known")
            continue
        for split in context.params.evaluate.splits:
            for pair in context.pairs(split):
                task = _task(context, method, split, pair)
                (drawn if isinstance(task.work, DrawTruth) else sampled).append(task)
    base = context.data / "base"
    found = context.fan_out(
        Group(context.store("generate", base, without=(DRAWING, *BEFORE)), sampled, "generate"),
        Group(context.store("generate", base, without=BEFORE), drawn, "generate truth"),
    )
    collect(context.artifacts / "generate", found[0] | found[1])
    for method in context.params.evaluate.methods:
        for split in context.params.evaluate.splits:
            (context.artifacts / "generate" / method / split).mkdir(parents=True, exist_ok=True)


def _task(context: Context, method: str, split: str, pair: Pair) -> Task:
    settings = context.knobs.generate.model_dump()
    # The same seeds for every method.
    seeds = [context.seed("generate", pair_name(*pair), index) for index in range(settings.pop("images_per_pair"))]
    name, model = f"{method}/{split}/{pair_name(*pair)}", base_model(context)
    if method in METHODS:
        merge = merge_of(context, method, pair)
        sample = Sample(model, None, context.catalog.pair_prompt(*pair), seeds, settings)
        return Task(name, SampleMerged(merge, sample), merge.reads)
    control = CONTROLS[method]
    if control.prompt is None:
        subject, style = pair
        work = DrawTruth(model, subject.name, style.name, seeds, control.vae, context.params.evaluate.scheme)
        return Task(name, work, [context.data / "world.yaml"])
    prompt = {"pair": context.catalog.pair_prompt, "class": context.catalog.class_prompt}[control.prompt](*pair)
    applied = {"content": pair[0], "style": pair[1], None: None}[control.adapter]
    reads = [context.adapter(applied)] if applied else []
    return Task(name, Sample(model, str(reads[0]) if reads else None, prompt, seeds, settings), reads)


if __name__ == "__main__":
    run(main)
