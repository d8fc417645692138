"""Recipes: YAML files that say which adapters are merged, how much of each, and how (docs/recipes.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import isfinite, prod
from pathlib import Path
from typing import Any

from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter

SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Part:
    """One of a recipe's adapters.

    Attributes
    ----------
    source
        A LoRA's file, or the recipe whose result it is.
    weight
        None is 1, or what the method makes of adapters without weights.
    components, blocks, layers
        Further factors of some layers: by component ("text_encoder"), by block or range of blocks ("mid_block",
        "down_blocks.0-1"), by glob over the whole name ("*.attn2.*"). All that fit a layer are multiplied.
    where
        The recipe and the key, for messages.
    """

    name: str
    source: Path | Recipe
    weight: float | None = None
    components: Mapping[str, float] = field(default_factory=dict)
    blocks: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, float] = field(default_factory=dict)
    where: str = ""

    def scale(self, adapter: Adapter, weight: float = 1.0) -> Adapter:
        """The adapter, each update times `weight` and the factors of its layer; where that is 0 the layer is left out.

        Raises
        ------
        UserError
            A component, block or pattern fits no layer.
        """
        unused = {(kind, key) for kind in _FITS for key in getattr(self, kind)}

        def factor(name: str) -> float:
            fitting = [(kind, key) for kind, fits in _FITS.items() for key in getattr(self, kind) if fits(name, key)]
            unused.difference_update(fitting)
            return weight * prod(getattr(self, kind)[key] for kind, key in fitting)

        scaled = adapter.scaled(factor) if unused or weight != 1 else adapter
        for kind, key in sorted(unused):
            raise UserError(
                f"{self.where}.{kind}.{key}: fits no layer of the adapter; `lorarar inspect --layers` lists its layers"
            )
        return scaled

    @property
    def details(self) -> dict[str, Any]:
        """The weight and all factors, as metadata keep them."""
        found = {kind: dict(values) for kind in _FITS if (values := getattr(self, kind))}
        return {"weight": 1.0 if self.weight is None else self.weight} | found


@dataclass(frozen=True)
class Recipe:
    """A merge, described.

    Attributes
    ----------
    method
        A name of `lorarar methods`; None is `api.default_method`.
    options
        The method's options, without weights where adapters have them.
    format, dtype
        Those of the file to write; None is those of the first adapter's file.
    where
        Names the recipe in messages.
    """

    parts: tuple[Part, ...]
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    format: str | None = None
    dtype: str | None = None
    where: str = ""

    @property
    def files(self) -> Iterator[Part]:
        """Every part that is a file, also of recipes within, in order."""
        for part in self.parts:
            if isinstance(part.source, Recipe):
                yield from part.source.files
            else:
                yield part


def load(path: Path | str) -> Recipe:
    """Read a recipe.

    Raises
    ------
    UserError
        The file is missing or no YAML, or a key or value in it is wrong: one line names the recipe and the key.
    """
    return parse(read(path), Path(path))


def read(path: Path | str) -> Any:
    """The content of a YAML or JSON file, of which no key comes twice in one table."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'})") from None
    if path.suffix == ".json":
        try:
            return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, str(path)))
        except ValueError as error:
            raise UserError(f"{path}: is no JSON ({error})") from None
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses tables in which a key comes twice; YAML keeps the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            _once([(key.value, None) for key, _ in node.value], str(path))
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{path}: {place}is no YAML ({getattr(error, 'problem', None) or 'unreadable'})") from None


