"""Merges as tasks name them, made when they are needed: an adapter for each method and pair would fill the disk."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from lorarar.data.catalog import Pair, pair_name
from lorarar.lora.adapter import Adapter
from lorarar.merging.klora import Schedule
from lorarar.merging.registry import METHODS
from slurm.task import paths_sha256
from stages.shared.context import Context
from stages.shared.sample_task import Sample
from stages.shared.trained import TRAINED

PACKAGE = "lorarar.merging"


@dataclass(frozen=True)
class Merge:
    """How a method merges a pair: all that the result depends on.

    Attributes
    ----------
    pair : its name, for messages.
    options : of params.yaml.
    trained : option -> (its loader as `module:name`, the file), of what stage fit made.
    function, code : the method's function, and a hash of its code. Other methods may change without changing this one.
    """

    method: str
    pair: str
    content: str
    style: str
    options: dict[str, Any]
    trained: dict[str, tuple[str, str]]
    function: str
    code: str

    @property
    def reads(self) -> list[Path | str]:
        """The files that it is made of."""
        return [self.content, self.style, *(file for _, file in self.trained.values())]

    def adapter(self) -> Adapter | Schedule:
        """The merged adapter, computed. Raises `UserError` if it has numbers that are not finite, or files lack."""
        options = {name: resolve_name(load)(Path(file)) for name, (load, file) in self.trained.items()}
        content, style = Adapter.load(self.content), Adapter.load(self.style)
        made = METHODS[self.method].merge(content, style, **self.options, **options)
        if isinstance(made, Adapter):
            made = made.computed()
            made.check(f"{self.method} of {self.pair}")  # NaN would be sampled as black
        return made


@dataclass(frozen=True)
class SampleMerged:
    """Merges, and samples with the result, of which nothing is kept."""

    merge: Merge
    sample: Sample

    def run(self, folder: Path) -> None:
        # By way of a file, as a reader of a merged file has it: memory laid out in another way may round differently.
        file = folder / "merged.safetensors"
        self.merge.adapter().save(file)
        replace(self.sample, adapter=str(file), schedule=METHODS[self.merge.method].schedule).run(folder)
        file.unlink()


def merge_of(context: Context, method: str, pair: Pair) -> Merge:
    """The merge of a pair by a method, as params.yaml says."""
    content, style = (str(context.adapter(member)) for member in pair)
    trained: dict[str, tuple[str, str]] = {}
    loaders: list[str] = []
    for row in TRAINED.values():
        if row.method == method:
            file = context.artifacts / row.name / f"{pair_name(*pair) if row.per_pair else row.name}.safetensors"
            trained[row.option] = (f"{row.load.__module__}:{row.load.__qualname__}", str(file))
            loaders.append(row.load.__module__)
    function, options = METHODS[method].function, context.knobs.merge.get(method, {})
    code = _code(function.partition(":")[0], *loaders)
    return Merge(method, pair_name(*pair), content, style, options, trained, function, code)


@cache
def _code(*modules: str) -> str:
    """Hash of those of these modules that are in lorarar/merging, and of all that they import from there.

    A function from elsewhere may call any of them, so it depends on all.
    """
    if not modules[0].startswith(f"{PACKAGE}."):
        return paths_sha256([PACKAGE.replace(".", "/")])
    found, left = set(), list(modules)
    while left:
        module = left.pop()
        path = Path(*module.split(".")).with_suffix(".py")
        if not path.is_file():
            path = path.with_suffix("") / "__init__.py"
        if module.startswith(PACKAGE) and path.is_file() and path not in found:
            found.add(path)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module:
                    left += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                elif isinstance(node, ast.Import):
                    left += [alias.name for alias in node.names]
    return paths_sha256(sorted(found))
