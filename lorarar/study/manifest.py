"""The manifest of a study: its comparisons and pictures, and the order and sides in which each rater sees them."""

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
    """One image: its method, its pair, its number in the pair, and the random name under which it is shown."""

    method: str
    subject: str
    style: str
    index: int
    image: Opaque


class Item(Part):
    """Two images of one subject and style to choose from. The first option of a check is the right one."""

    kind: Literal["pair", "check"]
    subject: str
    style: str
    options: tuple[Option, Option]


class Manifest(Part):
    """Contents of a study.

    Attributes
    ----------
    seed : for the choice of images, and for every rater's order and sides.
    repeats : number of comparisons that each rater sees once more, with sides exchanged.
    example : explained before the first comparison; its second option is right.
    references : `subjects/<name>` and `styles/<name>` -> name of the picture.
    left_out : comparisons that could not be made, with the reason.
    images : name of every picture -> SHA-256 of its file.
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
    """A position in a rater's sequence; `swapped` puts the item's first option on the right."""

    item: int
    swapped: bool
    repeat: bool


def playlist(manifest: Manifest, rater: str) -> list[Slot]:
    """All items in a rater's order and sides, both drawn from the seed; repeats come in the second half.

    Half of the items have their sides exchanged, so that a rater who always says *Option 1* prefers nothing.
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
        UserError : the study does not exist, its manifest is damaged, or a picture is missing or has changed.
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
        """Content of a picture; a picture that has changed is never shown.

        Raises
        ------
        KeyError : there is no picture of this name.
        UserError : the file is missing or has changed.
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
    """Name of a subject or style for raters: `oil_painting2` becomes "oil painting"."""
    return re.sub(r"\d+$", "", name).replace("_", " ").strip() or name
