"""Sweeps: a recipe merged once for each combination of settings, with a table and, if asked, pictures."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from math import floor, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarar import api, recipe
from lorarar.errors import UserError
from lorarar.files import atomic, refuse_existing, sha256
from lorarar.lora.adapter import Adapter
from lorarar.merging.klora import Schedule
from lorarar.merging.registry import methods
from lorarar.recipe import Recipe

if TYPE_CHECKING:
    from lorarar.pictures import Picture

MOST = 10_000
"""The largest number of combinations, so that a slip of the finger does not fill a disk."""


@dataclass(frozen=True)
class Axis:
    """A setting of a recipe and its values: `method`, `weights.NAME` of an adapter or `options.NAME` of the method."""

    setting: str
    values: tuple[Any, ...]

    @classmethod
    def read(cls, text: str, literal: Callable[[str], Any]) -> Axis:
        """Read `SETTING=VALUE,VALUE` or `SETTING=FIRST:LAST:STEP`, both ends included.

        Parameters
        ----------
        literal
            Reads one value of a list.

        Raises
        ------
        UserError
            The text is of neither form, or a value comes twice.
        """
        setting, _, values = text.partition("=")
        kind, _, name = setting.partition(".")
        if not values or not (setting == "method" or (kind in ("weights", "options") and name)):
            raise UserError(f"--over {text}: write method=A,B or weights.NAME=0.4:1.2:0.2 or options.NAME=0.3,0.5")
        found: tuple[Any, ...]
        if kind != "method" and values.count(":") == 2 and "," not in values:
            found = _range(values, text)
        else:
            found = tuple(value if kind == "method" else literal(value) for value in values.split(","))
        if any(value == "" or found.count(value) > 1 for value in found):
            raise UserError(f"--over {text}: a value is empty or comes twice; take it out")
        return cls(setting, found)

    def set(self, content: Any, value: Any, file: Path) -> None:
        """Write a value into the content of a recipe."""
        kind, _, name = self.setting.partition(".")
        if kind == "method":
            content["method"] = value
        elif kind == "options":
            content.setdefault("options", {})[name] = value
        elif name not in content["adapters"]:
            known = ", ".join(content["adapters"])
            raise UserError(f"--over {self.setting}: {file} has no adapter {name}; it has {known}")
        else:
            part = content["adapters"][name]
            content["adapters"][name] = ({"file": part} if isinstance(part, str) else part) | {"weight": value}


@dataclass(frozen=True)
class Point:
    """One combination of settings, and the recipe that has them."""

    settings: Mapping[str, Any]
    recipe: Recipe

    @property
    def name(self) -> str:
        """The settings as the name of a file: `weights.b=0.4_method=direct.safetensors`."""
        texts = [f"{setting}={_shown(value)}" for setting, value in self.settings.items()]
        return re.sub(r"[^\w.=+-]", "-", "_".join(texts)) + ".safetensors"


def plan(file: Path, axes: Sequence[Axis]) -> list[Point]:
    """Every combination of the axes' values, the last axis changing first, with its recipe.

    Raises
    ------
    UserError
        The recipe is wrong, a setting fits no part of it, or two combinations have one name.
    """
    content = recipe.read(file)
    recipe.parse(content, file)  # as it is: mistakes in the file itself
    if len(names := {axis.setting for axis in axes}) < len(axes):
        raise UserError(f"--over: a setting comes twice among {', '.join(sorted(names))}; keep one")
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MOST:
        raise UserError(f"--over: {count} combinations, more than {MOST}; take fewer values")
    points = []
    for values in product(*(axis.values for axis in axes)):
        changed = deepcopy(content)
        for axis, value in zip(axes, values, strict=True):
            axis.set(changed, value, file)
        settings = {axis.setting: value for axis, value in zip(axes, values, strict=True)}
        point = Point(settings, recipe.parse(changed, file))
        api.check(point.recipe)
        points.append(point)
    if len({point.name for point in points}) < len(points):
        raise UserError("--over: two combinations have the same file name; change the values that differ in signs only")
    return points


def run(points: Sequence[Point], out: Path, *, force: bool = False, progress: Callable[[str], None] = print) -> Path:
    """Merge every point into a file of the folder `out`, and list them in `sweep.csv` there.

    Parameters
    ----------
    progress
        Gets a line for each file.

    Returns
    -------
    Path
        The table: settings, file, size in bytes and SHA-256. It grows with each file.

    Raises
    ------
    UserError
        A file exists and `force` is not given, or as `api.merge_recipe`.
    """
    table = out / "sweep.csv"
    for path in (table, *(out / point.name for point in points)):
        refuse_existing(path, force)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for point in points:
        path = out / point.name
        api.merge_recipe(point.recipe, path, force=force)
        settings = {setting: _shown(value) for setting, value in point.settings.items()}
        rows.append(settings | {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)})
        _write(table, rows)
        progress(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    return table


@dataclass(frozen=True)
class Drawing:
    """How a sweep's pictures are drawn.

    Attributes
    ----------
    base
        Folder of the base model.
    """

    base: Path
    prompt: str
    guidance: float
    seed: int = 0
    steps: int = 25

    @classmethod
    def of(cls, points: Sequence[Point], base: Path | None, prompt: str | None, seed: int, steps: int) -> Drawing:
        """Fill in what is not given: the miniature, and the prompt of two of its examples.

        Raises
        ------
        UserError
            The miniature is not here, or the prompt is not known.
        """
        from lorarar import preview, shipped

        folder = base or shipped.root() / "data/pocket/base"
        stems = [Path(str(part.source)).stem for part in points[0].recipe.files]
        if prompt is None and len(stems) != 2:
            raise UserError("--pictures: give --prompt, the words to draw, such as 'a sks cat in oil style'")
        return cls(folder, prompt or preview.prompt_of(*stems), preview.GUIDANCE[base is None], seed, steps)

    def sheet(self, points: Sequence[Point], axes: Sequence[Axis], folder: Path) -> Path:
        """Draw one picture with each file that `run` wrote, all from one seed, and put them on one sheet.

        Returns
        -------
        Path
            The sheet: the first setting counts columns, the others rows.

        Raises
        ------
        UserError
            The base model cannot be loaded, or was not what the files are for.
        """
        from lorarar.diffusion.backbone import Backbone
        from lorarar.diffusion.sampling import generate
        from lorarar.report.figures import grid

        backbone = Backbone.load(self.base)
        drawn: dict[tuple[Any, ...], Picture] = {}
        for point in points:
            path = folder / point.name
            known = methods()[point.recipe.method or api.default_method(point.recipe.options)]
            merged = (Schedule if known.schedule else Adapter).load(path)
            (drawn[tuple(point.settings.values())],) = generate(
                backbone, merged, self.prompt, seeds=[self.seed], steps=self.steps, guidance=self.guidance
            )
        first, *others = axes
        rows = [
            (
                ", ".join(f"{axis.setting}={_shown(value)}" for axis, value in zip(others, values, strict=True)),
                [drawn[column, *values] for column in first.values],
            )
            for values in product(*(axis.values for axis in others))
        ]
        path = folder / "sweep.webp"
        grid(path, [f"{first.setting}={_shown(value)}" for value in first.values], rows)
        return path


def _range(values: str, text: str) -> tuple[float, ...]:
    try:
        first, last, step = map(float, values.split(":"))
        good = isfinite(first + last) and step != 0 and (last - first) / step >= 0
    except ValueError:
        good = False
    if not good:
        raise UserError(f"--over {text}: write a range as FIRST:LAST:STEP, such as 0.4:1.2:0.2")
    count = floor((last - first) / step * (1 + 1e-9)) + 1
    if count > MOST:
        raise UserError(f"--over {text}: {count} values, more than {MOST}; take a larger step")
    return tuple(round(first + index * step, 10) for index in range(count))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
