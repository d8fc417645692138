"""Photographs of the full-size benchmark: downloaded or placed by hand, checked, and compared with earlier checksums.

The folder `data/photographs` says where they come from (`sources.yaml`), keeps the checksum of every photograph that
was ever used (`photographs.lock`), and holds those that are placed by hand (`subjects/<name>/`, `styles/<name>/`).
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import yaml
from PIL import Image
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from tqdm import tqdm

from lorarar import pictures
from lorarar.data.catalog import Style, Subject
from lorarar.data.download import Downloader, Manners, Refused
from lorarar.errors import UserError
from lorarar.files import atomic, sha256
from lorarar.pictures import Picture

MIRROR = "LORARAR_MIRROR"
"""Environment variable: an address to download from in place of all others."""
ADDRESS = re.compile(r"https?://[\w.-]")
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF")


class Section(BaseModel):
    """Part of sources.yaml; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Collection(Section):
    """Subjects that are published together. `subjects`: name -> who made the pictures."""

    title: str
    page: str
    address: str
    license: str
    subjects: dict[str, str]


class Measures(Section):
    """Allowed sizes of a picture, in pixels, and the size at which it is kept."""

    smallest_side: PositiveInt
    megapixels: PositiveInt
    longest_side: PositiveInt


class Sources(Section):
    """All of sources.yaml."""

    collections: list[Collection]
    licenses: dict[str, str]
    credits: dict[str, str]
    hosts: frozenset[str]
    download: Manners
    picture: Measures


@dataclass(frozen=True)
class Photograph:
    """A picture that the benchmark needs.

    Attributes
    ----------
    name : such as `subjects/dog8/03`.
    address : where it is published; empty if nowhere.
    placed : the file that was placed by hand, if there is one.
    """

    name: str
    address: str
    placed: Path | None


