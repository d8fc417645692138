"""Scores a folder of pictures of one subject in one style without the pipeline, as `lorarar score` does."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lorarar.errors import UserError
from lorarar.files import atomic, write_json
from lorarar.pictures import Picture
from lorarar.scoring.judges import Judge, JudgePrompts, load_judge
from lorarar.scoring.judges.cache import CachedJudge
from lorarar.scoring.mars2 import rate
from lorarar.scoring.statistics import bootstrap_mean, wilson

PROMPTS = Path(__file__).with_name("prompts.yaml")
"""Wording of the judge's questions, as in the paper: `data/prompts.yaml` of the repository."""
FIGURES = {
    "right": "MARS²",
    "subject_yes": "subject",
    "style_yes": "style",
    "clip_i": "CLIP-I",
    "dino": "DINO",
    "clip_t": "CLIP-T",
}
"""Columns with a mean, and their titles; the first three are shares."""
SHARES = ("right", "subject_yes", "style_yes")
SEED = 0


def verdicts() -> Path:
    """Default folder of the cached verdicts."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorarar" / "verdicts"


def score(
    images: Path,
    subject_references: Path,
    style_references: Path,
    out: Path,
    *,
    judge: str | None = None,
    style_words: str | None = None,
    clip: str | None = None,
    prompt: str | None = None,
    dino: str | None = None,
    options: Mapping[str, Any] | None = None,
    prompts: Path = PROMPTS,
    cache: Path | None = None,
    device: str = "cpu",
    download: bool = False,
) -> dict[str, Any]:
    """Scores pictures; writes a row for each to `out`, and the mean scores to a `.json` with the same name.

    All inputs are checked before the first picture is scored.

    Parameters
    ----------
    images, subject_references, style_references : folders of pictures, or single files.
    judge : judge for MARS²: a folder, a server's address or a LLaVA critic's name on the hub. Needs `style_words`.
    style_words : words of the style for the judge's prompt, such as "oil painting".
    clip : model for CLIP-I: a folder, or `NAME:TAG` as open_clip calls it. With `prompt` also CLIP-T.
    prompt : prompt that the pictures were made from.
    dino : model for DINO: a folder, or its name on the hub.
    options : options of the judge, see its `load`.
    prompts : wording of the judge's questions.
    cache : folder of the judge's verdicts, `verdicts()` by default.
    device : device of the models.
    download : download models that are not on this machine yet.

    Returns
    -------
    dict
        Contents of the `.json`: mean scores with the ends of their 95% intervals, over the pictures of this one pair,
        and the models.

    Raises
    ------
    UserError : a folder is empty, a file is no picture, a model or server is missing, or options contradict.
    """
    if not (judge or clip or dino):
        raise UserError("nothing to score with: give a judge, a CLIP or a DINO model")
    if judge and not style_words:
        raise UserError("the judge's question names the style: give its words, such as oil painting")
    if options and not judge:
        raise UserError("options are the judge's: give a judge too")
    if prompt and not clip:
        raise UserError("a prompt is for CLIP-T: give a CLIP model too")
    if out.suffix == ".json":
        raise UserError(
            f"{out}: the figures go to a .json next to the table; name the table otherwise, such as scores.csv"
        )
    given, of_subject, of_style = (read_pictures(path) for path in (images, subject_references, style_references))
    models: dict[str, Any] = {}
    columns: dict[str, list[Any]] = {"image": list(given)}

    asked = None
    if judge:
        asked = _judge(judge, JudgePrompts.load(prompts), device, dict(options or {}), download)
        for pictures in (given, of_subject, of_style):
            _check_sizes(asked, pictures)
        asked = CachedJudge(asked, cache or verdicts())
        models["judge"] = asked.identity
    scorers = similarity_models(clip, dino, device, download)
    models |= {name: scorer.describe() for name, scorer in scorers.items()}

    tests, subjects, styles = (list(pictures.values()) for pictures in (given, of_subject, of_style))
    if asked and style_words:
        ratings = rate(asked, tests, subjects, styles, style_words)
        columns |= {
            "right": [rating.right for rating in ratings],
            "subject_yes": [rating.subject.yes for rating in ratings],
            "style_yes": [rating.style.yes for rating in ratings],
            "subject_prob": [rating.subject.probability for rating in ratings],
            "style_prob": [rating.style.probability for rating in ratings],
            "unanswered": [rating.subject.unanswered + rating.style.unanswered for rating in ratings],
        }
    if "clip" in scorers:
        from lorarar.scoring.clip import clip_i, clip_t

        columns["clip_i"] = clip_i(scorers["clip"], tests, styles).tolist()
        if prompt:
            columns["clip_t"] = clip_t(scorers["clip"], tests, prompt).tolist()
    if "dino" in scorers:
        from lorarar.scoring.dino import dino as to_subject

        columns["dino"] = to_subject(scorers["dino"], tests, subjects).tolist()

    figures: dict[str, Any] = {"n_images": len(tests), "prompt": prompt, "style_words": style_words, "models": models}
    figures |= summarise(columns)
    with atomic(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_text(value) for value in row] for row in zip(*columns.values(), strict=True))
    write_json(out.with_suffix(".json"), figures)
    return figures


def summarise(columns: Mapping[str, list[Any]]) -> dict[str, float]:
    """Means of all scores and the ends of their intervals: Wilson's for shares, else by resampling pictures."""
    figures: dict[str, float] = {}
    for name in (name for name in FIGURES if name in columns):
        values = columns[name]
        share = name in SHARES
        interval = wilson(sum(values), len(values)) if share else bootstrap_mean([[value] for value in values], SEED)
        figures |= interval.named(name)
    if "unanswered" in columns:
        figures["unanswered"] = sum(columns["unanswered"])
    return figures


