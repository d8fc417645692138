"""Merges LoRA files into one: the function `lorarar.merge` and, for the command, `merge_files` and `merge_recipe`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from lorarar import describe
from lorarar.errors import UserError
from lorarar.files import refuse_existing, sha256
from lorarar.lora import base_models, formats
from lorarar.lora.adapter import Adapter
from lorarar.merging.hypernet import HyperNetwork
from lorarar.merging.klora import Schedule
from lorarar.merging.registry import Method, methods
from lorarar.parallel import one_thread
from lorarar.recipe import SUFFIXES, Part, Recipe, load
from lorarar.version import __version__


def merge(
    *adapters: Adapter | Path | str | Recipe,
    method: str | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Adapter | Schedule:
    """Merge a content and a style LoRA, or any number of LoRAs by a method that takes many.

    Parameters
    ----------
    adapters
        Adapters or their files, in any format, of one base model; of two, the content comes first. A single recipe,
        or its YAML or JSON file, has the method and the options.
    method
        A name of `lorarar methods`; None is `default_method(options)`.
    dtype
        The dtype of the result.
    options
        The method's options, such as `weights`, one for each adapter. `hypernet` may be a `HyperNetwork` or its file.

    Returns
    -------
    Adapter
        With its layers in memory; or a `Schedule`, for a method that changes with the denoising step.

    Raises
    ------
    UserError
        A file is damaged, adapters are of different bases or too many for the method, or the method or one of its
        options is unknown.

    Examples
    --------
    >>> lorarar.merge("cat.safetensors", "watercolor.safetensors", method="direct").save("both.safetensors")
    """
    if recipe := _recipe(*adapters):
        if method or options:
            raise UserError(f"{recipe.where or 'recipe'}: a recipe has its method and options; change them there")
        found = _read(*(formats.locate(_file(part)) for part in recipe.files), check=True)
        merged = _combine(recipe, iter(found), dtype)
    else:
        row = _method(method, options)
        given = [adapter for adapter in adapters if not isinstance(adapter, Recipe)]
        if len(given) < len(adapters):
            raise UserError("a recipe is merged alone; make it a part of another recipe")
        merged = row.merge(*_read(*given, check=True), **_loaded(options), dtype=dtype)
    return merged.computed() if isinstance(merged, Adapter) else merged


def _recipe(*adapters: Adapter | Path | str | Recipe) -> Recipe | None:
    """The recipe that stands alone in the place of adapters, read from its file if need be."""
    if len(adapters) != 1 or isinstance(adapters[0], Adapter):
        return None
    only = adapters[0]
    return only if isinstance(only, Recipe) else load(only) if Path(only).suffix in SUFFIXES else None


def merge_files(
    *paths: Path,
    weights: Sequence[float | None] | None = None,
    method: str | None = None,
    format: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Merge files into another, whose metadata tells how it was made.

    Parameters
    ----------
    paths
        The files; of two, the content comes first. The last path is the file to write.
    weights
        One for each file, None where it has none; None is none at all.
    method
        As in `merge`.
    format
        A key of `formats.WRITERS`; None is that of the first file.
    dtype
        A key of `formats.DTYPES`; None is that of the first file.
    options
        The method's options, as in `merge`.

    Returns
    -------
    list of str
        As `merge_recipe`.

    Raises
    ------
    UserError
        As `merge_recipe`.
    """
    *files, out = paths
    shares = weights or [None] * len(files)
    pair = len(files) == 2 and not any(share is not None for share in shares)
    names = ["content", "style"] if pair else [str(file) for file in files]
    if "weights" in (options or {}) and any(share is not None for share in shares):
        raise UserError("--set weights: the files have weights already; take one of them out")
    parts = tuple(
        Part(name, file, share, where=str(file)) for name, file, share in zip(names, files, shares, strict=True)
    )
    return merge_recipe(Recipe(parts, method, dict(options or {}), format, dtype), out, force=force)


def merge_recipe(recipe: Recipe, out: Path, *, force: bool = False) -> list[str]:
    """Merge as a recipe says, into a file whose metadata tells how it was made.

    Returns
    -------
    list of str
        Notes for the user: layers that the method cannot treat, the error of an approximation; last, who opens the
        result.

    Raises
    ------
    UserError
        As `merge`, or `out` exists and `force` is not given. Nothing is written then.
    """
    with _told(recipe.where):
        return _write(recipe, out, force)


def check(recipe: Recipe) -> None:
    """Raise `UserError` if a method, option, number of adapters or dtype is wrong; reads no adapter."""
    with _told(recipe.where):
        row = _method(recipe.method, recipe.options)
        row.require(sum(part.weight != 0 for part in recipe.parts))
        if recipe.dtype and recipe.dtype not in formats.DTYPES:
            raise UserError(f"dtype {recipe.dtype}: unknown; choose one of {', '.join(formats.DTYPES)}")
        for part in recipe.parts:
            if isinstance(part.source, Recipe):
                check(part.source)


