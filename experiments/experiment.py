"""Experiment files: a question, and the settings of params.yaml that answer it."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
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
ELSEWHERE = ("executor", "workers", "resources", "study", "follow")
"""Parameters that no score depends on."""


@dataclass(frozen=True)
class Setting:
    """One row of an experiment.

    Attributes
    ----------
    label : what the row is called.
    changes : short key, as the file has it -> value.
    params : all of params.yaml with them.
    """

    label: str
    changes: dict[str, Any]
    params: dict[str, Any]

    @property
    def digest(self) -> str:
        """Short hash of every parameter that a score depends on."""
        base = self.params["base"]
        kept = {key: value for key, value in self.params.items() if key not in (*ELSEWHERE, "bases")}
        text = json.dumps(kept | self.params["bases"][base], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Experiment:
    """A file of this folder, for one base.

    Attributes
    ----------
    paper : rows of the paper's table, called as the settings or as the methods; empty where it has none.
    figure : short key that is the horizontal axis.
    given : changes that are common to all settings.
    replicates : whether the settings repeat one another, so that their spread is the answer.
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

    @property
    def targets(self) -> list[str]:
        """Stages to reproduce: with what they need, and nothing else."""
        return [*(f"score@{method}-{split}" for method in self.methods for split in self.splits), "followed"]

    def overrides(self, setting: Setting) -> dict[str, Any]:
        """Full key of params.yaml -> value."""
        return {
            "evaluate.methods": self.methods,
            "evaluate.splits": self.splits,
            "follow": setting.params["follow"],
            **{full(key, setting.params): value for key, value in (self.given | setting.changes).items()},
        }

    def revision(self, setting: Setting, commit: str) -> str:
        """Name of the setting among DVC's experiments, of a commit too: results of two commits have two names."""
        words = re.sub(r"[^A-Za-z0-9]+", "-", f"{self.name}-{setting.label}").strip("-")
        words = words if len(words) <= 50 else f"{words[:41]}-{setting.digest[:8]}"
        return f"{words}-{commit[:7]}"


def names() -> list[str]:
    """All experiments there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str, given: Mapping[str, Any] | None = None) -> Experiment:
    """Read an experiment and check all of its settings, before any of them runs.

    Parameters
    ----------
    given : further changes, common to all settings, with keys as in the file.

    Raises
    ------
    UserError : there is no such experiment, or its file or a setting is not right.
    """
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        near = get_close_matches(name, names(), 1)
        raise UserError(
            f"{path}: no such experiment; {f'did you mean {near[0]}?' if near else 'see ' + ', '.join(names())}"
        )
    content = _yaml(path)
    if not isinstance(content, dict) or not {"question", "methods", "splits"} <= content.keys():
        raise UserError(f"{path}: needs question, methods and splits")
    unknown = [str(key) for key in content if key not in KEYS]
    if unknown:
        raise UserError(f"{path}: no key is called {unknown[0]!r}; known: {', '.join(KEYS)}")
    standard = _yaml(Path("params.yaml"))
    rows = _rows(path, content.get("settings", [{}]))
    common = {"evaluate.methods": content["methods"], "evaluate.splits": content["splits"], **(given or {})}
    settings = [
        Setting(str(row.pop("label", None) or describe(row)), row, changed(standard, common | row, path))
        for row in rows
    ]
    labels = [setting.label for setting in settings]
    repeated = [label for label in labels if labels.count(label) > 1]
    if repeated:
        raise UserError(f"{path}: two settings are called {repeated[0]!r}; give one another label")
    catalog = Catalog.load()
    for setting in settings:
        _check(setting, path, catalog)
    return Experiment(
        name=name,
        base=settings[0].params["base"],
        question=content["question"],
        methods=settings[0].params["evaluate"]["methods"],
        splits=settings[0].params["evaluate"]["splits"],
        given=dict(given or {}),
        settings=settings,
        paper=_paper(content.get("paper")),
        figure=content.get("figure"),
        replicates=bool(content.get("replicates", False)),
    )


def describe(changes: Mapping[str, Any]) -> str:
    """`steps=100, guided=to_q+to_k`: what a setting changes, in few words."""
    parts = [f"{key.rpartition('.')[2]}={_short(value)}" for key, value in changes.items()]
    return ", ".join(parts) or "default"


def full(key: str, params: Mapping[str, Any]) -> str:
    """`hypernet.steps` is of the chosen base; `seed` and `evaluate.splits` are of all."""
    return key if key.partition(".")[0] in params else f"bases.{params['base']}.{key}"


def changed(params: Mapping[str, Any], changes: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A copy of the parameters with the changes made."""
    result = json.loads(json.dumps(params))
    result["base"] = changes.get("base", result["base"])
    for key, value in changes.items():
        *above, last = full(key, result).split(".")
        section = result
        for part in above:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or isinstance(value, dict):
            reason = "give its keys one by one" if isinstance(value, dict) else "params.yaml has no such key"
            raise UserError(f"{path}: {key}: {reason}")
        section[last] = value
    if result["follow"] not in result["evaluate"]["methods"]:
        result["follow"] = result["evaluate"]["methods"][0]
    return result


def _rows(path: Path, settings: Any) -> list[dict[str, Any]]:
    """A list of changes as it stands; of lists of values, all combinations."""
    if isinstance(settings, dict) and settings and all(isinstance(values, list) for values in settings.values()):
        return [dict(zip(settings, row, strict=True)) for row in itertools.product(*settings.values())]
    if isinstance(settings, list) and settings and all(isinstance(row, dict) for row in settings):
        return [dict(row) for row in settings]
    raise UserError(f"{path}: settings: a list of changes, or of each key the list of its values")


def _paper(name: str | None) -> dict[str, dict[str, float]]:
    if name is None:
        return {}
    path = Path("data/paper_results.yaml")
    tables = _yaml(path)
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


def hydra(value: Any) -> str:
    """A value as `dvc exp run -S` takes it."""
    if isinstance(value, Iterable) and not isinstance(value, str):
        return f"[{','.join(map(hydra, value))}]"
    return json.dumps(value, ensure_ascii=False)
