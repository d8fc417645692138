"""A study, frozen: what is compared, by which pictures, and in which order and on which side each rater sees it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lorarar.errors import UserError
from lorarar.study import Scenario

Opaque = Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(BaseModel):
    """A part of the manifest; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Option(Part):
    """One image: whose it is, of which pair, its number there, and the opaque name it is shown under."""

    method: str
    subject: str
    style: str
    index: int
    image: Opaque


class Item(Part):
    """Two images to choose from for one subject and style. Of a check, the first option is right, the other wrong."""

    kind: Literal["pair", "check"]
    subject: str
    style: str
    options: tuple[Option, Option]


class Manifest(Part):
    """All of a study.

    Attributes
    ----------
    seed : of which images were chosen, and of every rater's order and sides.
    repeats : comparisons that each rater sees once more, sides exchanged.
    example : explained before the first comparison; its second option is right.
    references : `subjects/<name>` and `styles/<name>` -> the picture shown.
    left_out : comparisons that could not be made, with the reason.
    images : every picture's opaque name -> SHA-256 of its file.
    """

    format: Literal[1] = 1
    scenario: Scenario
    split: str
    seed: int
    methods: list[str]
    repeats: int = Field(ge=0)
    items: list[Item] = Field(min_length=1)
    example: Item
    references: dict[str, Opaque]
    left_out: list[str]
    images: dict[Opaque, Digest]

    @model_validator(mode="after")
    def _complete(self) -> Manifest:
        shown = set(self.references.values())
        for item in (*self.items, self.example):
            shown |= {option.image for option in item.options}
            for reference in (f"subjects/{item.subject}", f"styles/{item.style}"):
                if reference not in self.references:
                    raise ValueError(f"no reference {reference}")
        if shown != set(self.images):
            raise ValueError("the images listed are not the images shown")
        return self


@dataclass(frozen=True)
class Slot:
    """A rater's item at one position: `swapped` puts an item's first option on the right."""

    item: int
    swapped: bool
    repeat: bool


def playlist(manifest: Manifest, rater: str) -> list[Slot]:
    """All items in a rater's own order and sides, both from the seed; repeats come in the second half.

    As many items as not have their sides exchanged, so that a rater who always says *Option 1* prefers nothing.
    """
    random = Random(f"{manifest.seed} {rater}")
    order = random.sample(range(len(manifest.items)), len(manifest.items))
    sides = [bool(number % 2) for number in range(len(order))]
    random.shuffle(sides)
    slots = [Slot(item, swapped, False) for item, swapped in zip(order, sides, strict=True)]
    middle = (len(slots) + 1) // 2
    early = [slot for slot in slots[:middle] if manifest.items[slot.item].kind == "pair"]
    for slot in random.sample(early, min(manifest.repeats, len(early))):
        slots.insert(random.randint(middle, len(slots)), Slot(slot.item, not slot.swapped, True))
    return slots


@dataclass(frozen=True)
class Study:
    """A study on disk. `digest` is the SHA-256 of its manifest."""

    folder: Path
    manifest: Manifest
    digest: str

    @classmethod
    def load(cls, folder: Path | str) -> Study:
        """Read a study and compare all its pictures with their hashes.

        Raises
        ------
        UserError : there is no study, its manifest is damaged, or a picture is missing or has changed.
        """
        folder = Path(folder)
        path = folder / "manifest.json"
        try:
            content = path.read_bytes()
            manifest = Manifest.model_validate_json(content)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); `lorarar study build` makes it") from None
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"]))
            raise UserError(f"{path}: not a study ({place}: {problem['msg']}); restore it or build it again") from None
        study = cls(folder, manifest, sha256(content).hexdigest())
        for name in manifest.images:
            study.image(name)
        return study

    def image(self, name: str) -> bytes:
        """Content of a picture, which is never shown after it has changed.

        Raises
        ------
        KeyError : no picture is called so.
        UserError : its file is missing or has changed.
        """
        expected = self.manifest.images[name]
        path = self.folder / "images" / f"{name}.png"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); restore it") from None
        if sha256(content).hexdigest() != expected:
            raise UserError(f"{path}: has changed since the study was built; restore it, or build a new study")
        return content


def spoken(name: str) -> str:
    """A subject's or a style's name as raters read it: `oil_painting2` is "oil painting"."""
    return re.sub(r"\d+$", "", name).replace("_", " ").strip() or name
