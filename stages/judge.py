"""Stage judge: how far the judge can be trusted, on renderings of the bank whose answer is known."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from lorarar.files import write_json
from stages.shared import scoring_models
from stages.shared.context import Context
from stages.shared.entry_point import run

CODE = [
    "lorarar/data/catalog.py",
    "lorarar/device.py",
    "lorarar/pocket/world/artwork.py",
    "lorarar/pocket/train/shards.py",
    "lorarar/pocket/world/styles.py",
    "lorarar/pocket/train/degradations.py",
    "lorarar/pocket/train/judge_datasets.py",
    "lorarar/pocket/world/world.py",
    "lorarar/scoring",
    "stages/judge.py",
    "stages/shared/scoring_models.py",
]
KINDS = ("subject", "style")


def question(folder: Path, kind: Any, vae: str, names: dict[str, Any], number: int, resamples: int, seed: int) -> None:
    """Task: ask one of MARS²'s two questions about right and wrong pairs, some of the wrong ones hard."""
    from lorarar.pocket.train.degradations import RoundTrip
    from lorarar.pocket.train.judge_datasets import Workshop
    from lorarar.pocket.world.world import World
    from lorarar.scoring.examination import examine, similarity_auc, wordings
    from lorarar.scoring.judges import JudgePrompts

    by = scoring_models.load(names)
    with tempfile.TemporaryDirectory() as renderings:
        shop = Workshop(World.load(), scoring_models.PROMPTS, RoundTrip(Path(vae)), Path(renderings), seed)
        pairs = shop.bank_pairs(kind, number)
    figures: dict[str, Any] = examine(by.judge, kind, pairs, seed, resamples)
    score, model = ("dino", by.dino) if kind == "subject" else ("clip_i", by.clip)
    figures |= {f"{score}_{key}": value for key, value in similarity_auc(model, pairs, seed, resamples).items()}
    # A judge that reads no prompt has no wording whose doing its answers could be.
    if by.judge.prompts:
        figures["wordings"] = wordings(by.judge, kind, pairs, JudgePrompts.variants(scoring_models.PROMPTS))
    about = {"judge": by.judge.name, "reads_prompts": by.judge.prompts is not None, "models": by.models}
    write_json(folder / "figures.json", {"about": about, "figures": figures})


def main(context: Context) -> None:
    """Ask both questions and write results/<base>/judge.json."""
    score = context.knobs.score
    if not context.drawn:
        reason = f"there are no renderings of {context.base}'s photographs whose answer is known to examine a judge on"
        print(f"judge: {reason}")
        write_json(context.results / "judge.json", {"judge": score.judge, "n": 0, "not_examined": reason})
        return
    vae = context.data / "base" / "vae"
    arguments = {
        "vae": str(vae),
        "names": scoring_models.named(context),
        "number": score.judge_questions,
        "resamples": score.resamples,
        "seed": context.seed("judge"),
    }
    world = [context.data / "world.yaml", Path("data/styles.csv"), Path("data/subjects.csv")]
    store = context.store("judge", CODE, vae, context.data / "judges", scoring_models.PROMPTS, *world)
    done = context.fan_out(store, question, {kind: (arguments | {"kind": kind}, []) for kind in KINDS}, "judge")
    found = {kind: json.loads((done[kind] / "figures.json").read_text(encoding="utf-8")) for kind in KINDS}
    about = found[KINDS[0]]["about"]
    figures = {
        "judge": about["judge"],
        "n": score.judge_questions,
        "reads_prompts": about["reads_prompts"],
        "provenance": scoring_models.provenance(context, about["models"]),
    }
    for kind in KINDS:
        figures |= {f"{kind}_{key}": value for key, value in found[kind]["figures"].items()}
    write_json(context.results / "judge.json", figures)


if __name__ == "__main__":
    run(main)
