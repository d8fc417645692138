"""Stage quality: let a recogniser that knows the truth name what base, LoRAs and merges show. Never tuned on."""

from __future__ import annotations

import hashlib
from typing import Any

from lorarar import pictures
from lorarar.files import write_json
from lorarar.pocket import quality
from lorarar.pocket.recogniser import Recogniser
from lorarar.pocket.world.world import World
from slurm.task import Task
from stages.shared.base_model import base_model
from stages.shared.context import Context, Group
from stages.shared.entry_point import run
from stages.shared.sample_task import Sample

IMAGES = 4  # a prompt
OTHERS = 4  # further nouns on which each style is tried


def main(context: Context) -> None:
    """Sample the prompts of the checks, recognise them and the images of all methods."""
    if not context.drawn or context.drawn_scheme != "paper":
        reason = f"no recogniser exists for {context.base}'s photographs"
        if context.drawn:
            reason = f"no recogniser knows the subjects and styles of the scheme {context.drawn_scheme}"
        print(f"quality: {reason}")
        write_json(context.results / "quality.json", {"not_known": reason, "pairs": {}})
        return
    settings = context.knobs.generate.model_dump(exclude={"images_per_pair"})
    bank = {entry.name for entry in context.members}
    checks = [c for c in quality.checks(World.load(), OTHERS) if c.adapter is None or c.adapter in bank]
    tasks = []
    for check in checks:
        adapter = context.artifacts / "bank" / f"{check.adapter}.safetensors" if check.adapter else None
        seeds = [context.seed("quality", check.prompt, index) for index in range(IMAGES)]
        work = Sample(base_model(context), str(adapter) if adapter else None, check.prompt, seeds, settings)
        tasks.append(Task(_name(check), work, [adapter] if adapter else []))
    (done,) = context.fan_out(Group(context.store("quality", context.data / "base"), tasks, "quality"))

    recogniser = Recogniser.load(context.data / "judges" / "recogniser")
    shown = [(check, pictures.read_all(done[_name(check)])) for check in checks]
    figures: dict[str, Any] = {"base_and_bank": quality.count(recogniser, shown), "pairs": {}}
    for split in context.params.evaluate.splits:
        for method in context.params.evaluate.methods:
            folder = context.artifacts / "generate" / method / split
            answers = [
                answer
                for subject, style in context.pairs(split)
                for answer in quality.joint(
                    recogniser, subject.name, style.name, pictures.read_all(folder / f"{subject.name}+{style.name}")
                )
            ]
            subject_right, style_right = zip(*answers, strict=True)
            figures["pairs"][f"{method}-{split}"] = {
                "subject": round(sum(subject_right) / len(answers), 6),
                "style": round(sum(style_right) / len(answers), 6),
                "both": round(sum(all(answer) for answer in answers) / len(answers), 6),
                "n_images": len(answers),
            }
    write_json(context.results / "quality.json", figures)


def _name(check: quality.Check) -> str:
    return hashlib.sha256(f"{check.adapter} {check.prompt}".encode()).hexdigest()[:16]


if __name__ == "__main__":
    run(main)
