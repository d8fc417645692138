"""Training and validation sets of the judges, rendered once and kept in a work folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorarar.pocket.recogniser import HEADS
from lorarar.pocket.train.degradations import Degrade, mostly
from lorarar.pocket.train.shards import Columns, shards
from lorarar.pocket.world.artwork import Pose
from lorarar.pocket.world.styles import FAMILIES, render
from lorarar.pocket.world.world import KEEPS_COLOR, World, artwork
from lorarar.scoring.judges import Kind

OTHER = "other"
"""The label of a subject or style that is not in the bank."""
UNKNOWN = ""
"""A label that a picture does not have; it takes no part in training or accuracy."""
SHARD = 500
"""Examples in a file: some ten seconds of work, the most that an interruption costs."""


@dataclass(frozen=True)
class Workshop:
    """The inputs of every training of a judge.

    Attributes
    ----------
    world : renders the pictures.
    prompts : file of the judge's prompts.
    degrade : applied to the pictures that measure a judge.
    work : folder for rendered sets and checkpoints.
    seed : of all random draws.
    practice : applied to most pictures that train a judge; `degrade` if None.
    """

    world: World
    prompts: Path
    degrade: Degrade
    work: Path
    seed: int = 0
    practice: Degrade | None = None

    def samples(self, count: int) -> Columns:
        """Pictures of the base's training distribution: image, caption, noun, family."""

        def make(rng: np.random.Generator) -> Columns:
            drawn = [self.world.sample(rng) for _ in range(SHARD)]
            return {
                "image": mostly(self._practice, np.stack([sample.image for sample in drawn]), rng),
                "caption": np.array([sample.caption for sample in drawn]),
                "noun": np.array([sample.noun for sample in drawn]),
                "family": np.array([sample.family for sample in drawn]),
            }

        return self._shards("samples", make, count, self.seed, self._practice)

    def pairs(self, kind: Kind, count: int, held_out: Degrade | None = None) -> Columns:
        """Pairs from outside the bank: reference, test, label; the test picture is degraded.

        With `held_out`, pairs that are not for training, all degraded in that way.
        """

        def make(rng: np.random.Generator) -> Columns:
            drawn = [self.world.critic_pair(rng, kind) for _ in range(SHARD)]
            tests = np.stack([test for _, test, _ in drawn])
            return {
                "reference": np.stack([reference for reference, _, _ in drawn]),
                "test": held_out(tests, rng) if held_out else mostly(self._practice, tests, rng),
                "label": np.array([label for _, _, label in drawn]),
            }

        name = f"{kind}-held-out" if held_out else kind
        return self._shards(name, make, count, self.seed + bool(held_out), held_out or self._practice)

    def bank_pairs(self, kind: Kind, count: int) -> Columns:
        """Pairs of the bank's own subjects and styles, only for validation: no judge has been trained on them.

        Columns are reference, test, label, hard, and the words of the reference's style for the prompt. Half of the
        pairs are right. Half of the wrong ones are meant to be hard, and `hard` says why: `same_class`, a subject of
        the same class; `recoloured`, the same shape in other colours, where the style keeps colours; `same_family`, a
        style of the same family.
        """

        def make(rng: np.random.Generator) -> Columns:
            references, tests, labels, hard, words = zip(
                *(self._bank_pair(kind, rng) for _ in range(SHARD)), strict=True
            )
            return {
                "reference": np.stack(references),
                "test": self.degrade(np.stack(tests), rng),
                "label": np.array(labels),
                "hard": np.array(hard),
                "words": np.array(words),
            }

        return self._shards(f"{kind}-bank", make, count, self.seed, self.degrade)

    def labelled(self, count: int, held_out: Degrade | None = None) -> Columns:
        """Pictures with noun, family, subject and style, from the base's distribution and the bank's truth.

        `held_out` has the meaning that it has for `pairs`.
        """

        def make(rng: np.random.Generator) -> Columns:
            drawn = [self._labelled(rng) for _ in range(SHARD)]
            columns = {head: np.array([labels[head] for _, labels in drawn]) for head in HEADS}
            images = np.stack([image for image, _ in drawn])
            return columns | {"image": held_out(images, rng) if held_out else mostly(self._practice, images, rng)}

        name = "labelled-held-out" if held_out else "labelled"
        return self._shards(name, make, count, self.seed + bool(held_out), held_out or self._practice)

    def _labelled(self, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, str]]:
        """One picture with its labels; the branches are the kinds that the recogniser must tell apart."""
        world, at = self.world, Pose.random(rng)
        name, style = (str(rng.choice(list(entries))) for entries in (world.subjects, world.styles))
        subject, look = world.subjects[name], world.styles[style].look
        kind = rng.random()
        if kind < 0.5:  # half of all: looks without end, where the other kinds have few
            sample = world.sample(rng)
            return sample.image, _labels(noun=sample.noun, family=sample.family)
        if kind < 0.65:  # another object in a style of the bank
            noun = str(rng.choice(list(world.nouns)))
            art = artwork.load(str(rng.choice(world.nouns[noun])))
            image = render(art, world.palette(rng, art, original=0.5), look, at, rng)
            return image, _labels(noun=noun, family=look.family, style=style)
        if kind < 0.82:  # the truth
            image = world.truth(name, style, int(rng.integers(2**31)))
            return image, _labels(family=look.family, subject=name, style=style)
        if kind < 0.88:  # a subject as its pictures show it
            return world.picture(name, int(rng.integers(100, 2**31))), _labels(family="plain", subject=name)
        look = world.look(rng, str(rng.choice(list(FAMILIES)[1:])))
        if kind < 0.95 or look.family not in KEEPS_COLOR:  # a subject in a look of no style
            return render(subject.art, subject.palette, look, at, rng), _labels(family=look.family, subject=name)
        palette = world.palette(rng, subject.art, original=0.3)  # its shape in other colours
        return render(subject.art, palette, look, at, rng), _labels(family=look.family)

    def _bank_pair(self, kind: Kind, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, bool, str, str]:
        subjects, styles = self.world.catalog.subjects, self.world.styles
        subject, style = str(rng.choice(list(subjects))), str(rng.choice(list(styles)))
        label, hard, seed = bool(rng.random() < 0.5), bool(rng.random() < 0.5), int(rng.integers(2**31))
        near, words, draw = "", self.world.catalog.styles[style].words, self.world.truth
        if kind == "subject":
            reference = self.world.picture(subject, int(rng.integers(subjects[subject].images)))
            if not label and hard and self.world.styles[style].look.family in KEEPS_COLOR and rng.random() < 0.5:
                near, draw = "recoloured", self.world.recoloured
            elif not label:
                kinds = {name: entry.class_name for name, entry in subjects.items()}
                subject, kin = _another(rng, subject, kinds, hard)
                near = "same_class" if kin else ""
        else:
            reference = self.world.style_picture(style)
            if not label:
                families = {name: entry.look.family for name, entry in styles.items()}
                style, kin = _another(rng, style, families, hard)
                near = "same_family" if kin else ""
        return reference, draw(subject, style, seed), label, near, words

    @property
    def _practice(self) -> Degrade:
        return self.practice or self.degrade

    def _shards(
        self, name: str, make: Callable[[np.random.Generator], Columns], count: int, seed: int, degrade: Degrade
    ) -> Columns:
        folder = self.work / f"{name}-{degrade.key}"
        columns = shards(folder, make, name=name, count=-(-count // SHARD), seed=seed)
        return {key: column[:count] for key, column in columns.items()}


def _labels(family: str, noun: str = UNKNOWN, subject: str = OTHER, style: str = OTHER) -> dict[str, str]:
    return {"noun": noun, "family": family, "subject": subject, "style": style}


def _another(rng: np.random.Generator, name: str, group: dict[str, str], hard: bool) -> tuple[str, bool]:
    """Another name of the table, from the same group if a `hard` one exists; and whether it is from that group."""
    others = [other for other in group if other != name]
    near = [other for other in others if group[other] == group[name]]
    chosen = str(rng.choice(near if hard and near else others))
    return chosen, chosen in near
