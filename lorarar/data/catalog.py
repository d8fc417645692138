"""Subjects, styles, splits and prompts of the benchmark, read from the tables in data/."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from lorarar.errors import UserError

Split = Literal["train", "val", "test", "new"]
SPLITS: tuple[Split, ...] = ("train", "val", "test", "new")


@dataclass(frozen=True)
class Prompts:
    """Wording of data/prompts.yaml: the rare token and the templates it goes into."""

    token: str
    subject: str
    pair: str
    plain: str

    def fill(self, template: str, class_name: str, words: str = "") -> str:
        """Put the token, the class and the style's words into a template."""
        return template.replace("{token}", self.token).replace("{class}", class_name).replace("{words}", words)


@dataclass(frozen=True)
class Subject:
    """One subject.

    Attributes
    ----------
    name, title : its folder, and the paper's name for it.
    split : `new` is of none of the paper's splits: nothing knows of it but a division that asks for it (section A2.5).
    kind : object, animal or stuffed animal; new ones have a kind of their own.
    images : number of its pictures.
    prompt : the text that its LoRA is trained on, "A תת <class>".
    """

    name: str
    title: str
    class_name: str
    split: Split
    kind: str
    images: int
    prompt: str


@dataclass(frozen=True)
class Style:
    """One style.

    Attributes
    ----------
    words : name it in prompts, without its number.
    training_prompt : of its one picture.
    source : address of that picture; empty if there is none.
    """

    name: str
    title: str
    split: Split
    family: str
    words: str
    training_prompt: str
    source: str = ""

    @property
    def prompt(self) -> str:
        """The text that its LoRA is trained on."""
        return self.training_prompt


Pair = tuple[Subject, Style]
Named = TypeVar("Named", Subject, Style)


@dataclass(frozen=True)
class Catalog:
    """All subjects and styles by name, in the order of their tables, and the prompts for them."""

    subjects: dict[str, Subject]
    styles: dict[str, Style]
    prompts: Prompts

    @classmethod
    def load(cls, root: Path | str = ".") -> Catalog:
        """Read `data/subjects.csv`, `data/styles.csv` and `data/prompts.yaml` below `root`.

        Raises
        ------
        UserError : a table is missing, lacks a column, repeats a name, or holds a value that is not allowed.
        """
        data = Path(root) / "data"
        return cls._tables(data, _prompts(data / "prompts.yaml"))

    @classmethod
    def _tables(cls, data: Path, prompts: Prompts) -> Catalog:
        """Read `subjects.csv` and `styles.csv` in a folder."""
        subjects = [
            Subject(
                name=row["folder"],
                title=row["paper_name"],
                class_name=row["class_name"],
                split=row["split"],
                kind=row["kind"],
                images=_count(row["images"], f"{data / 'subjects.csv'}: {row['folder']}: images"),
                prompt=prompts.fill(prompts.subject, row["class_name"]),
            )
            for row in _rows(data / "subjects.csv", "folder", "paper_name", "class_name", "split", "kind", "images")
        ]
        styles = [
            Style(
                name=row["folder"],
                title=row["paper_name"],
                split=row["split"],
                family=row["family"],
                words=row["style_words"],
                training_prompt=row["training_prompt"],
                source=row.get("source_url") or "",
            )
            for row in _rows(
                data / "styles.csv",
                "folder",
                "paper_name",
                "split",
                "family",
                "style_words",
                "training_prompt",
            )
        ]
        shared = {subject.name for subject in subjects} & {style.name for style in styles}
        if shared:
            # Both kinds share the bank's folder.
            raise UserError(f"{data}: {sorted(shared)[0]} names a subject and a style; rename one of them")
        return cls({subject.name: subject for subject in subjects}, {style.name: style for style in styles}, prompts)

    def divided(self, scheme: str, root: Path | str = ".") -> Catalog:
        """The same under a division of `data/splits.yaml`; under `paper`, the tables' own, without what is new.

        A scheme with a folder in `data/schemes` has other subjects and styles: those of its own tables.

        Raises
        ------
        UserError : there is no such division, or it selects by something that subjects or styles do not have.
        """
        if scheme == "paper":
            return Catalog(_known(self.subjects), _known(self.styles), self.prompts)
        if own_tables(scheme, root):
            return Catalog._tables(schemes(root) / scheme, self.prompts)
        path = Path(root) / "data" / "splits.yaml"
        try:
            divisions = yaml.safe_load(path.read_text(encoding="utf-8"))
            division = divisions[scheme]
            subjects = _selected(self.subjects, division, "subjects")
            styles = _selected(self.styles, division, "styles")
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); restore it from git") from error
        except KeyError as error:
            known = ["paper", *divisions, *sorted(folder.name for folder in schemes(root).iterdir())]
            raise UserError(f"{path}: no {error} there; known divisions: {', '.join(known)}") from None
        except (yaml.YAMLError, AttributeError, TypeError) as error:
            raise UserError(f"{path}: {scheme}: not a division ({error})") from None
        return Catalog(subjects, styles, self.prompts)

    def pairs(
        self, split: Split, subjects: Iterable[str] | None = None, styles: Iterable[str] | None = None
    ) -> list[Pair]:
        """All pairs of a split's subjects and styles, in the order of the tables.

        Parameters
        ----------
        split : which one.
        subjects, styles : names to keep; all by default.
        """
        return [
            (subject, style)
            for subject in _of(self.subjects, split, subjects)
            for style in _of(self.styles, split, styles)
        ]

    def pair_prompt(self, subject: Subject, style: Style) -> str:
        """ "A תת <class> in <words> style" (section A1.3)."""
        return self.prompts.fill(self.prompts.pair, subject.class_name, style.words)

    def class_prompt(self, subject: Subject, style: Style) -> str:
        """The pair's prompt without the rare token."""
        return self.prompts.fill(self.prompts.plain, subject.class_name, style.words)


