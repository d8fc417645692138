"""Stage judge: examine the judge on renderings of the bank whose answer is known."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarar.files import write_json
from lorarar.scoring.judges import Kind
from slurm.task import Task
from stages.shared.context import Context, Group
from stages.shared.entry_point import run
from stages.shared.scoring_models import PROMPTS, ModelNames, model_names, provenance

KINDS: tuple[Kind, ...] = ("subject", "style")


@dataclass(frozen=True)
class AskKnown:
    """Asks one of MARS²'s two questions about right and wrong pairs, some of the wrong ones hard."""

    kind: Kind
    vae: str
    names: ModelNames
    number: int
    resamples: int
    seed: int
    scheme: str

    def run(self, folder: Path) -> None:
        from lorarar.pocket.train.degradations import RoundTrip
        from lorarar.pocket.train.judge_datasets import Workshop
        from lorarar.pocket.world.world import World
        from lorarar.scoring.examination import examine, similarity_auc, wordings
        from lorarar.scoring.judges import JudgePrompts

        by = self.names.load()
        with tempfile.TemporaryDirectory() as renderings:
            shop = Workshop(
                World.load(scheme=self.scheme), PROMPTS, RoundTrip(Path(self.vae)), Path(renderings), self.seed
            )
            pairs = shop.bank_pairs(self.kind, self.number)
        resampling = (self.seed, self.resamples)
        figures: dict[str, Any] = examine(by.judge, self.kind, pairs, *resampling)
        score, model = ("dino", by.dino) if self.kind == "subject" else ("clip_i", by.clip)
        figures |= {f"{score}_{key}": value for key, value in similarity_auc(model, pairs, *resampling).items()}
        if by.judge.prompts:  # the answers of a judge that reads no prompt depend on no wording
            figures["wordings"] = wordings(by.judge, self.kind, pairs, JudgePrompts.variants(PROMPTS))
        about = {"judge": by.judge.name, "reads_prompts": by.judge.prompts is not None, "models": by.models}
        write_json(folder / "figures.json", {"about": about, "figures": figures})


def main(context: Context) -> None:
    """Ask both questions and write results/<base>/judge.json."""
    score = context.knobs.score
    if not context.drawn:
        reason = f"no judge can be examined on {context.base}'s photographs: no pair of them has a known answer"
        print(f"judge: {reason}")
        write_json(context.results / "judge.json", {"judge": score.judge, "n": 0, "not_examined": reason})
        return
    vae, names, seed = context.data / "base" / "vae", model_names(context), context.seed("judge")
    asked = str(vae), names, score.judge_questions, score.resamples, seed, context.drawn_scheme
    tasks = [Task(kind, AskKnown(kind, *asked)) for kind in KINDS]
    world = [context.data / "world.yaml", Path("data/styles.csv"), Path("data/subjects.csv")]
    store = context.store("judge", vae, context.data / "judges", PROMPTS, *world)
    (done,) = context.fan_out(Group(store, tasks, "judge"))
    found = {kind: json.loads((done[kind] / "figures.json").read_text(encoding="utf-8")) for kind in KINDS}
    about = found[KINDS[0]]["about"]
    figures = {
        "judge": about["judge"],
        "n": score.judge_questions,
        "reads_prompts": about["reads_prompts"],
        "provenance": provenance(context, about["models"]),
    }
    for kind in KINDS:
        figures |= {f"{kind}_{key}": value for key, value in found[kind]["figures"].items()}
    write_json(context.results / "judge.json", figures)


if __name__ == "__main__":
    run(main)