def parse(content: Any, path: Path, where: str = "", above: tuple[Path, ...] = ()) -> Recipe:
    """Check the content of a recipe.

    Parameters
    ----------
    path
        Its file, next to which the files of its adapters are.
    where
        Names the recipe in messages; "" is the file.
    above
        Files of the recipes that this one is part of.
    """
    top, keys = where or str(path), f"{where}." if where else f"{path}: "
    table = _table(content, top, ("method", "options", "format", "dtype", "adapters"))
    adapters = _table(table.get("adapters"), f"{keys}adapters")
    if not adapters:
        raise UserError(f"{keys}adapters: name at least one, as in `cat: {{file: cat.safetensors, weight: 0.8}}`")
    parts = tuple(_part(name, value, path, f"{keys}adapters.{name}", above) for name, value in adapters.items())
    options = _table(table.get("options", {}), f"{keys}options")
    if "weights" in options and any(part.weight is not None for part in parts):
        raise UserError(f"{keys}options.weights: adapters have weights already; take one of them out")
    if isinstance(options.get("hypernet"), str):
        options["hypernet"] = path.parent / options["hypernet"]
    texts = {key: _text(table[key], f"{keys}{key}") for key in ("method", "format", "dtype") if key in table}
    return Recipe(parts, options=options, where=top, **texts)


def _part(name: str, value: Any, path: Path, where: str, above: tuple[Path, ...]) -> Part:
    spec = _table({"file": value} if isinstance(value, str) else value, where, ("file", "recipe", "weight", *_FITS))
    if ("file" in spec) == ("recipe" in spec):
        raise UserError(f"{where}: give either file, a LoRA, or recipe, the recipe whose result is merged")
    source: Path | Recipe
    if "file" in spec:
        source = path.parent / _text(spec["file"], f"{where}.file")
    elif isinstance(spec["recipe"], str):
        inner = path.parent / spec["recipe"]
        if inner.resolve() in (own := (*above, path.resolve())):
            raise UserError(f"{where}.recipe: {spec['recipe']} is part of itself; take it out")
        source = parse(read(inner), inner, above=own)
    else:
        source = parse(spec["recipe"], path, f"{where}.recipe", above)
    tables = {kind: _numbers(spec[kind], f"{where}.{kind}") for kind in _FITS if kind in spec}
    weight = _number(spec["weight"], f"{where}.weight") if "weight" in spec else None
    return Part(name, source, weight, where=where, **tables)


def _table(value: Any, where: str, known: tuple[str, ...] = ()) -> dict[str, Any]:
    """The value, if it is a table, with no other keys than those that are known, if any are."""
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: give a table of keys and values, not {_said(value)}")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{where}: the key {key} is no text; put it in quotes")
        if known and key not in known:
            raise UserError(f"{where}: no key is called {key}; choose one of {', '.join(known)}")
    return dict(value)


def _numbers(value: Any, where: str) -> dict[str, float]:
    return {key: _number(number, f"{where}.{key}") for key, number in _table(value, where).items()}


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise UserError(f"{where}: give a number, such as 0.8, not {_said(value)}")
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: give a text, not {_said(value)}")
    return value


def _said(value: Any) -> str:
    return "nothing" if value is None else repr(value)


def _once(pairs: list[tuple[Any, Any]], where: str) -> dict[Any, Any]:
    keys = [key for key, _ in pairs if isinstance(key, str)]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UserError(f"{where}: the key {twice} comes twice in one table; keep one")
    return dict(pairs)


def in_block(name: str, block: str) -> bool:
    """True if a layer is in a block or range of blocks, named with or without its component: "down_blocks.0-1"."""
    return any(
        len(parts) >= len(block.split(".")) and all(map(_within, parts, block.split(".")))
        for parts in (name.split("."), name.split(".")[1:])
    )


def _within(part: str, wanted: str) -> bool:
    first, _, last = wanted.partition("-")
    if first.isdigit() and last.isdigit():
        return part.isdigit() and int(first) <= int(part) <= int(last)
    return part == wanted


_FITS: dict[str, Callable[[str, str], bool]] = {
    "components": lambda name, key: name.partition(".")[0] == key,
    "blocks": in_block,
    "layers": lambda name, key: fnmatchcase(name, key) or fnmatchcase(name.partition(".")[2], key),
}
"""Kinds of factors -> whether one fits a layer, by its name with the component first."""
