"""params.yaml, checked as a whole before anything runs: all problems at once, each with its key and line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from lorarar.data.catalog import Catalog, pair_name
from lorarar.data.controls import CONTROLS
from lorarar.errors import UserError
from lorarar.merge.registry import METHODS
from lorarar.scoring.judges import HUB_ID
from stages.shared.schema import Bases, BaseSections, EvaluatedSplit, Params, Training

__all__ = ["BaseSections", "Params", "Training", "load"]

Key = tuple[Any, ...]
ELSEWHERE = {
    "judge": ("an address or a name on the hub", re.compile(rf"https?://.+|{HUB_ID.pattern}")),
    "clip": ("NAME:TAG of open_clip", re.compile(r"[\w.-]+:[\w.-]+")),
    "dino": ("a name on the hub", HUB_ID),
}
"""How a model that is not shipped is named, in words and as a pattern."""


def load(path: Path, catalog: Catalog) -> Params:
    """Read and check params.yaml against itself, the catalogue and the tables of methods.

    Raises
    ------
    UserError
        Its message has one line for each problem.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree, content = _parse(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run this in the root of the repository") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{place}: not YAML: {getattr(error, 'problem', None) or 'cannot be parsed'}") from None
    except (ValueError, RecursionError) as error:  # no such date, a number of 5000 digits, a thousand brackets
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: empty; restore it from git")

    problems = [*_repeated(tree), *_unknown_names(content, catalog)]
    try:
        params = Params.model_validate(content)
        problems += _contradictions(params, catalog)
    except ValidationError as error:
        problems += [_explain(details) for details in error.errors()]
    if problems:
        placed = sorted((_line(tree, key), ".".join(map(str, key)), reason) for key, reason in problems)
        lines = [f"{path}:{line}: {key}: {reason}" for line, key, reason in placed]
        raise UserError("\n".join(lines))
    return params


def _parse(text: str) -> tuple[Any, Any]:
    """The nodes of a YAML document, which know their lines, and what they stand for."""
    loader = _Loader(text)
    tree = loader.get_single_node()
    return tree, loader.construct_document(tree) if tree else None


