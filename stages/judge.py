"""Stage judge: how far the judge can be trusted, on renderings of the bank whose answer is known."""

from __future__ import annotations

from pathlib import Path

from lorarar.files import write_json
from lorarar.scoring.judges import JudgePrompts, Kind, Question, load_judge
from lorarar.scoring.statistics import balanced_accuracy
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
PROMPTS = Path("data/prompts.yaml")


def main(context: Context) -> None:
    """Ask about right and wrong pairs, half of the wrong ones hard, and write results/<base>/judge.json."""
    import torch

    from lorarar.pocket.views import RoundTrip
    from lorarar.pocket.workshop import Workshop
    from lorarar.pocket.world import World

    torch.set_num_threads(context.workers)
    number = context.knobs.score.judge_questions
    judge = load_judge(context.data / "judges" / "critic", JudgePrompts.load(PROMPTS))
    seed = context.seed("judge")
    world = [context.data / "world.yaml", Path("data/styles.csv"), Path("data/subjects.csv")]
    store = context.store("judge", CODE, context.data / "base" / "vae", *world)
    shop = Workshop(
        world=World.load(),
        prompts=PROMPTS,
        degrade=RoundTrip(context.data / "base" / "vae"),
        # The renderings depend on more than the workshop names them by.
        work=store.root / store.key({"seed": seed}, []),
        seed=seed,
    )
    figures: dict[str, float | str] = {"judge": judge.name, "n": number}
    kinds: tuple[Kind, ...] = ("subject", "style")
    for kind in kinds:
        pairs = shop.bank_pairs(kind, number)
        questions = [Question(kind, a, b) for a, b in zip(pairs["reference"], pairs["test"], strict=True)]
        answers = [verdict.yes for verdict in judge.answer(questions)]
        accuracy = balanced_accuracy(pairs["label"].tolist(), answers)
        figures |= {
            f"{kind}_balanced_accuracy": round(accuracy.balanced, 6),
            f"{kind}_false_yes": round(accuracy.false_yes, 6),
            f"{kind}_false_no": round(accuracy.false_no, 6),
        }
    write_json(context.results / "judge.json", figures)


if __name__ == "__main__":
    run(main)
