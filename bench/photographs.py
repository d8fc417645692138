"""LoRAs of real photographs, trained on the miniature by the very code of stage bank.

The miniature has seen drawings only, and 64 x 64 pixels: what is shown is that photographs go all the way through and
that a LoRA learns from them, not how SDXL would draw them. FOLDER has a folder of pictures for each subject, named as
in data/subjects.csv, such as those of the DreamBooth dataset.

    python -m bench.photographs FOLDER            # the test split's subjects; two minutes on 2 cores
    python -m bench.photographs FOLDER --subject dog8 --steps 400 --sheet sheet.webp
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import mse_loss

from lorarar.data.catalog import Subject
from lorarar.diffusion.backbone import Backbone
from lorarar.diffusion.sampling import generate
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from lorarar.pictures import Picture, as_tensor
from lorarar.randomness import generator
from lorarar.report.figures import grid
from lorarar.scoring.dino import Dino, dino
from lorarar.scoring.folder import read_pictures
from lorarar.training.references import References, centre_crop
from slurm.local import call_all, cores
from stages.bank import TrainAdapter
from stages.shared.bank_members import Member
from stages.shared.base_model import base_model, training_setting
from stages.shared.context import Context

DRAWS = 64  # of noise and timestep, for the loss
SAMPLES = 10
SHOWN = 5


@torch.no_grad()
def loss(model: Backbone, adapter: Adapter | None, references: References) -> float:
    """Mean squared error of the prediction, on draws that no training sees."""
    draw = references.draw(model, DRAWS, generator(0, -1))
    with model.applied(adapter) if adapter else nullcontext():
        return float(mse_loss(model.predict(draw.latents, draw.timesteps, draw.conditioning), draw.target))


def main() -> None:
    """Train, print a JSON object for each subject, and draw the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subject", action="append", help="may be given several times; by default the test split's")
    parser.add_argument("--steps", type=int, help="of training; by default those of params.yaml")
    parser.add_argument("--sheet", type=Path, default=Path("docs/lora-of-photographs.webp"))
    given = parser.parse_args()
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    context = Context.load()
    names = given.subject or [s.name for s in context.catalog.subjects.values() if s.split == "test"]
    if context.base != "pocket" or not set(names) <= context.catalog.subjects.keys():
        raise UserError("this is about the base pocket, and subjects of data/subjects.csv")
    subjects = [context.catalog.subjects[name] for name in names]
    size = context.knobs.backbone.resolution
    photographs = {
        name: [centre_crop(picture, size) for picture in read_pictures(given.folder / name).values()] for name in names
    }
    with tempfile.TemporaryDirectory() as work:
        adapters = trained(context, subjects, given.folder, given.steps, Path(work))
    rows = compare(context, subjects, photographs, adapters)
    columns = [f"{kind} {i}" for kind in ("base", "with LoRA") for i in range(1, SHOWN + 1)]
    grid(given.sheet, columns, rows)


def trained(
    context: Context, subjects: Sequence[Subject], folder: Path, steps: int | None, work: Path
) -> dict[str, Adapter]:
    """Adapters of the subjects' photographs, by the task of stage bank."""
    training = context.knobs.bank.subject.model_dump() | ({"steps": steps} if steps else {})
    calls: dict[str, dict[str, Any]] = {}
    for subject in subjects:
        (work / subject.name).mkdir()
        images = tuple(sorted(str(path) for path in (folder / subject.name).iterdir()))
        member, seed = Member(None, images, subject.prompt), context.seed("bank", subject.name)
        task = TrainAdapter(training_setting(context), member, training, seed)
        calls[subject.name] = {"self": task, "folder": work / subject.name}
    call_all(calls, TrainAdapter.run, cores(), "bank")
    found = {name: Adapter.load(work / name / "adapter.safetensors") for name in calls}
    return {name: adapter.to(torch.float64).to(torch.float32) for name, adapter in found.items()}  # off the disk


def compare(
    context: Context,
    subjects: Sequence[Subject],
    photographs: dict[str, list[Picture]],
    adapters: dict[str, Adapter],
) -> list[tuple[str, list[Picture]]]:
    """Rows of the sheet; figures are printed as they come."""
    model, judge = base_model(context, training=True).load(), Dino.load(context.data / "judges" / "dino")
    settings = context.knobs.generate.model_dump(exclude={"images_per_pair"})
    rows = []
    for subject in subjects:
        own = photographs[subject.name]
        others = [picture for name, pictures in photographs.items() if name != subject.name for picture in pictures]
        references = References.encode(model, as_tensor(own), [subject.prompt] * len(own))
        figures: dict[str, Any] = {"subject": subject.name, "photographs": len(own)}
        shown: list[Picture] = []  # not the photographs, which are not ours to show
        for kind, adapter in (("base", None), ("lora", adapters[subject.name])):
            seeds = [context.seed("bench.photographs", subject.name, index) for index in range(SAMPLES)]
            images = generate(model, adapter, subject.prompt, seeds=seeds, **settings)
            figures[f"{kind}_loss"] = round(loss(model, adapter, references), 4)
            figures[f"{kind}_dino"] = round(float(dino(judge, images, own).mean()), 3)
            if others:
                figures[f"{kind}_dino_others"] = round(float(dino(judge, images, others).mean()), 3)
            shown = [*shown, *images[:SHOWN]]
        print(json.dumps(figures), flush=True)
        rows.append((subject.title, shown))
    return rows


if __name__ == "__main__":
    main()
