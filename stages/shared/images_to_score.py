"""The images of a method on a split, with the pictures that they are compared with."""

from __future__ import annotations

from dataclasses import dataclass

from lorarar import pictures
from lorarar.errors import UserError
from lorarar.pictures import Picture
from stages.shared.context import Context, present


@dataclass(frozen=True)
class PairImages:
    """One pair of one method.

    Attributes
    ----------
    folder : the generated images.
    of_subject, of_style : reference pictures.
    words : the style's words, for the judge.
    prompt : what CLIP-T compares with; one wording for methods and controls.
    """

    folder: str
    subject: str
    style: str
    of_subject: tuple[str, ...]
    of_style: tuple[str, ...]
    words: str
    prompt: str

    @property
    def references(self) -> list[str]:
        return [*self.of_subject, *self.of_style]

    def read(self) -> tuple[list[Picture], list[Picture], list[Picture]]:
        """Generated images, reference pictures of the subject, and of the style."""
        return (
            pictures.read_all(self.folder),
            [pictures.read(path) for path in self.of_subject],
            [pictures.read(path) for path in self.of_style],
        )


def images_to_score(context: Context, method: str, split: str) -> dict[str, PairImages]:
    """Every pair that a method has images of on a split, by its name.

    Raises
    ------
    UserError
        There are no images, or a folder is not named after a pair.
    """
    found = {}
    generated = present(context.artifacts / "generate" / method / split)
    for folder in sorted(path for path in generated.iterdir() if path.is_dir()):
        try:
            of_subject, of_style = folder.name.split("+")
            subject, style = context.catalog.subjects[of_subject], context.catalog.styles[of_style]
        except (KeyError, ValueError):
            raise UserError(f"{folder}: not the name of a pair; delete the folder and run `dvc repro`") from None
        references = [tuple(str(path) for path in context.pictures(member)) for member in (subject, style)]
        prompt = context.catalog.class_prompt(subject, style)
        names = (subject.name, style.name)
        found[folder.name] = PairImages(str(folder), *names, references[0], references[1], style.words, prompt)
    return found
