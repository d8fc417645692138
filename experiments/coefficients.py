"""Examine the hypernetwork's coefficients: do they depend on the pair, and would constants do as well?

    python -m experiments.coefficients

Reads artifacts of `dvc repro`, writes results/<base>/experiments/coefficients.md and repeats no finished work.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from experiments import collect, workspace
from lorarar import pictures
from lorarar.data.catalog import Pair, pair_name
from lorarar.files import atomic, write_json
from lorarar.lora.adapter import Adapter
from lorarar.merging import columns
from lorarar.merging.columns import Coefficients
from lorarar.merging.hypernet import HyperNetwork, ends_with
from lorarar.randomness import generator
from lorarar.report.tables import ends, signed
from lorarar.scoring import crossed, score_table
from lorarar.training.objective import merging_loss
from slurm.task import Task, read_json
from stages.generate import DRAWING
from stages.score import ScorePair
from stages.shared.bank_members import bank_member
from stages.shared.base_model import base_model, training_setting
from stages.shared.context import Context, Group
from stages.shared.entry_point import run
from stages.shared.images_to_score import PairImages
from stages.shared.sample_task import Sample
from stages.shared.scoring_models import PROMPTS, model_names

TRAINING_PAIRS = 12
"""Pairs drawn at random from the training split: as many as validation has."""
DRAWS = 2
"""Draws of noise for a pair's loss, each for four pictures of content and four of style."""
SHOWN = {
    "direct": "1 for all: the plain sum",
    "hypernet": "the hypernetwork's, for this pair",
    "other": "the hypernetwork's, for another pair",
    "column": "mean over training pairs, for each column",
    "layer": "mean over training pairs and columns, for each layer",
    "single": "mean over everything: two numbers",
    "ziplora": "ZipLoRA's",
}


@torch.no_grad()
def main(context: Context) -> None:
    """Measure coefficients, losses and MARS² on validation, and write them down."""
    torch.set_num_threads(1)
    commit = workspace.commit()
    network = HyperNetwork.load(context.artifacts / "hypernet" / "hypernet.safetensors")
    training = context.catalog.pairs("train")
    sample = random.Random(0).sample(training, min(len(training), 60))
    predicted = {pair_name(*pair): network.coefficients(*_adapters(context, pair)) for pair in sample}
    average = _average(predicted)
    own = workspace.FOLDER / context.base / "coefficients"
    text = ["# What do the hypernetwork's coefficients do?", *_spread(context, network, predicted)]
    losses = read_json(own / "losses.json")
    examined = {"train": sample[:TRAINING_PAIRS], "val": context.pairs("val"), "test": context.pairs("test")}
    for split, pairs in examined.items():
        for pair in pairs:
            name = f"{split}/{pair_name(*pair)}"
            if name not in losses:
                print(f"loss of {name}", flush=True)
                losses[name] = _losses(context, pair, _choices(context, network, average, pair, pairs))
                write_json(own / "losses.json", losses)
    text += [*_loss_table(losses), *_mars2(context, network, average, own)]
    origin = f"base `{context.base}`, commit `{commit[:12]}`, seed {context.params.seed}"
    text.append(f"Made from: {origin}, judge `{context.knobs.score.judge}`.")
    out = context.results / "experiments" / "coefficients.md"
    with atomic(out) as temporary:
        temporary.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(out)


def _adapters(context: Context, pair: Pair) -> tuple[Adapter, Adapter]:
    content, style = (Adapter.load(context.adapter(member)).to(torch.float32) for member in pair)
    return content, style


def _fitted(context: Context, pair: Pair) -> Path:
    """File of ZipLoRA's coefficients; only evaluated pairs have one."""
    return context.artifacts / "ziplora" / f"{pair_name(*pair)}.safetensors"


def _average(predicted: Mapping[str, Coefficients]) -> Coefficients:
    """Mean over pairs, for each column of each layer."""
    every = list(predicted.values())
    return {p: tuple(torch.stack([one[p][k] for one in every]).mean(0) for k in (0, 1)) for p in every[0]}  # type: ignore[misc]