def _write(recipe: Recipe, out: Path, force: bool) -> list[str]:
    check(recipe)
    dtype = recipe.dtype
    files = [formats.locate(_file(part)) for part in recipe.files]
    refuse_existing(out, force, *files)
    notes = []
    row = _method(recipe.method, recipe.options)
    method = row.name
    if recipe.method is None:
        count = len(recipe.parts)
        sum_of = f", the sum of {count} adapters" if method == "direct" and count != 2 else ""
        notes.append(f"method {method}: {row.title}{sum_of}; `lorarar methods` lists the others")
    if row.schedule and recipe.format:
        raise UserError(f"method {method}: writes a schedule, not a LoRA, so --format does not apply; leave it out")
    with ThreadPoolExecutor(2) as background:
        checksums = [background.submit(sha256, path) for path in files]
        adapters = _read(*files)
        format = recipe.format or _format_of(adapters[0])
        for path in formats.sidecars(out, format):
            refuse_existing(path, force, *files)
            for file, adapter in zip(files, adapters, strict=True):
                refuse_existing(path, True, *formats.sidecars(file, adapter.format))
        first = next(iter({**adapters[0].layers, **adapters[0].others}.values()))
        try:
            merged = _combine(recipe, iter(adapters), formats.DTYPES[dtype] if dtype else first.down.dtype)
            base = _base(adapters, files, notes)
            found = iter(
                [{"file": path.name, "sha256": sha.result()} for path, sha in zip(files, checksums, strict=True)]
            )
            merged.metadata |= {
                "lorarar.method": method,
                "lorarar.options": json.dumps(_recorded(recipe.options), sort_keys=True),
                "lorarar.sources": json.dumps(_sources(recipe, found), sort_keys=True),
                "lorarar.base": base_models.guess({p: f for a in adapters for p, f in a.layers.items()}),
                "lorarar.version": __version__,
            }
            if isinstance(merged, Schedule):
                merged.save(out)
                return [*notes, f"{row.title}'s result is a schedule, not one LoRA: opens in lorarar only"]
            ranks = merged.all_ranks
            merged.metadata["lorarar.rank"] = ",".join(map(str, sorted(ranks)))
            merged.metadata |= describe.merged(
                *(adapter.metadata for adapter in adapters),
                base=base,
                rank=max(ranks, default=0),
                title=out.stem,
                files=[file.name for file in files],
            )
            merged.save(out, format=format)
        except (UserError, RuntimeError):  # NaN was met: to look for it in the sources before would take longer
            for file, adapter in zip(files, adapters, strict=True):
                adapter.check(str(file))
            raise
    if method == "lorarar" and merged.others:
        number = len(merged.others)
        notes.append(
            f"{number} convolutions and layers of text encoders: the hypernetwork's constants, not predictions"
        )
    if "relative_error" in merged.metadata:
        notes.append(f"relative error of the approximation: {float(merged.metadata['relative_error']):.3g}")
    if phrases := merged.metadata.get("modelspec.trigger_phrase"):
        notes.append(f"trigger words: {phrases}")
    notes.append(f"opens in {formats.opened_by(format, base)}: {format} format")
    return notes


def _combine(recipe: Recipe, adapters: Iterator[Adapter], dtype: torch.dtype) -> Adapter | Schedule:
    """Merge as a recipe says; `adapters` are those of `recipe.files`, in that order."""
    row, options = _method(recipe.method, recipe.options), _loaded(recipe.options)
    takes, kept = "weights" in row.options, list[tuple[Adapter, float]]()
    for part in recipe.parts:
        if isinstance(part.source, Recipe):
            with _told(part.source.where):
                adapter = _combine(part.source, adapters, torch.float32)
            if isinstance(adapter, Schedule):
                raise UserError(f"{part.where}: its method makes a schedule, which cannot be merged further")
        else:
            adapter = next(adapters)
        weight = 1.0 if part.weight is None else part.weight
        scaled = part.scale(adapter, 1.0 if takes else weight)
        if weight:  # 0 leaves an adapter out, also where the method's formula would not
            kept.append((scaled, weight))
    row.require(len(kept))
    if takes and any(part.weight is not None for part in recipe.parts):
        share = 1 / len(kept) if row.name == "average" else 1.0  # the mean of the weighted updates
        options["weights"] = tuple(share * weight for _, weight in kept)
    merged: Adapter | Schedule = row.merge(*(adapter for adapter, _ in kept), **options, dtype=dtype)
    return merged


