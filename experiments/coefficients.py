"""What the hypernetwork's coefficients do: are they of the pair, and would constants do as well?

    python -m experiments.coefficients

Reads what `dvc repro` made and writes results/<base>/experiments/coefficients.md. What is done is not done again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments import collect, workspace
from lorarar import pictures
from lorarar.data.catalog import Pair, pair_name
from lorarar.files import atomic, write_json
from lorarar.lora.adapter import Adapter
from lorarar.merge import columns
from lorarar.merge.columns import Coefficients
from lorarar.merge.hypernet import HyperNetwork, ends_with
from lorarar.randomness import generator
from lorarar.report.tables import ends, signed
from lorarar.scoring import score_table
from lorarar.scoring.statistics import bootstrap_mean, paired_difference
from lorarar.training.objective import merging_loss
from slurm.task import read_json
from stages import generate
from stages import score as scoring
from stages.shared import scoring_models
from stages.shared.bank_members import entry
from stages.shared.context import Context, backbone
from stages.shared.entry_point import run

TRAINING_PAIRS = 12
"""Of the training split, drawn at random: as many as validation has."""
DRAWS = 2
"""Times that noise is drawn for a pair's loss, each for four pictures of content and four of style."""
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
    own = Path(".work/experiments") / context.base / "coefficients"
    text = ["# What do the hypernetwork's coefficients do?", "", *_spread(context, network, predicted)]
    losses = read_json(own / "losses.json")
    for split, pairs in (
        ("train", sample[:TRAINING_PAIRS]),
        ("val", context.pairs("val")),
        ("test", context.pairs("test")),
    ):
        for pair in pairs:
            name = f"{split}/{pair_name(*pair)}"
            if name not in losses:
                print(f"loss of {name}", flush=True)
                losses[name] = _losses(context, pair, _choices(context, network, average, pair, pairs))
                write_json(own / "losses.json", losses)
    text += _loss_table(losses)
    text += _mars2(context, network, average, own)
    origin = f"base `{context.base}`, commit `{commit[:12]}`, seed {context.params.seed}"
    text += ["", f"Made from: {origin}, judge `{context.knobs.score.judge}`."]
    with atomic(context.results / "experiments" / "coefficients.md") as temporary:
        temporary.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(context.results / "experiments" / "coefficients.md")


def _adapters(context: Context, pair: Pair) -> tuple[Adapter, Adapter]:
    content, style = (Adapter.load(context.adapter(member)).to(torch.float32) for member in pair)
    return content, style


def _fitted(context: Context, pair: Pair) -> Path:
    """File of ZipLoRA's coefficients, which only evaluated pairs have."""
    return context.artifacts / "ziplora" / f"{pair_name(*pair)}.safetensors"


def _average(predicted: Mapping[str, Coefficients]) -> Coefficients:
    """Of each column of each layer, over pairs."""
    every = list(predicted.values())
    return {
        path: tuple(torch.stack([one[path][k] for one in every]).mean(0) for k in (0, 1))  # type: ignore[misc]
        for path in every[0]
    }


def _choices(
    context: Context, network: HyperNetwork, average: Coefficients, pair: Pair, pairs: list[Pair]
) -> dict[str, Coefficients]:
    """The coefficients that are compared for a pair."""

    def fill(make: Callable[[str, int], Tensor | float]) -> Coefficients:
        return {p: tuple(torch.zeros_like(m) + make(p, k) for k, m in enumerate(both)) for p, both in average.items()}  # type: ignore[misc]

    everything = [torch.cat([both[k] for both in average.values()]).mean() for k in (0, 1)]
    # Of the same split, and with another subject and another style where there is one.
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
    """How far coefficients are from 1, and how much of that is of the layer, of the column, and of the pair."""
    of = {"LoRA.rar, train": list(training.values())}
    grids: dict[str, int] = {}  # -> number of styles, where pairs are all subjects by all styles
    for split in ("val", "test"):
        pairs = context.pairs(split)
        grids |= {f"{method}, {split}": len({style.name for _, style in pairs}) for method in ("LoRA.rar", "ZipLoRA")}
        of[f"LoRA.rar, {split}"] = [network.coefficients(*_adapters(context, pair)) for pair in pairs]
        fitted = [_fitted(context, pair) for pair in pairs]
        if all(path.exists() for path in fitted):
            of[f"ZipLoRA, {split}"] = [columns.load(path) for path in fitted]
    head = ["", "pairs", "", "mean", "sd between layers", "between columns of a layer", "between pairs at a column"]
    head += ["share of that by content", "by style", "by chance"]
    lines = ["## Are they of the pair?", "", collect.row(head), collect.row(["---"] * len(head))]
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
            numbers = [f"{value:.3f}" for value in (total, *sds)]
            lines.append(collect.row([name, str(len(every)), kind, *numbers, *shares]))
    meaning = (
        "What differs between pairs is what constants cannot do. Of that, what all pairs of one content or "
        "of one style have in common could be read off its LoRA; the rest is of the two together, or noise of fitting. "
        "`by chance` is either share in pure noise."
    )
    return [*lines, "", meaning, ""]


def _shares(of_pair: Tensor, styles: int) -> list[str]:
    """Shares of the squares (pairs, columns) about each column's mean that content and style explain alone."""
    table = of_pair.unflatten(0, (-1, styles))
    contents, squares = len(table), table.square().sum()
    shares = [styles * table.mean(1).square().sum() / squares, contents * table.mean(0).square().sum() / squares]
    chances = [(contents - 1) / (contents * styles - 1), (styles - 1) / (contents * styles - 1)]
    return [*(f"{float(share):.2f}" for share in shares), " and ".join(f"{chance:.2f}" for chance in chances)]


