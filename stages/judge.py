"""Stage judge: how far the judge can be trusted, on renderings of the bank whose answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorarar.files import write_json
from lorarar.scoring.clip import Clip
from lorarar.scoring.dino import Dino
from lorarar.scoring.examination import examine, similarity_auc, wordings
from lorarar.scoring.judges import JudgePrompts, Kind
from stages import scorers
from stages.context import Context
from stages.run import run

CODE = [
    "lorarar/catalog.py",
    "lorarar/pocket/artwork.py",
    "lorarar/pocket/shards.py",
    "lorarar/pocket/styles.py",
    "lorarar/pocket/views.py",
    "lorarar/pocket/workshop.py",
    "lorarar/pocket/world.py",
    "stages/judge.py",
]


def main(context: Context) -> None:
    """Ask about right and wrong pairs, some of the wrong ones hard, and write results/<base>/judge.json."""
    import torch

    from lorarar.pocket.views import RoundTrip
    from lorarar.pocket.workshop import Workshop
    from lorarar.pocket.world import World

    torch.set_num_threads(context.workers)
    number, resamples = context.knobs.score.judge_questions, context.knobs.score.resamples
    by = scorers.load(scorers.named(context))
    seed = context.seed("judge")
    world = [context.data / "world.yaml", Path("data/styles.csv"), Path("data/subjects.csv")]
    store = context.store("judge", CODE, context.data / "base" / "vae", *world)
    shop = Workshop(
        world=World.load(),
        prompts=scorers.PROMPTS,
        degrade=RoundTrip(context.data / "base" / "vae"),
        # The renderings depend on more than the workshop names them by.
        work=store.root / store.key({"seed": seed}, []),
        seed=seed,
    )
    figures: dict[str, Any] = {
        "judge": by.judge.name,
        "n": number,
        # A judge that reads no prompt has no wording whose doing its answers could be.
        "reads_prompts": by.judge.prompts is not None,
        "provenance": scorers.provenance(context, by.models),
    }
    variants = JudgePrompts.variants(scorers.PROMPTS)
    similarities: tuple[tuple[Kind, str, Clip | Dino], ...] = (
        ("subject", "dino", by.dino),
        ("style", "clip_i", by.clip),
    )
    for kind, name, model in similarities:
        pairs = shop.bank_pairs(kind, number)
        found: dict[str, Any] = examine(by.judge, kind, pairs, seed, resamples)
        found |= {f"{name}_{key}": value for key, value in similarity_auc(model, pairs, seed, resamples).items()}
        if by.judge.prompts:
            found["wordings"] = wordings(by.judge, kind, pairs, variants)
        figures |= {f"{kind}_{key}": value for key, value in found.items()}
    write_json(context.results / "judge.json", figures)


if __name__ == "__main__":
    run(main)
