"""Base models as data: each JSON file here is a family of bases, and adding one needs no code.

A file is an object with these entries:

- `family`: its name. `order`: families are listed by it. `class`, `pipeline`: their names in diffusers.
- `models`: name of a base -> `configuration` of the class, `sizes`, and `metadata` by which other programs know it:
  `versions` and `architectures` (beginnings of `ss_base_model_version` and `modelspec.architecture`) and `entries`,
  which a file of this base gets. A base that no program knows has no `metadata`.
- `layers`: paths of linear layers -> shape [m_out, n_in]; they tell the base. `embeddings`: the same for layers that do
  not: variants of a base differ in them, and bases share them.
- `names`: naming scheme -> {name of a module there: path, or paths whose rows it stacks}; `#` is a number. The
  scheme "" is not listed: its names are paths.
- `writes`: format of `transformer.FORMATS` -> naming scheme; diffusers and peft have "".
- `swapped`: paths of layers whose two halves of rows are the other way round in these schemes.
- `encoders`: kohya's prefix of a text encoder -> its component in diffusers, for transformers.
- `programs`: name of a program -> the formats that it reads, the best first, for transformers.

In paths, `{a,b}` stands for a or b, `{3}` for 0, 1 or 2, and `{depth}` for as many numbers as the size `depth` says, or
for its members if it is a list. A later pattern takes the place of an earlier one for a path of both. A name in a shape
is one of `sizes`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import count, pairwise
from pathlib import Path
from typing import Any

Shape = tuple[int, int]
"""(m_out, n_in)."""


@dataclass(frozen=True, eq=False)
class Base:
    """A base model: its linear layers and their names.

    Attributes
    ----------
    name, family : such as "FLUX.2 dev" and "FLUX.2".
    model, pipeline : names of classes in diffusers.
    configuration : arguments of `model`.
    layers : path -> shape, of the layers that tell the base.
    embeddings : the same, of those that do not.
    renamed : naming scheme -> name there -> paths; see `names`.
    swapped : paths of layers whose halves of rows change places in those schemes.
    encoders : kohya's prefix of a text encoder -> its component in diffusers.
    writes : format -> naming scheme.
    programs : name of a program -> the formats it reads.
    metadata : `versions`, `architectures` and `entries`; None if other programs do not know the base.
    """

    name: str
    family: str
    model: str
    pipeline: str
    configuration: dict[str, Any]
    layers: dict[str, Shape]
    embeddings: dict[str, Shape]
    renamed: dict[str, dict[str, str]]
    swapped: frozenset[str] = frozenset()
    encoders: dict[str, str] = field(default_factory=dict)
    writes: dict[str, str] = field(default_factory=dict)
    programs: dict[str, list[str]] = field(default_factory=dict)
    metadata: dict[str, Any] | None = None

    @property
    def component(self) -> str:
        """The component of a pipeline that the base is: "unet" or "transformer"."""
        return "unet" if self.model.startswith("UNet") else "transformer"

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of LoRA files that are read and written for this base."""
        return ("diffusers", "peft", *self.writes)

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of all linear layers by path."""
        return self.layers | self.embeddings

    @cached_property
    def names(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Naming scheme -> name of a module -> paths of the layers whose rows it stacks, of all linear layers.

        The scheme "" has the paths themselves.
        """
        own: dict[str, tuple[str, ...]] = {path: (path,) for path in self.shapes}
        return {"": own} | {
            scheme: {
                name: paths for pattern, target in rules.items() for name, paths in self._numbered(pattern, target)
            }
            for scheme, rules in self.renamed.items()
        }

    def _numbered(self, pattern: str, target: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The names that a rule gives, each with its paths: for each number, while the base has layers of it."""
        for number in count():
            paths = tuple(path for path in expand(target.replace("#", str(number))) if path in self.shapes)
            if paths:
                yield pattern.replace("#", str(number)), paths
            if not paths or "#" not in pattern:
                return


def expand(pattern: str, sizes: Mapping[str, Any] | None = None) -> Iterator[str]:
    """The strings that a pattern with `{a,b}`, `{3}` and `{size}` stands for, in order."""
    start = pattern.find("{")
    if start < 0:
        yield pattern
        return
    depth, cuts = 0, [start]
    for match in re.compile(r"[{},]").finditer(pattern, start):
        depth += {"{": 1, "}": -1, ",": 0}[match[0]]
        if depth == 0 or (depth == 1 and match[0] == ","):
            cuts.append(match.start())
        if depth == 0:
            break
    options = [pattern[before + 1 : after] for before, after in pairwise(cuts)]
    if len(options) == 1:
        size = (sizes or {}).get(options[0], options[0])
        options = list(map(str, size if isinstance(size, list) else range(int(size))))
    for option in options:
        yield from expand(pattern[:start] + option + pattern[cuts[-1] + 1 :], sizes)


@cache
def bases() -> tuple[Base, ...]:
    """All bases, in the order of their families."""
    files = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(__file__).parent.glob("*.json")))
    return tuple(base for family in sorted(files, key=lambda family: family["order"]) for base in _models(family))


def named(name: str | None) -> Base | None:
    """The base of this name, if there is one."""
    return next((base for base in bases() if base.name == name), None)


def claimed(metadata: Mapping[str, str]) -> str | None:
    """The name of the base that a file's metadata names; None if it names none of those with `metadata`."""
    version = metadata.get("ss_base_model_version", "").lower()
    architecture = metadata.get("modelspec.architecture", "").lower()
    found = [(base.name, base.metadata) for base in bases() if base.metadata]
    for name, names in sorted(found, key=lambda item: item[1]["entries"].get("ss_v2") != "True"):
        if version.startswith(tuple(names["versions"])) or architecture.startswith(tuple(names["architectures"])):
            return name
        if metadata.get("ss_v2") == names["entries"].get("ss_v2") == "True":
            return name
    return None


def _models(family: Mapping[str, Any]) -> Iterator[Base]:
    for name, model in family["models"].items():
        sizes = model.get("sizes", {})

        def shapes(part: str, sizes: Mapping[str, Any] = sizes) -> dict[str, Shape]:
            return {
                path: (sizes.get(rows, rows), sizes.get(columns, columns))
                for pattern, (rows, columns) in family.get(part, {}).items()
                for path in expand(pattern, sizes)
            }

        yield Base(
            name,
            family["family"],
            family["class"],
            family["pipeline"],
            model["configuration"],
            shapes("layers"),
            shapes("embeddings"),
            family.get("names", {}),
            frozenset(path for pattern in family.get("swapped", ()) for path in expand(pattern, sizes)),
            family.get("encoders", {}),
            family.get("writes", {}),
            family.get("programs", {}),
            model.get("metadata"),
        )