def _sources(recipe: Recipe, found: Iterator[dict[str, str]]) -> Any:
    """The recipe's files for metadata: those of a pair by their names, others in a list, with their weights."""
    if [(part.name, part.weight) for part in recipe.parts] == [("content", None), ("style", None)] and not recipe.where:
        return {part.name: next(found) for part in recipe.parts}
    listed = []
    for part in recipe.parts:
        source: Mapping[str, Any]
        if isinstance(inner := part.source, Recipe):
            method = inner.method or default_method(inner.options)
            source = {"method": method, "options": _recorded(inner.options), "sources": _sources(inner, found)}
        else:
            source = next(found)
        listed.append({**part.details, **source})
    return listed


def _recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as metadata keep them."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}


def _file(part: Part) -> Path:
    assert isinstance(part.source, Path)
    return part.source


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Errors within begin with the name of the recipe, if there is one."""
    try:
        yield
    except UserError as error:
        raise (error if str(error).startswith(where) else UserError(f"{where}: {error}")) from None


def _format_of(content: Adapter) -> str:
    """The format of the content's file; diffusers' for a schedule's halves and for what peft's has no place for."""
    if content.format == "peft" and not content.layers:
        return "diffusers"
    return content.format or "diffusers"


def _base(adapters: Sequence[Adapter], files: Sequence[Path], notes: list[str]) -> str | None:
    """The base of all, a key of `describe.BASES`: what their metadata says, or else the shapes of their layers.

    Raises
    ------
    UserError
        The files say that they are for different bases.
    """
    claims = [describe.claimed(adapter.metadata) for adapter in adapters]
    told = [(file, claim) for file, claim in zip(files, claims, strict=True) if claim]
    for file, claim in told[1:]:
        if claim != told[0][1]:
            raise UserError(
                f"{told[0][0]} says that it is for {told[0][1]}, {file} for {claim}: merge adapters of one base model"
            )
    linear = [base_models.possible(adapter.layers) for adapter in adapters]
    for file, claim, names in zip(files, claims, linear, strict=True):
        if claim and names and claim not in names:
            notes.append(f"{file}: says that it is for {claim}, but its layers are of {' or '.join(names)}")
    ours, *others = (adapter.matrices.keys() for adapter in adapters)
    for file, theirs in zip(files[1:], others, strict=True):
        shared = len(ours & theirs)
        if min(len(ours), len(theirs)) > 10 * shared:
            both = "both files" if len(files) == 2 else f"{files[0]} and {file}"
            notes.append(f"only {shared} layers are in {both} ({len(ours)} and {len(theirs)}): are they for one base?")
    shapes = next((name for names in linear for name in names if name in describe.BASES), None)
    return next(filter(None, claims), shapes)


def default_method(options: Mapping[str, Any]) -> str:
    """LoRA.rar if its hypernetwork is given, else the method that needs nothing: the sum of both updates."""
    return "lorarar" if "hypernet" in options else "direct"


def _read(*given: Adapter | Path | str, check: bool = False) -> list[Adapter]:
    """The adapters, read from their files if need be, of one base and, if `check`, without NaN."""
    names = ["an adapter" if isinstance(one, Adapter) else str(one) for one in given]
    adapters = [one if isinstance(one, Adapter) else Adapter.load(one) for one in given]
    if check:
        with one_thread():
            for adapter, name in zip(adapters, names, strict=True):
                adapter.check(name)
    for (one, of_one), (other, of_other) in combinations(zip(names, adapters, strict=True), 2):
        base_models.same(of_one.layers, of_other.layers, names=(one, other))
    return adapters


def _method(name: str | None, options: Mapping[str, Any]) -> Method:
    """The method's row, if it has these options; that of `default_method` for None."""
    known = methods()
    name = name or default_method(options)
    if name not in known:
        raise UserError(f"method {name}: unknown; choose one of {', '.join(known)}")
    method = known[name]
    if method.needs == "base+images":
        raise UserError(f"method {name}: is fitted to a base model and images; run it with `dvc repro`")
    if method.needs == "hypernet" and "hypernet" not in options:
        raise UserError(f"method {name}: needs a trained hypernetwork; give --hypernet FILE, or --method direct")
    for key in options:
        if key not in method.options and (key, method.needs) != ("hypernet", "hypernet"):
            raise UserError(f"method {name}: has no option {key}; it has {', '.join(method.options) or 'none'}")
    if not isinstance(hypernet := options.get("hypernet", Path()), str | Path | HyperNetwork):
        raise UserError(f"hypernet {hypernet}: give the file of a trained hypernetwork")
    return method


def _loaded(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with the hypernetwork in the place of its file."""
    hypernet = options.get("hypernet")
    return dict(options) | ({"hypernet": HyperNetwork.load(hypernet)} if isinstance(hypernet, str | Path) else {})
