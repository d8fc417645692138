"""Draw a subject in new situations, plain and in a style, by every method (Fig. A11, A13 and 1 of the paper).

    python -m experiments.recontextualise dog8 oil_painting2

Reads artifacts of `dvc repro` and writes results/<base>/experiments/recontextualised-<subject>+<style>.webp. No judge
scores the images, and a base that knows no such situations (pocket) shows none.
"""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from lorarar import pictures
from lorarar.data.catalog import pair_name
from lorarar.diffusion.sampling import generate
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from lorarar.merging.registry import METHODS
from lorarar.report import figures, tables
from stages.shared.base_model import base_model
from stages.shared.context import Context, present
from stages.shared.entry_point import run
from stages.shared.merging import merge_of


def main(context: Context, of_subject: str, of_style: str) -> None:
    """Draw one image for every situation and method, all from the same seed."""
    torch.set_num_threads(1)
    subject, style = context.catalog.subjects.get(of_subject), context.catalog.styles.get(of_style)
    if subject is None or style is None:
        raise UserError(f"{of_subject} {of_style}: not a subject and a style; their names stand in data/*.csv")
    prompts = yaml.safe_load(Path("data/prompts.yaml").read_text(encoding="utf-8"))
    situations = prompts["recontextualisation"] + prompts["recontextualisation_figure_1"]
    methods = [method for method in context.params.evaluate.methods if method in METHODS]
    merged = {method: merge_of(context, method, (subject, style)) for method in methods}
    for path in (path for merge in merged.values() for path in merge.reads):
        present(path)
    model, settings = base_model(context).load(), context.knobs.generate.model_dump(exclude={"images_per_pair"})
    adapters = {method: merge.adapter() for method, merge in merged.items()}
    content, rows = Adapter.load(context.adapter(subject)), []
    references = [pictures.read(context.pictures(member)[0]) for member in (subject, style)]
    for situation in situations:
        print(situation, flush=True)
        plain = f"{subject.prompt} {situation}"
        seeds = [context.seed("recontextualise", situation)]
        drawn = [generate(model, content, plain, seeds=seeds, **settings)[0]]
        for method in methods:
            drawn += generate(model, adapters[method], f"{plain} in {style.words} style", seeds=seeds, **settings)
        rows.append((f"{subject.title} {situation}, in {style.title}", [*references, *drawn]))
    path = context.results / "experiments" / f"recontextualised-{pair_name(subject, style)}.webp"
    figures.grid(path, ["Subject", "Style", "Content LoRA alone", *map(tables.title, methods)], rows)
    print(path)


if __name__ == "__main__":
    run(main, "subject", "style")
