"""Forecast of the cost of each stage, if nothing is done yet, from data/costs.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lorarar.merging.registry import METHODS
from lorarar.scoring.judges import JudgePrompts
from stages.shared.context import Context
from stages.shared.flops import Counts
from stages.shared.schema import Training
from stages.shared.scoring_models import PROMPTS
from stages.shared.trained import TRAINED

COSTS = Path("data/costs.yaml")


@dataclass(frozen=True)
class Cost:
    """Forecast of a stage: `hours` of a GPU, or of a core for a base that needs none; None if unknown."""

    stage: str
    tasks: int
    hours: float | None
    gigabytes: float


def costs(context: Context) -> list[Cost]:
    """One row for each stage whose tasks take long or fill the disk.

    Files of `artifacts/` count twice, as DVC's cache has them too, unless it is set to links; what tasks made a third
    time, as finished tasks are kept.
    """
    table, counts = cost_table(context)
    assumed, measured = table["assumed"], table["measured"].get(context.base, {})
    knobs, methods = context.knobs, context.methods
    area = (knobs.backbone.resolution / 1024) ** 2
    counts, lora = counts.scaled(area), counts.lora(knobs.bank.rank)
    checkpointing = knobs.backbone.gradient_checkpointing
    pairs, members = context.evaluated, context.members
    merging = [name for name in methods if name in METHODS]
    # Merged LoRAs have both ranks, and a schedule is two LoRAs.
    merged = 2 * len(merging) * context.params.keep_merged
    images = knobs.generate.images_per_pair * len(pairs) * len(methods)
    questions = sum(subject.images + 1 for subject, _ in pairs) * knobs.generate.images_per_pair * len(methods)
    # The judge in the paper's words is asked in stage score already.
    rewordings = len(JudgePrompts.variants(PROMPTS)) - 1 + len(knobs.score.ranking.judges)
    share = min(knobs.score.ranking.images / knobs.generate.images_per_pair, 1) * len(merging) / len(methods)

    def training(one: Training, pictures: int) -> float:
        return counts.training(one.steps, one.batch_size, checkpointing, pictures)

    bank = sum(training(knobs.bank.subject, s.images) for s in context.subjects)
    bank += len(context.styles) * training(knobs.bank.style, 1)
    picture = assumed["picture_mb"] * area / 1e3
    tasks = len(pairs) * len(methods)
    sampling = images * counts.sampling(knobs.generate.steps, knobs.generate.guidance)
    rows: list[tuple[str, int, float, float]] = [("bank", len(members), bank, 3 * lora * len(members))]
    for row in TRAINED.values():
        number = (len(pairs) if row.per_pair else 1) * (row.method in merging)
        work = number * row.tflop(counts, getattr(knobs, row.name), checkpointing)
        rows.append((row.name, number, work, 3 * lora * number * row.is_adapter))
    rows += [
        ("merge", 0, 0.0, 2 * lora * merged * len(pairs)),
        ("generate", tasks, sampling, 3 * picture * images),
        ("score", tasks, questions * assumed["question"], 0.0),
        ("ranking", len(pairs) * len(merging), questions * share * rewordings * assumed["question"], 0.0),
    ]

    def hours(stage: str, tasks: int, tflop: float) -> float | None:
        if not tasks:
            return 0.0
        if not counts.forward:
            return tasks * measured[stage] / 3600 if stage in measured else None
        return tflop / assumed["tflop_per_second"] / 3600

    return [Cost(stage, tasks, hours(stage, tasks, tflop), size) for stage, tasks, tflop, size in rows]


def gpu_gigabytes(context: Context) -> float:
    """GPU memory of a training step: weights, factors with gradients and AdamW's state, and activations."""
    table, counts = cost_table(context)
    knobs = context.knobs
    width = 4 if knobs.backbone.training_dtype == "float32" else 2
    held = counts.training_memory(knobs.bank.rank, width, knobs.backbone.eight_bit_adam)
    return held + table["assumed"]["activations_gb"]


def cost_table(context: Context) -> tuple[dict[str, Any], Counts]:
    """The content of data/costs.yaml, and its counts of the chosen base."""
    table = yaml.safe_load(COSTS.read_text(encoding="utf-8"))
    return table, Counts(**table["counted"][context.base])