def _losses(context: Context, pair: Pair, choices: Mapping[str, Coefficients]) -> dict[str, list[float]]:
    """Name of a choice -> content and style term of Eq. 3 with the settings of the hypernetwork, mean over draws."""
    settings, resolution = context.knobs.hypernet, context.knobs.backbone.resolution
    model, result = backbone(**context.model(training=True)), {}
    content, style = (
        entry(model, resolution, str(context.adapter(m)), [str(path) for path in context.pictures(m)], m.prompt)
        for m in pair
    )
    adapters = content.adapter.to(torch.float32), style.adapter.to(torch.float32)
    for name, coefficients in choices.items():
        # ZipLoRA has coefficients of all layers, the others leave key and value to the constants.
        merged, terms = columns.merge(*adapters, coefficients, default=settings.constants).computed(), []
        for number in range(DRAWS):
            noise = generator(context.seed("losses", pair_name(*pair)), number)
            draws = [member.references.draw(model, 4, noise) for member in (content, style)]
            options = {"weight": 0.0, "fidelity": settings.fidelity, "orthogonality": settings.orthogonality}
            with merging_loss(model, *adapters, merged, coefficients, *draws, **options) as loss:  # type: ignore[arg-type]
                terms.append((float(loss.content), float(loss.style)))
        result[name] = [mean(values) for values in zip(*terms, strict=True)]
    return result


def _loss_table(losses: Mapping[str, Mapping[str, list[float]]]) -> list[str]:
    lines = [
        "## Do they lower the loss?",
        "",
        "| Coefficients | Split | pairs | content term | style term | sum | sum, against the plain sum [95%] |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for split in ("train", "val", "test"):
        rows = [row for name, row in losses.items() if name.startswith(f"{split}/")]
        for choice in [choice for choice in SHOWN if all(choice in row for row in rows)]:
            content, style = (mean(row[choice][k] for row in rows) for k in (0, 1))
            sums = [[sum(row[choice])] for row in rows]
            change = paired_difference(sums, [[sum(row["direct"])] for row in rows], 0)
            versus = "" if choice == "direct" else f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
            terms = [f"{value:.3f}" for value in (content, style, content + style)]
            lines.append(collect.row([SHOWN[choice], split, str(len(rows)), *terms, versus]))
    return [
        *lines,
        "",
        f"Fidelity of Eq. 3, the same {DRAWS} draws of noise for all; coefficients of query and output.",
        "",
    ]


def _mars2(context: Context, network: HyperNetwork, average: Coefficients, own: Path) -> list[str]:
    """The same choices as images of the validation split."""
    pairs = {pair_name(*pair): pair for pair in context.pairs("val")}
    choices = {n: _choices(context, network, average, pair, list(pairs.values())) for n, pair in pairs.items()}
    settings, judges = context.knobs.generate.model_dump(), context.data / "judges"
    number = settings.pop("images_per_pair")
    right: dict[str, list[list[float]]] = {}
    made: dict[str, dict[str, Path]] = {}
    for choice in ("direct", "hypernet", "other", "column", "single"):
        tasks: dict[str, Any] = {}
        for name, pair in pairs.items():
            path = own / choice / f"{name}.safetensors"
            columns.merge(*_adapters(context, pair), choices[name][choice], default=network.constants).save(path)
            arguments = {
                "base": context.model(),
                "adapter": str(path),
                "prompt": context.catalog.pair_prompt(*pair),
                "seeds": [context.seed("generate", name, index) for index in range(number)],
                "settings": settings,
            }
            tasks[name] = (arguments, [path])
        store = context.store("generate", generate.CODE, context.data / "base")
        drawn = made[choice] = context.fan_out(store, generate.sample, tasks, f"generate {choice}")
        tasks = {}
        for name, (subject, style) in pairs.items():
            references = [context.pictures(subject), context.pictures(style)]
            arguments = {
                "names": scoring_models.named(context),
                "families": str(judges / "recogniser"),
                "images": str(drawn[name]),
                "pair": [subject.name, style.name],
                "references": [[str(path) for path in paths] for paths in references],
                "words": style.words,
                "prompt": context.catalog.class_prompt(subject, style),
            }
            tasks[name] = (arguments, [*sorted(drawn[name].glob("*.png")), *references[0], *references[1]])
        store = context.store("score", scoring.CODE, judges, scoring_models.PROMPTS)
        judged = context.fan_out(store, scoring.judge_pair, tasks, f"score {choice}")
        right[choice] = [[row.right for row in score_table.read(f / "scores.parquet")] for f in judged.values()]
    lines = [
        "## Do they make better pictures?",
        "",
        "| Coefficients | MARS² average [95%] | against the hypernetwork's own [95%] | pictures differ from its own by "
        "| images | pairs |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for choice, values in right.items():
        versus = differ = ""
        if choice != "hypernet":
            versus = signed(paired_difference(values, right["hypernet"], 0))
            differ = f"{_difference(made[choice], made['hypernet']):.2f}"
        counts = [str(sum(map(len, values))), str(len(values))]
        lines.append(collect.row([SHOWN[choice], ends(bootstrap_mean(values, 0)), versus, differ, *counts]))
    meaning = (
        "Validation split, the same seeds of images for all; pictures differ by so many of 255 levels, on average."
    )
    return [*lines, "", meaning]


def _difference(these: Mapping[str, Path], those: Mapping[str, Path]) -> float:
    """Mean absolute difference of pictures, in levels of 255."""
    pairs = [(path, those[name] / path.name) for name, folder in these.items() for path in folder.glob("*.png")]
    return mean(
        float(np.abs(np.subtract(*(np.asarray(pictures.read(p), float) for p in pair))).mean()) for pair in pairs
    )


if __name__ == "__main__":
    run(main)