def _choices(
    context: Context, network: HyperNetwork, average: Coefficients, pair: Pair, pairs: list[Pair]
) -> dict[str, Coefficients]:
    """The coefficients that are compared for a pair."""

    def fill(make: Callable[[str, int], Tensor | float]) -> Coefficients:
        return {p: tuple(torch.zeros_like(m) + make(p, k) for k, m in enumerate(both)) for p, both in average.items()}  # type: ignore[misc]

    everything = [torch.cat([both[k] for both in average.values()]).mean() for k in (0, 1)]
    # In the same split, and with another subject and another style if there is one.
    other = pairs[(pairs.index(pair) + len(pairs) // 2 + 1) % len(pairs)]
    choices = {
        "direct": fill(lambda path, k: 1.0),
        "hypernet": network.coefficients(*_adapters(context, pair)),
        "other": network.coefficients(*_adapters(context, other)),
        "column": average,
        "layer": fill(lambda path, k: average[path][k].mean()),
        "single": fill(lambda path, k: everything[k]),
    }
    fitted = _fitted(context, pair)
    return choices | ({"ziplora": columns.load(fitted)} if fitted.exists() else {})


def _spread(context: Context, network: HyperNetwork, training: Mapping[str, Coefficients]) -> list[str]:
    """Mean of the coefficients, and their spread between layers, columns and pairs."""
    of = {"LoRA.rar, train": list(training.values())}
    grids: dict[str, int] = {}  # -> number of styles, where pairs are all subjects by all styles
    for split in ("val", "test"):
        pairs = context.pairs(split)
        grids |= {f"{method}, {split}": len({style.name for _, style in pairs}) for method in ("LoRA.rar", "ZipLoRA")}
        of[f"LoRA.rar, {split}"] = [network.coefficients(*_adapters(context, pair)) for pair in pairs]
        fitted = [_fitted(context, pair) for pair in pairs]
        if all(path.exists() for path in fitted):
            of[f"ZipLoRA, {split}"] = [columns.load(path) for path in fitted]
    rows = []
    for name, every in of.items():
        guided = [path for path in every[0] if ends_with(path, network.guided)]
        for k, kind in enumerate(("m_c", "m_s")):
            stacked = [torch.stack([one[path][k] for one in every]) for path in guided]
            means = torch.stack([layer.mean() for layer in stacked])
            total = torch.cat([layer.flatten() for layer in stacked]).mean()
            of_column = torch.cat([(layer.mean(0) - layer.mean()) for layer in stacked])
            of_pair = torch.cat([(layer - layer.mean(0)) for layer in stacked], dim=1)
            sds = [float(part.square().mean().sqrt()) for part in (means - total, of_column, of_pair)]
            shares = _shares(of_pair, grids[name]) if name in grids else ["", "", ""]
            rows.append([name, str(len(every)), kind, *(f"{value:.3f}" for value in (total, *sds)), *shares])
    head = ["", "pairs", "", "mean", "sd between layers", "between columns of a layer", "between pairs at a column"]
    head += ["share of that by content", "by style", "by chance"]
    meaning = (
        "What differs between pairs is what constants cannot do. Of that, what all pairs of one content or "
        "of one style have in common could be read off its LoRA; the rest is of the two together, or noise of fitting. "
        "`by chance` is either share in pure noise."
    )
    return ["## Are they of the pair?", collect.table(pd.DataFrame(rows, columns=head), len(head)), meaning]


def _shares(of_pair: Tensor, styles: int) -> list[str]:
    """Shares of the squares (pairs, columns) about each column's mean that content or style explains by itself."""
    table = of_pair.unflatten(0, (-1, styles))
    contents, squares = len(table), table.square().sum()
    shares = [styles * table.mean(1).square().sum() / squares, contents * table.mean(0).square().sum() / squares]
    chances = [(contents - 1) / (contents * styles - 1), (styles - 1) / (contents * styles - 1)]
    return [*(f"{float(share):.2f}" for share in shares), " and ".join(f"{chance:.2f}" for chance in chances)]


def _losses(context: Context, pair: Pair, choices: Mapping[str, Coefficients]) -> dict[str, list[float]]:
    """Choice -> content and style term of Eq. 3 with the hypernetwork's settings, means over draws."""
    settings, setting, result = context.knobs.hypernet, training_setting(context), {}
    model = setting.model.load()
    content, style = (bank_member(context, member).load(setting.model, setting.resolution) for member in pair)
    adapters = content.adapter.to(torch.float32), style.adapter.to(torch.float32)
    for name, coefficients in choices.items():
        # ZipLoRA has coefficients for all layers; the others leave key and value to the constants.
        merged, terms = columns.merge(*adapters, coefficients, default=settings.constants).computed(), []
        for number in range(DRAWS):
            noise = generator(context.seed("losses", pair_name(*pair)), number)
            draws = [member.references.draw(model, 4, noise) for member in (content, style)]
            options = {"weight": 0.0, "fidelity": settings.fidelity, "orthogonality": settings.orthogonality}
            with merging_loss(model, *adapters, merged, coefficients, *draws, **options) as loss:
                terms.append((float(loss.content), float(loss.style)))
        result[name] = [mean(values) for values in zip(*terms, strict=True)]
    return result


def _loss_table(losses: Mapping[str, Mapping[str, list[float]]]) -> list[str]:
    lines = []
    for split in ("train", "val", "test"):
        rows = {_pair(name): row for name, row in losses.items() if name.startswith(f"{split}/")}
        for choice in [choice for choice in SHOWN if all(choice in row for row in rows.values())]:
            content, style = (mean(row[choice][k] for row in rows.values()) for k in (0, 1))
            sums, plain = ({pair: [sum(row[of])] for pair, row in rows.items()} for of in (choice, "direct"))
            change = crossed.difference(sums, plain).interval()
            versus = "" if choice == "direct" else f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
            terms = [f"{value:.3f}" for value in (content, style, content + style)]
            lines.append([SHOWN[choice], split, str(len(rows)), *terms, versus])
    head = ["Coefficients", "Split", "pairs", "content term", "style term", "sum", "sum, against the plain sum [95%]"]
    meaning = f"Fidelity of Eq. 3, the same {DRAWS} draws of noise for all; coefficients of query and output."
    return ["## Do they lower the loss?", collect.table(pd.DataFrame(lines, columns=head), 2), meaning]


def _mars2(context: Context, network: HyperNetwork, average: Coefficients, own: Path) -> list[str]:
    """MARS² on the validation split with each choice of coefficients."""
    pairs = {pair_name(*pair): pair for pair in context.pairs("val")}
    choices = {n: _choices(context, network, average, pair, list(pairs.values())) for n, pair in pairs.items()}
    settings, judges, model = context.knobs.generate.model_dump(), context.data / "judges", base_model(context)
    number = settings.pop("images_per_pair")
    sampling = context.store("generate", context.data / "base", without=DRAWING)
    judging = context.store("score", judges, PROMPTS)
    families, names = str(judges / "recogniser"), model_names(context)
    right: dict[str, dict[tuple[str, str], list[bool]]] = {}
    made: dict[str, dict[str, Path]] = {}
    for choice in ("direct", "hypernet", "other", "column", "single"):
        tasks = []
        for name, pair in pairs.items():
            path = own / choice / f"{name}.safetensors"
            columns.merge(*_adapters(context, pair), choices[name][choice], default=network.constants).save(path)
            seeds = [context.seed("generate", name, index) for index in range(number)]
            work = Sample(model, str(path), context.catalog.pair_prompt(*pair), seeds, settings)
            tasks.append(Task(name, work, [path]))
        (drawn,) = context.fan_out(Group(sampling, tasks, f"generate {choice}"))
        made[choice] = drawn
        tasks = []
        for name, (subject, style) in pairs.items():
            of_subject, of_style = (tuple(map(str, context.pictures(member))) for member in (subject, style))
            prompt = context.catalog.class_prompt(subject, style)
            named = str(drawn[name]), subject.name, style.name
            shown = PairImages(*named, of_subject, of_style, style.words, prompt)
            tasks.append(Task(name, ScorePair(names, families, shown), [shown.folder, *shown.references]))
        (judged,) = context.fan_out(Group(judging, tasks, f"score {choice}"))
        right[choice] = {
            _pair(name): [row.right for row in score_table.read(folder / "scores.parquet")]
            for name, folder in judged.items()
        }
    lines = []
    for choice, values in right.items():
        versus = differ = ""
        if choice != "hypernet":
            versus = signed(crossed.difference(values, right["hypernet"]).interval())
            differ = f"{_difference(made[choice], made['hypernet']):.2f}"
        counts = [str(sum(map(len, values.values()))), str(len(values))]
        lines.append([SHOWN[choice], ends(crossed.mean(values).interval()), versus, differ, *counts])
    head = ["Coefficients", "MARS² average [95%]", "against the hypernetwork's own [95%]"]
    head += ["pictures differ from its own by", "images", "pairs"]
    meaning = (
        "Validation split, the same seeds of images for all; pictures differ by so many of 255 levels, on average."
    )
    return ["## Do they make better pictures?", collect.table(pd.DataFrame(lines, columns=head), 1), meaning]


def _pair(name: str) -> tuple[str, str]:
    """(subject, style) of `dog8+glowing`, or of `test/dog8+glowing`."""
    subject, _, style = name.rpartition("/")[2].partition("+")
    return subject, style


def _difference(these: Mapping[str, Path], those: Mapping[str, Path]) -> float:
    """Mean absolute difference of pictures, in levels of 255."""
    pairs = [(path, those[name] / path.name) for name, folder in these.items() for path in folder.glob("*.png")]
    return mean(
        float(np.abs(np.subtract(*(np.asarray(pictures.read(p), float) for p in pair))).mean()) for pair in pairs
    )


if __name__ == "__main__":
    run(main)