class _Loader(yaml.SafeLoader):
    """YAML without aliases, of which a few lines can stand for more than fits into memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            reason = "aliases are not read here, write the value out"
            raise yaml.composer.ComposerError(problem=reason, problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)


def _unknown_names(content: dict[Any, Any], catalog: Catalog) -> Iterator[tuple[Key, str]]:
    """Names of nothing: looked for in the file itself, so that they are told beside values of wrong types."""
    methods = [*METHODS, *CONTROLS]
    known: dict[Key, tuple[str, list[str]]] = {
        ("evaluate", "methods"): ("method", methods),
        ("study", "methods"): ("method", methods),
    }
    for base in Bases.model_fields:
        known["bases", base, "bank", "subjects"] = ("subject", list(catalog.subjects))
        known["bases", base, "bank", "styles"] = ("style", list(catalog.styles))
    for key, (kind, names) in known.items():
        value: Any = content
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            yield from _names(key, kind, value, names)


def _contradictions(params: Params, catalog: Catalog) -> Iterator[tuple[Key, str]]:
    """What is wrong although every value has its type."""
    bases = list(Bases.model_fields)
    if params.base not in bases:
        yield ("base",), _unknown("base", params.base, bases)
        return
    shipped = Path("data", params.base)
    if not (shipped / "base").is_dir():
        yield ("base",), f"{shipped / 'base'} is not there; restore it with `git checkout {shipped}`, or choose another"
    evaluate = params.evaluate
    yield from _names(("evaluate", "splits"), "split", evaluate.splits, get_args(EvaluatedSplit))
    for name in bases:
        base, key = getattr(params.bases, name), ("bases", name)
        if base.base:  # drawn, so the judge can be examined
            resources = getattr(params.resources, name)
            if base.score.judge_questions is None:
                yield (*key, "score", "judge_questions"), "is missing; add it"
            for stage in ("judge", "quality"):
                if getattr(resources, stage) is None:
                    yield ("resources", name, stage), "is missing; add it"
        for method, options in base.merge.items():
            yield from _names((*key, "merge"), "method", [method], METHODS)
            for option in options if method in METHODS else ():
                if option not in METHODS[method].options:
                    yield (*key, "merge", method, option), _unknown("option", option, METHODS[method].options)
        yield from _names((*key, "hypernet", "guided"), "projection", base.hypernet.guided, None)
        for kind, (form, pattern) in ELSEWHERE.items():
            model = getattr(base.score, kind)
            known = sorted(path.name for path in Path("data", name, "judges").glob("*"))
            if not pattern.fullmatch(model) and model not in known:
                yield (*key, "score", kind), f"{_unknown(kind, model, known)}, or give {form}"

    if params.follow not in evaluate.methods:
        yield ("follow",), f"{params.follow!r} is not among evaluate.methods; add it there, or follow one of them"
    try:
        catalog = catalog.divided(evaluate.scheme)
    except UserError as error:
        yield ("evaluate", "scheme"), str(error)
        return
    bank = params.chosen.bank
    if not catalog.pairs("train", bank.subjects, bank.styles):
        reason = "the hypernetwork needs at least one subject and one style of the split train"
        yield ("bases", params.base, "bank"), reason
    pairs = []
    for split in evaluate.splits:
        found = [pair_name(*pair) for pair in catalog.pairs(split, bank.subjects, bank.styles)]
        if not found:
            reason = f"the bank has no pair of the split {split}; add a subject and a style of it to the bank"
            yield ("evaluate", "splits"), reason
        kept = [name for name in found if evaluate.pairs is None or name in evaluate.pairs]
        if found and not kept:
            yield ("evaluate", "pairs"), f"none of the split {split}; add one, or remove the split"
        pairs += found
    yield from _names(("evaluate", "pairs"), "pair of these splits", evaluate.pairs, pairs)


def _names(key: Key, kind: str, given: list[Any] | None, known: Any) -> Iterator[tuple[Key, str]]:
    """Names that are unknown or come twice."""
    for index, name in enumerate(given or []):
        if name in (given or [])[:index]:
            yield (*key, index), f"{name} appears twice; remove one"
        elif known is not None and name not in known:
            yield (*key, index), _unknown(kind, name, known)


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known[:12])}" + " ..." * (len(known) > 12)
    return f"no {kind} is called {name!r}; {hint}"


def _explain(details: Any) -> tuple[Key, str]:
    """pydantic's finding in the user's terms."""
    key = details["loc"]
    if details["type"] == "extra_forbidden":
        known = _fields(key[:-1])
        return key, _unknown("key here", str(key[-1]), known)
    if details["type"] == "missing":
        return key, "is missing; add it"
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return key, f"{message}, not {details['input']!r}"


def _fields(key: Key) -> list[str]:
    """Keys that the section at `key` may have."""
    model: Any = Params
    for part in key:
        model = model.model_fields[part].annotation
        model = next(iter(get_args(model)), model)  # of a section that may be left out
    return list(model.model_fields)


def _line(tree: Any, key: Key) -> int:
    """Line of the innermost part of `key` that the file has."""
    line = 1
    for part in key:
        children: dict[Any, Any] = {}
        if isinstance(tree, yaml.MappingNode):
            children = {name.value: (name, value) for name, value in tree.value}
        elif isinstance(tree, yaml.SequenceNode):
            children = {index: (value, value) for index, value in enumerate(tree.value)}
        if part not in children:
            break
        name, tree = children[part]
        line = name.start_mark.line + 1
    return line


def _repeated(tree: Any, key: Key = ()) -> Iterator[tuple[Key, str]]:
    """Keys that come twice in one section: YAML would silently take the last."""
    if isinstance(tree, yaml.MappingNode):
        seen = set()
        for name, value in tree.value:
            if name.value in seen:
                yield (*key, name.value), "appears twice; remove one"
            seen.add(name.value)
            yield from _repeated(value, (*key, name.value))
