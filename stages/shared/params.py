"""params.yaml, checked as a whole before anything runs: all problems at once, each with its key and line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import Field, NonNegativeInt, ValidationError, create_model, field_validator

from lorarar.data.catalog import Catalog, pair_name
from lorarar.data.controls import CONTROLS
from lorarar.errors import UserError
from lorarar.merging.registry import METHODS
from lorarar.scoring.judges import HUB_ID
from slurm.fanout import Executor
from slurm.resources import Resources
from stages.shared.schema import (
    TRAINED_KNOBS,
    BackboneKnobs,
    Bank,
    Base,
    Evaluate,
    EvaluatedSplit,
    Generate,
    Score,
    Section,
    Study,
    Workers,
)
from stages.shared.tracking import Tracker, missing

Key = tuple[Any, ...]
FANNING_OUT = ("bank", *TRAINED_KNOBS, "generate", "judge", "score", "ranking", "quality")
"""Names of what fans out: stages, and the rows of stage fit."""
SEEDED = ("bank", *TRAINED_KNOBS, "generate")
"""Names that `seeds` has."""
ELSEWHERE = {
    "judge": ("an address or a name on the hub", re.compile(rf"https?://.+|{HUB_ID.pattern}")),
    "clip": ("NAME:TAG of open_clip", re.compile(r"[\w.-]+:[\w.-]+")),
    "dino": ("a name on the hub", HUB_ID),
}
"""Form of the names of models that are not shipped, in words and as a pattern."""


class FixedSections(Section):
    """The sections of a recipe that every method needs."""

    backbone: BackboneKnobs
    bank: Bank
    merge: dict[str, dict[str, Any]]
    generate: Generate
    score: Score


Recipe = create_model("Recipe", __base__=FixedSections, **{name: (knobs, ...) for name, knobs in TRAINED_KNOBS.items()})  # type: ignore[call-overload]


class Params(Section):
    """All of params.yaml. `workers` is None for one per core."""

    base: str
    recipe: str
    seed: int = Field(ge=0)
    seeds: dict[str, NonNegativeInt]
    executor: Executor
    workers: Workers
    evaluate: Evaluate
    keep_merged: bool = False
    tracking: tuple[Tracker, ...] = ()
    headline_method: str
    study: Study
    bases: dict[str, Base]
    recipes: dict[str, Recipe]  # type: ignore[valid-type]
    resources: dict[str, dict[str, Resources]]

    @field_validator("resources", mode="before")
    @classmethod
    def _spread_all(cls, given: Any) -> Any:
        """Give each job the values of `all` that it does not change."""
        if not isinstance(given, dict):
            return given
        spread = dict(given)
        for base, jobs in given.items():
            if isinstance(jobs, dict) and all(isinstance(job, dict) for job in jobs.values()):
                if "all" not in jobs:
                    raise ValueError(f"{base} needs `all`, which holds for every stage")
                spread[base] = {name: jobs["all"] | jobs.get(name, {}) for name in (*jobs, *FANNING_OUT)}
        return spread

    @property
    def jobs(self) -> dict[str, Resources]:
        """Resources of the chosen base's jobs; a base without an entry takes its recipe's."""
        return self.resources.get(self.base) or self.resources[self.recipe]

    def with_base(self, name: str) -> Params:
        """The same with another base, and the recipe that goes with it."""
        return self.model_copy(update={"base": name, "recipe": self.bases[name].recipe})

    @property
    def chosen(self) -> Any:
        """The chosen recipe."""
        return self.recipes[self.recipe]


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
        problems += [_explain(details) for details in error.errors() if _given(content, details["loc"])]
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
    """Unknown method, subject and style names. Checked on the raw YAML, so that they come together with type errors."""
    methods = [*METHODS, *CONTROLS]
    known: dict[Key, tuple[str, list[str]]] = {
        ("evaluate", "methods"): ("method", methods),
        ("study", "methods"): ("method", methods),
    }
    recipes = content.get("recipes")
    for name in recipes if isinstance(recipes, dict) else ():
        known["recipes", name, "bank", "subjects"] = ("subject", list(catalog.subjects))
        known["recipes", name, "bank", "styles"] = ("style", list(catalog.styles))
    for key, (kind, names) in known.items():
        value: Any = content
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            yield from _names(key, kind, value, names)


def _contradictions(params: Params, catalog: Catalog) -> Iterator[tuple[Key, str]]:
    """Mistakes in values that all have the right type."""
    if params.base not in params.bases:
        yield ("base",), _unknown("base", params.base, params.bases)
        return
    wanted = params.bases[params.base].recipe
    for name, base in params.bases.items():
        if base.recipe not in params.recipes:
            yield ("bases", name, "recipe"), _unknown("recipe", base.recipe, params.recipes)
            return
    if params.recipe != wanted:
        reason = f"base {params.base} goes with recipe {wanted}, not {params.recipe!r}; give `-S recipe={wanted}` too"
        yield ("recipe",), reason
        return
    shipped = Path("data", params.base)
    if not (shipped / "base").is_dir():
        yield ("base",), f"{shipped / 'base'} is not there; restore it with `git checkout {shipped}`, or choose another"
    for name in (*SEEDED, *params.seeds):
        if name not in SEEDED:
            yield ("seeds", name), _unknown("key here", name, SEEDED)
        elif name not in params.seeds:
            yield ("seeds", name), "is missing; add it"
    evaluate = params.evaluate
    yield from _names(("evaluate", "splits"), "split", evaluate.splits, get_args(EvaluatedSplit))
    if params.base not in params.resources and params.recipe not in params.resources:
        yield ("resources",), f"needs an entry for {params.base} or for its recipe {params.recipe}; add it"
    for name, jobs in params.resources.items():
        for job in jobs:
            if job not in ("all", *FANNING_OUT):
                yield ("resources", name, job), _unknown("key here", job, ("all", *FANNING_OUT))
    section = next((name for name in (params.base, params.recipe) if params.resources.get(name)), None)
    batch, gpus = params.chosen.hypernet.batch_size, params.jobs["hypernet"].gpus if section else 0
    if gpus > 1 and batch % gpus:
        reason = f"{gpus} GPUs cannot share recipes.{params.recipe}.hypernet.batch_size {batch}; make that a multiple"
        yield ("resources", section, "hypernet", "gpus"), reason
    for name, recipe in params.recipes.items():
        yield from _recipe(name, recipe, params)

    yield from _names(("tracking",), "tracker", [*params.tracking], get_args(Tracker))
    for index, tracker in enumerate(params.tracking):
        if reason := missing(tracker):
            yield ("tracking", index), reason
    if params.headline_method not in evaluate.methods:
        reason = f"{params.headline_method!r} is not among evaluate.methods; add it there, or name one of them"
        yield ("headline_method",), reason
    try:
        catalog = catalog.divided(evaluate.scheme)
    except UserError as error:
        yield ("evaluate", "scheme"), str(error)
        return
    bank = params.chosen.bank
    if not catalog.pairs("train", bank.subjects, bank.styles):
        reason = "the hypernetwork needs at least one subject and one style of the split train"
        yield ("recipes", params.recipe, "bank"), reason
    pairs = []
    for split in evaluate.splits:
        found = [pair_name(*pair) for pair in catalog.pairs(split, bank.subjects, bank.styles)]
        if not found:
            reason = f"the bank has no pair of the split {split}; add a subject and a style of it to the bank"
            yield ("evaluate", "splits"), reason
        kept = [name for name in found if evaluate.pairs is None or name in evaluate.pairs]
        if found and not kept:
            yield ("evaluate", "pairs"), f"none of the split {split}; add one, or remove the split"
        if evaluate.sample and found and evaluate.sample.pairs > len(found):
            reason = f"{evaluate.sample.pairs} is more than the {len(found)} pairs of the split {split}; lower it"
            yield ("evaluate", "sample", "pairs"), reason
        pairs += found
    if evaluate.sample and evaluate.pairs is not None:
        yield (
            ("evaluate", "sample"),
            "draws from all pairs, but evaluate.pairs lists some; use one: `null` here or `all` there",
        )
    yield from _names(("evaluate", "pairs"), "pair of these splits", evaluate.pairs, pairs)


def _recipe(name: str, recipe: Any, params: Params) -> Iterator[tuple[Key, str]]:
    key, bases = ("recipes", name), [base for base, one in params.bases.items() if one.recipe == name]
    if recipe.score.judge_questions is None and any(params.bases[base].base for base in bases):
        yield (*key, "score", "judge_questions"), "is missing; add it"
    for method, options in recipe.merge.items():
        yield from _names((*key, "merge"), "method", [method], METHODS)
        for option in options if method in METHODS else ():
            if option not in METHODS[method].options:
                yield (*key, "merge", method, option), _unknown("option", option, METHODS[method].options)
    yield from _names((*key, "hypernet", "guided"), "projection", recipe.hypernet.guided, None)
    for kind, (form, pattern) in ELSEWHERE.items():
        model = getattr(recipe.score, kind)
        known = sorted({path.name for base in bases for path in Path("data", base, "judges").glob("*")})
        if not pattern.fullmatch(model) and model not in known:
            yield (*key, "score", kind), f"{_unknown(kind, model, known)}, or give {form}"


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


def _given(content: Any, key: Key) -> bool:
    """False for a value of `resources` that a job has from `all`: the mistake is reported there."""
    return len(key) < 4 or key[0] != "resources" or key[3] in content["resources"][key[1]].get(key[2], {})


def _explain(details: Any) -> tuple[Key, str]:
    """pydantic's finding in the user's terms."""
    key = details["loc"]
    if details["type"] == "extra_forbidden":
        known = _fields(key[:-1])
        return key, _unknown("key here", str(key[-1]), known)
    if details["type"] == "missing":
        return key, "is missing; add it"
    message = details["msg"].removeprefix("Value error, ").removeprefix("Input ")
    given = details["input"]
    return key, message if isinstance(given, dict) else f"{message}, not {given!r}"


def _fields(key: Key) -> list[str]:
    """Keys that the section at `key` may have."""
    model: Any = Params
    for part in key:
        if get_origin(model) is dict:  # bases, recipes and resources, by name
            model = get_args(model)[1]
        else:
            model = model.model_fields[part].annotation
            model = (
                next((one for one in get_args(model) if one is not type(None)), model) if _optional(model) else model
            )
    return list(FANNING_OUT) if get_origin(model) is dict else list(model.model_fields)


def _optional(annotation: Any) -> bool:
    return type(None) in get_args(annotation)


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
