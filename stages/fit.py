"""Stage fit: train what methods need before they can merge, such as the hypernetwork of LoRA.rar."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from lorarar.data.catalog import Style, Subject, pair_name
from lorarar.files import atomic
from slurm.task import Task
from stages.shared.bank_members import bank_member
from stages.shared.base_model import training_setting
from stages.shared.context import Context, Group, collect
from stages.shared.entry_point import run
from stages.shared.trained import HISTORY, TRAINED, Trained, write_history


def main(context: Context) -> None:
    """Train every row whose method is evaluated; of the others the folder is empty."""
    groups = [
        Group(
            context.store("fit", context.data / "base", name=row.name),
            tasks(context, row) if row.method in context.params.evaluate.methods else [],
            row.name,
        )
        for row in TRAINED.values()
    ]
    for row, done in zip(TRAINED.values(), context.fan_out(*groups), strict=True):
        collect(context.artifacts / row.name, {f"{name}.safetensors": done[name] / row.file for name in done})
        if not row.per_pair:
            with atomic(context.results / "plots" / f"{row.name}.csv") as temporary:
                shutil.copyfile(done[row.name] / HISTORY, temporary) if done else write_history(temporary, [])


def tasks(context: Context, row: Trained) -> list[Task]:
    """The tasks of a row: one for each evaluated pair, or one on the whole training split."""
    if row.per_pair:
        return [_task(context, row, pair_name(*pair), [pair[0]], [pair[1]]) for pair in context.evaluated]
    subjects = [subject for subject in context.subjects if subject.split == "train"]
    styles = [style for style in context.styles if style.split == "train"]
    return [_task(context, row, row.name, subjects, styles)]


def _task(context: Context, row: Trained, name: str, subjects: list[Subject], styles: list[Style]) -> Task:
    knobs = getattr(context.knobs, row.name).model_dump()
    prompt = knobs.pop("style_prompt", "own")
    contents = [bank_member(context, subject, row.reads_adapters) for subject in subjects]
    own = [bank_member(context, style, row.reads_adapters) for style in styles]
    # The released code trains with one text for all styles.
    looks = own if prompt == "own" else [replace(one, prompt=prompt) for one in own]
    seed = context.seed(row.name, name) if row.per_pair else context.seed(row.name)
    reads: list[Path | str] = [path for member in (*contents, *looks) for path in member.images]
    if row.reads_adapters:
        reads += [member.adapter for member in (*contents, *looks) if member.adapter]
    return Task(name, row.work(training_setting(context), contents, looks, knobs, seed), reads)


if __name__ == "__main__":
    run(main)
