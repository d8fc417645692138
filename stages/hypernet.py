"""Stage hypernet: train the hypernetwork of LoRA.rar on pairs of the training split (Algorithm 1)."""

from __future__ import annotations

import csv
import sys
from typing import Any

from lorarar.files import atomic
from stages.context import Context, backbone, present
from stages.entries import entry
from stages.run import run

CODE = [
    "lorarar/adapter.py",
    "lorarar/backbone.py",
    "lorarar/checkpoint.py",
    "lorarar/formats",
    "lorarar/hypernet.py",
    "lorarar/hypernet_training.py",
    "lorarar/merge/columns.py",
    "lorarar/objective.py",
    "lorarar/pocket/vae.py",
    "lorarar/references.py",
    "stages/entries.py",
    "stages/hypernet.py",
]


def main(context: Context) -> None:
    """Train, or go on from the checkpoint of an interrupted run of the same content."""
    import torch
    from tqdm import tqdm

    from lorarar.checkpoint import Checkpoint
    from lorarar.hypernet import HyperNetwork
    from lorarar.hypernet_training import train

    # One training, so its operations share the cores.
    torch.set_num_threads(context.workers)
    base = context.data / "base"
    members = [member for member in context.members if member.split == "train"]
    read = [present(path) for member in members for path in (context.adapter(member), *context.pictures(member))]
    settings = context.knobs.hypernet.model_dump()
    seed = context.seed("hypernet")
    store = context.store("hypernet", CODE, base)
    # The number of threads is part of the key, as sums may round differently.
    key = store.key({**settings, "seed": seed, "threads": context.workers}, read)

    entries = {
        member.name: entry(base, context.adapter(member), tuple(context.pictures(member)), member.prompt)
        for member in members
    }
    contents = [entries[subject.name] for subject in context.subjects if subject.name in entries]
    styles = [entries[style.name] for style in context.styles if style.name in entries]
    guided, initial = settings.pop("guided"), settings.pop("initial")
    network = HyperNetwork.for_adapter(contents[0].adapter, guided, seed=seed, initial=initial)
    interval = 0.1 if sys.stderr.isatty() else 15
    with tqdm(total=settings["steps"], desc="hypernet", unit="step", mininterval=interval) as bar:

        def show(step: int, _: Any) -> None:
            bar.update(step - bar.n)

        history = train(
            network,
            backbone(base, exact=True),
            contents,
            styles,
            **settings,
            seed=seed,
            checkpoint=Checkpoint(store.root / f"{key}.pt"),
            progress=show,
        )
    network.save(context.artifacts / "hypernet" / "hypernet.safetensors")
    with (
        atomic(context.results / "plots" / "hypernet.csv") as temporary,
        temporary.open("w", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "loss", "content", "style", "orthogonality"])
        for row in history:
            terms = [row[name] for name in ("total", "content", "style", "orthogonality")]
            writer.writerow([row["step"], *(f"{term:.6g}" for term in terms)])


if __name__ == "__main__":
    run(main)
