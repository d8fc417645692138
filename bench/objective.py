"""Computes the merging loss, Eq. 3 of LoRA.rar, of simple merges of the validation pairs.

The loss is what LoRA.rar and ZipLoRA minimise. Where it prefers a merge that MARS² does not, they cannot help it.
Needs the LoRA bank: run `dvc repro bank` first. Takes about a minute.

    python -m bench.objective
"""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from lorarar.merging import columns
from lorarar.randomness import generator
from lorarar.training.objective import merging_loss
from stages.shared.bank_members import bank_member
from stages.shared.base_model import training_setting
from stages.shared.context import Context

MERGES = {
    "content LoRA alone": (1.0, 0.0),
    "style LoRA alone": (0.0, 1.0),
    "average": (0.5, 0.5),
    "direct": (1.0, 1.0),
    "content 1, style 1/2": (1.0, 0.5),
    "content 1/2, style 1": (0.5, 1.0),
}
LATENTS = 16  # of content, and as many of style, for each pair


@torch.no_grad()
def main() -> None:
    """Print a table: both fidelity terms and their sum, as the paper's norm and as the released code's squares."""
    context = Context.load()
    setting = training_setting(context)
    model = setting.model.load()
    pairs = context.pairs("val")
    members = {member.name: member for pair in pairs for member in pair}
    entries = {
        name: bank_member(context, member).load(setting.model, setting.resolution) for name, member in members.items()
    }
    found: dict[str, list[float]] = {}
    for name, weights in tqdm(MERGES.items(), unit="merge"):
        rows = []
        for number, (subject, style) in enumerate(pairs):
            content, other = entries[subject.name], entries[style.name]
            merged = columns.merge(content.adapter, other.adapter, {}, default=weights).computed()
            # No coefficients, so no overlap: one layer's zeros stand for all.
            none = {"": (torch.zeros(1), torch.zeros(1))}
            row: list[float] = []
            for fidelity in ("norm", "mse"):
                random = generator(context.seed("bench.objective"), number)
                draws = [one.references.draw(model, LATENTS, random) for one in (content, other)]
                with merging_loss(
                    model, content.adapter, other.adapter, merged, none, *draws, fidelity=fidelity
                ) as loss:
                    row += [float(loss.content), float(loss.style), float(loss.total)]
            rows.append(row)
        found[name] = np.mean(rows, axis=0).tolist()
    print(
        f"Eq. 3 without its last term, means over {len(pairs)} validation pairs, {LATENTS} + {LATENTS} latents each.\n"
    )
    print("| merge | content | style | sum | content, squares | style, squares | sum, squares |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, row in sorted(found.items(), key=lambda item: item[1][2]):
        print(f"| {name} | {' | '.join(f'{value:.3g}' for value in row)} |")


if __name__ == "__main__":
    main()