def read_pictures(path: Path) -> dict[str, Picture]:
    """Reads the pictures of a folder by name, in order; a single file is a folder of one.

    They are turned upright, and become sRGB on white. Captions, hidden files and subfolders are skipped.

    Raises
    ------
    UserError : there is no picture, or a file is no picture.
    """
    from PIL import Image as PilImage

    from lorarar.pictures import developed, files, unread

    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    pictures = {}
    for file in files(path) if path.is_dir() else [path]:
        try:
            with PilImage.open(file) as image:
                pictures[file.name] = np.asarray(developed(image))
        except (OSError, SyntaxError, ValueError, PilImage.DecompressionBombError) as error:
            if isinstance(error, PilImage.UnidentifiedImageError) and (advice := unread(file)):
                raise UserError(f"{file}: {advice}") from None
            reason = " ".join(str(error).split())
            raise UserError(f"{file}: not a picture ({reason}); convert it, or move it elsewhere") from None
    if not pictures:
        raise UserError(f"{path}: no pictures in it")
    return pictures


def similarity_models(
    clip: str | None, dino: str | None, device: str = "cpu", download: bool = False
) -> dict[str, Any]:
    """Loads the CLIP and DINO models that are named, as `score` takes their names, under "clip" and "dino"."""
    from lorarar.scoring.clip import Clip
    from lorarar.scoring.dino import Dino

    models: dict[str, Any] = {}
    if clip:
        name, _, tag = (clip, "", "") if Path(clip).exists() else clip.partition(":")
        models["clip"] = Clip.load(name, tag or None, device, download=download)
    if dino:
        models["dino"] = Dino.load(dino, device, download=download)
    return models


def _judge(where: str, prompts: JudgePrompts, device: str, options: dict[str, Any], download: bool) -> Judge:
    if download and not where.startswith("http") and not Path(where).exists():
        options["download"] = True
    return load_judge(where, prompts, device, **options)


def _check_sizes(judge: Judge, pictures: Mapping[str, Picture]) -> None:
    """Checks sizes for the miniature world's judge, which takes only that world's; other judges take any size."""
    from lorarar.scoring.judges.verification import VerificationJudge

    if isinstance(judge, VerificationJudge):
        for name, picture in pictures.items():
            if picture.shape[:2] != (judge.size, judge.size):
                size = f"{judge.size} x {judge.size}"
                raise UserError(f"{name}: the verification judge knows the miniature world's {size} pictures only")


def _text(value: Any) -> Any:
    """Formats a cell as in the benchmark's tables: truth values as 0 and 1, other numbers with six decimals."""
    if isinstance(value, bool):
        return int(value)
    return f"{value:.6f}" if isinstance(value, float) else value