@dataclass(frozen=True)
class Lock:
    """Checksums of all pictures ever used: name -> (SHA-256, bytes). One line each, sorted: `sha256  name  bytes`."""

    path: Path
    entries: dict[str, tuple[str, int]]

    @classmethod
    def load(cls, path: Path) -> Lock:
        """Reads the file; a missing one is empty."""
        entries = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), start=1):
            match = re.fullmatch(r"([0-9a-f]{64})  (\S+)  (\d+)", line)
            if not match:
                raise UserError(f"{path}:{number}: not `sha256  name  bytes`; restore it from git, or delete the line")
            entries[match[2]] = match[1], int(match[3])
        return cls(path, entries)

    def save(self) -> None:
        lines = [f"{digest}  {name}  {size}\n" for name, (digest, size) in sorted(self.entries.items())]
        with atomic(self.path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")


@dataclass(frozen=True)
class Photographs:
    """Photographs of subjects and styles, described by the files of `folder`; downloads are kept in `cache`."""

    folder: Path
    cache: Path
    sources: Sources

    @classmethod
    def load(cls, folder: Path, cache: Path) -> Photographs:
        """Reads `sources.yaml`.

        Raises
        ------
        UserError : the file is missing or not valid.
        """
        path = folder / "sources.yaml"
        try:
            return cls(folder, cache, Sources.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"])) or "the whole file"
            raise UserError(f"{path}: {key}: {first['msg']}; mend it, or restore it from git") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: cannot be read ({reason}); restore it from git") from None

    def wanted(self, subjects: Iterable[Subject], styles: Iterable[Style]) -> list[Photograph]:
        """Lists the pictures of some subjects and styles.

        Raises
        ------
        UserError : an address is not valid, or a picture placed by hand has no clear number.
        """
        found = []
        for subject in subjects:
            place = f"subjects/{subject.name}"
            placed = self._placed(place, subject.images)
            for index in range(subject.images):
                found.append(Photograph(f"{place}/{index:02}", self._address(subject, index), placed.get(index)))
        for style in styles:
            place = f"styles/{style.name}"
            if style.source and not ADDRESS.match(style.source):
                raise UserError(f"data/styles.csv: {style.name}: source_url {style.source!r} is no address; mend it")
            found.append(Photograph(f"{place}/00", style.source, self._placed(place, 1).get(0)))
        return found

    def fetch(self, wanted: Sequence[Photograph], mirror: str = "") -> dict[str, Path]:
        """Gets all pictures and returns name -> file.

        Pictures placed by hand come first, then earlier downloads; the rest is downloaded. All are compared with the
        lock file, and new ones are added to it.

        Raises
        ------
        UserError : some are missing; the message has one line for each.
        """
        if mirror and not ADDRESS.match(mirror):
            raise UserError(f"{MIRROR}: {mirror!r} is no address; give one as https://mirror.example.org/cache")
        lock = Lock.load(self.folder / "photographs.lock")
        downloader = Downloader(self.sources.download, self.sources.hosts, mirror)
        by_name = {photograph.name: photograph for photograph in wanted}
        addresses = {name: "" if self._here(photograph) else photograph.address for name, photograph in by_name.items()}
        problems = {}
        interval = 0.1 if sys.stderr.isatty() else 15
        try:
            with tqdm(total=len(wanted), desc="photographs", unit="picture", mininterval=interval) as bar:
                for name, reason in downloader.each(
                    addresses, lambda name: self._have(by_name[name], lock, downloader)
                ):
                    if reason:
                        problems[name] = reason
                    bar.update()
        finally:
            lock.save()
        if problems:
            raise UserError("\n".join(self._advice(by_name[name], problems[name]) for name in sorted(problems)))
        return {name: self._file(photograph) for name, photograph in by_name.items()}

    def plan(self, wanted: Sequence[Photograph]) -> str:
        """Tells in a few lines what `fetch` would do."""
        placed = [photograph for photograph in wanted if photograph.placed]
        here = [photograph for photograph in wanted if not photograph.placed and self._here(photograph)]
        rest = [photograph for photograph in wanted if not self._here(photograph)]
        hosts = Counter(urlsplit(photograph.address).netloc for photograph in rest if photograph.address)
        lines = [
            f"{len(wanted)} pictures: {len(placed)} placed by hand in {self.folder}, {len(here)} downloaded before "
            f"to {self.cache}, {hosts.total()} to download"
        ]
        lines += [f"  {number} from {host}" for host, number in hosts.most_common()]
        lines += [f"  {self._advice(photograph, 'no address')}" for photograph in rest if not photograph.address]
        return "\n".join(lines)

    def attribution(self, subjects: Iterable[Subject], styles: Iterable[Style]) -> str:
        """A Markdown table of the pictures' owners and licenses."""
        rows = [(subject.name, str(subject.images), *self._credit(subject)) for subject in subjects]
        rows += [(style.name, "1", *self._credit(style)) for style in styles]
        lines = [
            "# Whose these pictures are",
            "They belong to those who made them, and were only turned upright, converted to sRGB and reduced. Sources:",
            f"`data/styles.csv`, `{self.folder / 'sources.yaml'}`; checksums of the originals: "
            f"`{self.folder / 'photographs.lock'}`.",
            "",
            "| | pictures | by | from | license |",
            "| --- | ---: | --- | --- | --- |",
        ]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])

    # --- one picture ----------------------------------------------------------------------------------------------

    def _have(self, photograph: Photograph, lock: Lock, downloader: Downloader) -> None:
        """Checks the picture, and downloads it first if needed."""
        file = self._file(photograph)
        if photograph.placed:
            self._accept(photograph, file, lock)
            return
        if file.exists():
            try:
                self._accept(photograph, file, lock)
                return
            except Refused:
                file.unlink()  # damaged since, or left from other days: it is downloaded again
        if not photograph.address:
            raise Refused("no address")
        with atomic(file) as part:
            downloader.get(photograph.address, part)
            self._accept(photograph, part, lock)

    def _accept(self, photograph: Photograph, file: Path, lock: Lock) -> None:
        """Compares a file with the lock; a new one must be a picture of an allowed size."""
        facts = sha256(file), file.stat().st_size
        known = lock.entries.get(photograph.name)
        if known is None:
            try:
                _decode(file, self.sources.picture)
            except ValueError as error:
                raise Refused(str(error)) from None
            lock.entries[photograph.name] = facts
        elif known != facts:
            raise Refused(f"not the picture of before ({facts[1]} bytes, {known[1]} in {lock.path})")

    def _file(self, photograph: Photograph) -> Path:
        return photograph.placed or self.cache / photograph.name

    def _here(self, photograph: Photograph) -> bool:
        return self._file(photograph).exists()

    def _advice(self, photograph: Photograph, reason: str) -> str:
        changed = (
            f", or delete its line in {self.folder / 'photographs.lock'} if the new one is right"
            if reason.startswith("not the picture")
            else ""
        )
        if photograph.placed:
            return f"{photograph.placed}: {reason}; place another{changed}"
        where = f"{photograph.address}: " if photograph.address else ""
        return f"{photograph.name}: {where}{reason}; place it by hand as {self.folder / photograph.name}.jpg{changed}"

    # --- sources and credits --------------------------------------------------------------------------------------

    def _collection(self, subject: Subject) -> Collection | None:
        return next((c for c in self.sources.collections if subject.name in c.subjects), None)

    def _address(self, subject: Subject, index: int) -> str:
        collection = self._collection(subject)
        if collection is None:
            return ""
        return collection.address.replace("{name}", subject.name).replace("{number}", f"{index:02}")

    def _credit(self, entry: Subject | Style) -> tuple[str, str, str]:
        """Owner, source and license."""
        own = self.sources.credits.get(entry.name, "")
        if isinstance(entry, Subject):
            collection = self._collection(entry)
            if collection is None:
                return own, "placed by hand", ""
            return (
                own or collection.subjects[entry.name],
                f"[{collection.title}]({collection.page})",
                collection.license,
            )
        if not entry.source:
            return own, "placed by hand", ""
        licenses = [text for prefix, text in self.sources.licenses.items() if entry.source.startswith(prefix)]
        return own, entry.source.removesuffix("/download?force=true"), licenses[0] if licenses else "not known"

    def _placed(self, place: str, number: int) -> dict[int, Path]:
        """Pictures placed by hand: a full folder in the order of its names, otherwise those that are numbered."""
        folder = self.folder / place
        files = pictures.files(folder) if folder.is_dir() else []
        if len(files) == number:
            return dict(enumerate(files))
        found: dict[int, Path] = {}
        for path in files:
            index = int(path.stem) if re.fullmatch(r"\d\d", path.stem) else number
            if index >= number or index in found:
                raise UserError(
                    f"{path}: which of {number} is it? Have {number} pictures in this folder as the catalogue says, "
                    f"or name those that are to replace others 00 to {number - 1:02}"
                )
            found[index] = path
        return found


