"""MARS²: Multimodal Assistant Rating Subject & Style (Section 4 and A1.1 of LoRA.rar).

A judge is asked separately, with one reference picture a question, whether an image shows the subject and
whether it has the style. Each is right when the judge says yes for *more than half* of the references, and
the image is right when both are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorarar.pictures import Picture
from lorarar.scoring.judges import Judge, Question, Verdict


@dataclass(frozen=True)
class Side:
    """Verdicts on the subject or the style of one image, one per reference."""

    verdicts: tuple[Verdict, ...]

    @property
    def yes(self) -> bool:
        """True for a strict majority of the references: 2 of 4 fails, and an unanswered question is no yes."""
        return 2 * sum(verdict.yes is True for verdict in self.verdicts) > len(self.verdicts)

    @property
    def probability(self) -> float | None:
        """Mean probability of yes over the references (the soft score); None if the judge gives none."""
        known = [verdict.probability for verdict in self.verdicts if verdict.probability is not None]
        return float(np.mean(known)) if known else None

    @property
    def unanswered(self) -> int:
        """Number of answers that were neither yes nor no."""
        return sum(verdict.yes is None for verdict in self.verdicts)


@dataclass(frozen=True)
class Rating:
    """Verdicts on both sides of one image."""

    subject: Side
    style: Side

    @property
    def right(self) -> bool:
        """True if subject and style are both right."""
        return self.subject.yes and self.style.yes


def rate(
    judge: Judge,
    images: Sequence[Picture],
    subject_references: Sequence[Picture],
    style_references: Sequence[Picture],
    style_words: str,
) -> list[Rating]:
    """Judges the images of one subject-style pair.

    Parameters
    ----------
    judge : the judge that answers.
    images : generated pictures under test.
    subject_references, style_references : at least one picture each.
    style_words : words of the style for the prompt, without its number.
    """
    if not subject_references or not style_references:
        raise ValueError("a subject and a style need at least one reference picture each")
    questions = [Question("subject", reference, test) for test in images for reference in subject_references]
    questions += [Question("style", reference, test, style_words) for test in images for reference in style_references]
    verdicts = iter(judge.answer(questions))
    subjects = [Side(tuple(next(verdicts) for _ in subject_references)) for _ in images]
    styles = [Side(tuple(next(verdicts) for _ in style_references)) for _ in images]
    return [Rating(subject, style) for subject, style in zip(subjects, styles, strict=True)]


def pair_attempts(pair: Sequence[bool]) -> int:
    """Number of images drawn until the first right one (Table 2).

    A pair without any counts one more than it has, the smallest number that is possible.
    """
    return next((index for index, value in enumerate(pair, start=1) if value), len(pair) + 1)