def schemes(root: Path | str = ".") -> Path:
    """The folder of schemes that have tables of their own."""
    return Path(root) / "data" / "schemes"


def own_tables(scheme: str, root: Path | str = ".") -> bool:
    """Whether a scheme has subjects and styles of its own."""
    return (schemes(root) / scheme / "subjects.csv").is_file()


def pair_name(subject: Subject, style: Style) -> str:
    """`dog8+glowing`: the name of a pair's files."""
    return f"{subject.name}+{style.name}"


def _of(entries: dict[str, Named], split: Split, names: Iterable[str] | None) -> list[Named]:
    kept = entries if names is None else set(names)
    return [entry for entry in entries.values() if entry.split == split and entry.name in kept]


def _known(entries: dict[str, Named]) -> dict[str, Named]:
    return {name: entry for name, entry in entries.items() if entry.split != "new"}


def _selected(entries: dict[str, Named], division: dict[Split, Any], kind: str) -> dict[str, Named]:
    """Those whose columns have one of the values that a split lists, now of that split."""
    return {
        entry.name: replace(entry, split=split)
        for split, by_kind in division.items()
        for entry in entries.values()
        if all(getattr(entry, column) in values for column, values in by_kind[kind].items())
    }


def _prompts(path: Path) -> Prompts:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return Prompts(content["token"], content["subject"], content["pair"], content["class"])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); restore it from git") from error
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path}: needs token, subject, pair and class ({type(error).__name__})") from error


def _rows(path: Path, *columns: str) -> list[dict[str, Any]]:
    """Rows of a table whose columns, names and splits are as they should be."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [column for column in columns if column not in (reader.fieldnames or [])]
            rows = list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it from git") from error
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; add it")
    seen: set[str] = set()
    for number, row in enumerate(rows, start=2):
        empty = [column for column in columns if not row[column]]
        if empty:
            raise UserError(f"{path}:{number}: {', '.join(empty)} is empty; fill it in")
        if row["split"] not in SPLITS:
            raise UserError(f"{path}:{number}: split {row['split']!r} is none of {', '.join(SPLITS)}")
        if row["folder"] in seen:
            raise UserError(f"{path}:{number}: {row['folder']} appears twice; names must differ")
        seen.add(row["folder"])
    return rows


def _count(text: str, where: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise UserError(f"{where}: {text!r} is not a positive number")
    return int(text)