def develop(path: Path, measures: Measures) -> Picture:
    """Reads a photograph: turned upright, sRGB, transparent parts white, reduced to the longest side.

    Raises
    ------
    UserError : the file is no picture, or has a wrong size.
    """
    try:
        return np.asarray(_decode(path, measures))
    except ValueError as error:
        raise UserError(f"{path}: {error}; replace it") from None


def _decode(path: Path, measures: Measures) -> Image.Image:
    """Pillow image of `develop`; a ValueError says what is wrong."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > measures.megapixels * 1e6:
                raise ValueError(f"{width} x {height} pixels, more than {measures.megapixels} million; reduce it")
            if min(width, height) < measures.smallest_side:
                raise ValueError(f"{width} x {height} pixels, its smaller side must have {measures.smallest_side}")
            flat = pictures.developed(image)
    except Image.DecompressionBombError:
        raise ValueError(f"more than {measures.megapixels} million pixels; reduce it") from None
    except (OSError, SyntaxError, EOFError) as error:
        if isinstance(error, Image.UnidentifiedImageError) and (advice := pictures.unread(path)):
            raise ValueError(advice) from None
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({error})"
        raise ValueError(f"no whole {', '.join(FORMATS)} picture{reason}") from None
    flat.thumbnail((measures.longest_side, measures.longest_side), Image.Resampling.LANCZOS)
    return flat
