"""Builds a study from generated images, their scores and the references."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random

from lorarar import pictures
from lorarar.errors import UserError
from lorarar.files import sha256, write_json
from lorarar.scoring.score_table import Row, by_pair, read
from lorarar.study import Scenario
from lorarar.study.manifest import Item, Manifest, Option

Pair = tuple[str, str]


class NothingToCompare(UserError):
    """There are too few suitable images for the study."""


@dataclass(frozen=True)
class Sources:
    """Folders of a study's inputs, with the layout of the benchmark.

    Attributes
    ----------
    images : `<method>/<split>/<subject>+<style>/<NN>.png`.
    scores : `<method>-<split>.parquet`, written by the stage `score`.
    references : `subjects/<name>/00.png` and `styles/<name>/00.png`.
    """

    images: Path
    scores: Path
    references: Path
    split: str

    def rows(self, method: str) -> dict[Pair, list[Row]]:
        """Scores of a method's images by pair."""
        return by_pair(read(self.scores / f"{method}-{self.split}.parquet"))

    def image(self, option: Option) -> Path:
        """File of a generated image."""
        folder = self.images / option.method / self.split / f"{option.subject}+{option.style}"
        return folder / f"{option.index:02}.png"


def build(
    out: Path,
    sources: Sources,
    methods: Sequence[str],
    *,
    scenario: Scenario = "random",
    pairs: Sequence[str] | None = None,
    repeats: int = 3,
    checks: int = 3,
    checks_from: str | None = None,
    seed: int = 0,
) -> Manifest:
    """Write a study: `manifest.json` and `images/`, each picture under a random name.

    One image of each method represents a pair in all its comparisons (section 4). The names do not depend on the seed:
    raters who know it could otherwise tell the methods.

    Parameters
    ----------
    methods : every method is compared with every other.
    scenario : `random` takes any image, `best` one that the judge accepted.
    pairs : `<subject>+<style>` to keep; all by default.
    repeats : number of comparisons that each rater sees twice.
    checks : number of comparisons of an accepted image with one of another subject in another style.
    checks_from : method whose accepted images make the checks and the example; any of `methods` by default.

    Raises
    ------
    UserError : an input is missing, or the study exists.
    NothingToCompare : the judge accepted too few images.
    """
    if out.exists():
        raise UserError(f"{out}: exists; a study is never changed, give another name or remove it")
    if len(set(methods)) < 2 or len(set(methods)) != len(methods):
        raise UserError("a study compares two or more different methods; name each once")
    rows = {
        method: sources.rows(method) for method in dict.fromkeys([*methods, *([checks_from] if checks_from else [])])
    }
    chosen = _pairs(rows, methods, pairs)
    names: dict[Option, str] = {}

    def option(method: str, row: Row) -> Option:
        key = Option(method=method, subject=row.subject, style=row.style, index=row.index, image="0" * 24)
        return key.model_copy(update={"image": names.setdefault(key, secrets.token_hex(12))})

    items: list[Item] = []
    left_out: list[str] = []
    for pair in chosen:
        shown: dict[str, Row] = {}
        for method in methods:
            found = [row for row in rows[method][pair] if row.right or scenario == "random"]
            if found:
                shown[method] = Random(f"{seed} {scenario} {method} {pair}").choice(found)
        for both in combinations(methods, 2):
            without = [method for method in both if method not in shown]
            if without:
                left_out.append(f"{'+'.join(pair)}: {' and '.join(both)}: the judge accepted no image of {without[0]}")
            else:
                first, second = (option(method, shown[method]) for method in both)
                items.append(Item(kind="pair", subject=pair[0], style=pair[1], options=(first, second)))
    if not items:
        raise NothingToCompare(
            f"{sources.scores}: no pair has accepted images of two methods; take the scenario random"
        )

    random = Random(f"{seed} checks")
    known = [(m, row) for m in ([checks_from] if checks_from else methods) for pair in chosen for row in rows[m][pair]]
    right = [(method, row) for method, row in known if row.right]
    random.shuffle(right)
    one_subject = len({subject for subject, _ in chosen}) == 1
    one_each = {(row.subject, row.style): (method, row) for method, row in right}
    for method, row in list(one_each.values())[:checks]:
        wrong = [(m, r) for m, r in right if (r.subject != row.subject or one_subject) and r.style != row.style]
        if wrong:
            both_options = (option(method, row), option(*random.choice(wrong)))
            items.append(Item(kind="check", subject=row.subject, style=row.style, options=both_options))
    if (made := sum(item.kind == "check" for item in items)) < checks:
        raise NothingToCompare(
            f"{sources.scores}: accepted images suffice for {made} checks; ask for that many, or --checks-from"
        )
    example = _example(right, known, option)

    of_subjects = {f"subjects/{item.subject}" for item in (*items, example)}
    of_styles = {f"styles/{item.style}" for item in (*items, example)}
    references = {name: secrets.token_hex(12) for name in sorted(of_subjects | of_styles)}
    files = {image: sources.references / name / "00.png" for name, image in references.items()}
    files |= {image: sources.image(option) for option, image in names.items()}
    hidden = out.with_name(f".{out.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    for image, path in files.items():
        # Only the pixels are copied: a file's metadata may name its generator.
        pictures.write(hidden / "images" / f"{image}.png", pictures.read(path))
    manifest = Manifest(
        scenario=scenario,
        split=sources.split,
        seed=seed,
        methods=list(methods),
        repeats=repeats,
        items=items,
        example=example,
        references=references,
        left_out=left_out,
        images={image: sha256(hidden / "images" / f"{image}.png") for image in sorted(files)},
    )
    write_json(hidden / "manifest.json", manifest.model_dump())
    hidden.rename(out)
    return manifest


def _pairs(rows: dict[str, dict[Pair, list[Row]]], methods: Sequence[str], names: Sequence[str] | None) -> list[Pair]:
    """Pairs that all methods have."""
    known = {"+".join(pair): pair for pair in rows[methods[0]]}
    for name in names or known:
        if name not in known:
            raise UserError(f"no images of a pair called {name!r}; known: {', '.join(list(known)[:5])} ...")
        for method, pairs in rows.items():
            if known[name] not in pairs:
                raise UserError(f"{method}: no scores of the pair {name}; leave one of the two out")
    return [known[name] for name in dict.fromkeys(names or known)]


def _example(right, known, option) -> Item:
    """Two images in one style, the second with the right subject, as in Figure A4.

    A study of one subject shows it twice, first in another style.
    """
    for method, row in right:
        for other, wrong in known:
            if wrong.style_yes and wrong.style == row.style and wrong.subject != row.subject:
                options = (option(other, wrong), option(method, row))
                return Item(kind="check", subject=row.subject, style=row.style, options=options)
    for method, row in right:
        for other, wrong in known:
            same = wrong.subject == row.subject and wrong.subject_yes
            if same and (wrong.style != row.style or not wrong.style_yes):
                options = (option(other, wrong), option(method, row))
                return Item(kind="check", subject=row.subject, style=row.style, options=options)
    raise NothingToCompare(
        "the worked example needs two subjects in one style, or one subject in two, that the judge accepts; see "
        "--checks-from"
    )
