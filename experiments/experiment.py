"""Experiment files: a question, and the settings of params.yaml that answer it."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from lorarar.data.catalog import Catalog
from lorarar.errors import UserError
from stages.shared.params import load

FOLDER = Path("experiments")
KEYS = ("question", "methods", "splits", "settings", "paper", "figure", "replicates")
ELSEWHERE = ("executor", "workers", "resources", "study", "headline_method")
"""Parameters that no score depends on."""


@dataclass(frozen=True)
class Setting:
    """A row of an experiment.

    Attributes
    ----------
    label : name of the row.
    changes : short key, as in the file -> value.
    params : all of params.yaml with these changes.
    """

    label: str
    changes: dict[str, Any]
    params: dict[str, Any]

    @property
    def digest(self) -> str:
        """Short hash of every parameter that a score depends on."""
        params = self.params
        kept = {key: value for key, value in params.items() if key not in (*ELSEWHERE, "bases", "recipes")}
        text = json.dumps(kept | params["recipes"][params["recipe"]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Experiment:
    """An experiment file, read for one base.

    Attributes
    ----------
    given : changes common to all settings.
    paper : rows of the paper's table, named like the settings or the methods; empty without such a table.
    figure : short key on the horizontal axis of the chart.
    replicates : True if the settings repeat one another, so that their spread is the answer.
    """

    name: str
    base: str
    question: str
    methods: list[str]
    splits: list[str]
    given: dict[str, Any]
    settings: list[Setting]
    paper: dict[str, dict[str, float]]
    figure: str | None
    replicates: bool
    targets = ("score", "headline")

    def overrides(self, setting: Setting) -> dict[str, Any]:
        """Full key of params.yaml -> value."""
        return {
            "evaluate.methods": self.methods,
            "evaluate.splits": self.splits,
            "headline_method": setting.params["headline_method"],
            "recipe": setting.params["recipe"],
            **{full(key, setting.params): value for key, value in (self.given | setting.changes).items()},
        }

    def revision(self, setting: Setting, commit: str) -> str:
        """Name of the setting among DVC's experiments; it ends in the commit, so results of two commits differ."""
        words = re.sub(r"[^A-Za-z0-9]+", "-", f"{self.name}-{setting.label}").strip("-")
        words = words if len(words) <= 50 else f"{words[:41]}-{setting.digest[:8]}"
        return f"{words}-{commit[:7]}"


def names() -> list[str]:
    """Names of all experiments."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str, given: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment and check all of its settings, before any of them runs.

    Parameters
    ----------
    given : further changes for all settings, with short keys as in the file.

    Raises
    ------
    UserError : no such experiment, or a mistake in its file or in a setting.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        near = get_close_matches(name, names(), 1)
        hint = f"did you mean {near[0]}?" if near else f"see {', '.join(names())}"
        raise UserError(f"{path}: no such experiment; {hint}")
    content = _yaml(path)
    if not isinstance(content, dict) or not {"question", "methods", "splits"} <= content.keys():
        raise UserError(f"{path}: needs question, methods and splits")
    unknown = [str(key) for key in content if key not in KEYS]
    if unknown:
        raise UserError(f"{path}: no key is called {unknown[0]!r}; known: {', '.join(KEYS)}")
    standard, given = _yaml(Path("params.yaml")), dict(given or {})
    common = {"evaluate.methods": content["methods"], "evaluate.splits": content["splits"], **given}
    settings = [
        Setting(str(row.pop("label", None) or describe(row)), row, changed(standard, common | row, path))
        for row in _rows(path, content.get("settings", [{}]))
    ]
    labels = [setting.label for setting in settings]
    repeated = [label for label in labels if labels.count(label) > 1]
    if repeated:
        raise UserError(f"{path}: two settings are called {repeated[0]!r}; give one another label")
    catalog = Catalog.load()
    for setting in settings:
        _check(setting, path, catalog)
    params = settings[0].params
    return Experiment(
        name=name,
        base=params["base"],
        question=content["question"],
        methods=params["evaluate"]["methods"],
        splits=params["evaluate"]["splits"],
        given=given,
        settings=settings,
        paper=_paper(content.get("paper")),
        figure=content.get("figure"),
        replicates=bool(content.get("replicates", False)),
    )


def describe(changes: Mapping[str, Any]) -> str:
    """`steps=100, guided=to_q+to_k`: the changes of a setting in few words."""
    parts = [f"{key.rpartition('.')[2]}={_short(value)}" for key, value in changes.items()]
    return ", ".join(parts) or "default"


def full(key: str, params: Mapping[str, Any]) -> str:
    """Key of params.yaml: `hypernet.steps` belongs to the chosen recipe, `seed` and `evaluate.splits` to no recipe."""
    return key if key.partition(".")[0] in params else f"recipes.{params['recipe']}.{key}"


def changed(params: Mapping[str, Any], changes: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Copy the parameters and make the changes; another base brings its recipe."""
    result = copy.deepcopy(dict(params))
    if str(changes.get("base")) in result["bases"]:
        result["recipe"] = result["bases"][changes["base"]]["recipe"]
    for key, value in changes.items():
        *above, last = full(key, result).split(".")
        section: Any = result
        for part in above:
            section = section.get(part) if isinstance(section, dict) else None
        whole = isinstance(section, dict) and section.get(last) is None  # nothing there to give keys of
        if not isinstance(section, dict) or (isinstance(value, dict) and not whole):
            reason = "give its keys one by one" if isinstance(value, dict) else "params.yaml has no such key"
            raise UserError(f"{path}: {key}: {reason}")
        section[last] = value
    if result["headline_method"] not in result["evaluate"]["methods"]:
        result["headline_method"] = result["evaluate"]["methods"][0]
    return result


def hydra(value: Any) -> str:
    """Write a value as `dvc exp run -S` takes it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{hydra(of)}" for key, of in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _rows(path: Path, settings: Any) -> list[dict[str, Any]]:
    """The changes of each setting: a list as it stands, or all combinations of lists of values."""
    if isinstance(settings, dict) and settings and all(isinstance(values, list) for values in settings.values()):
        return [dict(zip(settings, row, strict=True)) for row in itertools.product(*settings.values())]
    if isinstance(settings, list) and settings and all(isinstance(row, dict) for row in settings):
        return [dict(row) for row in settings]
    raise UserError(f"{path}: settings: a list of changes, or of each key the list of its values")


def _paper(name: str | None) -> dict[str, dict[str, float]]:
    path = Path("data/paper_results.yaml")
    tables = _yaml(path) if name else {None: {}}
    if name not in tables:
        raise UserError(f"{path}: no table is called {name!r}; known: {', '.join(tables)}")
    return tables[name]


def _check(setting: Setting, path: Path, catalog: Catalog) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(setting.params, file, allow_unicode=True)
        file.flush()
        try:
            load(Path(file.name), catalog)
        except UserError as error:
            reason = re.sub(rf"^{re.escape(file.name)}:\d+: ", "", str(error).splitlines()[0])
            raise UserError(f"{path}: {setting.label}: {reason}") from None


def _short(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "+".join(map(str, value)) if len(value) <= 4 else f"{len(value)} names"
    return str(value)


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
