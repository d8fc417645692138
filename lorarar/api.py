"""Merges two LoRA files into one: the function `lorarar.merge` and, for the command, `merge_files`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from lorarar import describe
from lorarar.errors import UserError
from lorarar.files import refuse_existing, sha256
from lorarar.lora import base_models, formats
from lorarar.lora.adapter import Adapter
from lorarar.lora.lycoris import Reading, unused
from lorarar.merging.hypernet import HyperNetwork
from lorarar.merging.klora import Schedule
from lorarar.merging.registry import METHODS, Method
from lorarar.parallel import one_thread
from lorarar.version import __version__


def merge(
    content: Adapter | Path | str,
    style: Adapter | Path | str,
    method: str | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Adapter | Schedule:
    """Merge a content and a style LoRA.

    Parameters
    ----------
    content, style
        Adapters or their files, in any format, of one base model.
    method
        A name of `lorarar methods`; None is `default_method(options)`.
    dtype
        The dtype of the result.
    options
        The method's options. `hypernet` may be a `HyperNetwork` or its file.

    Returns
    -------
    Adapter
        With its layers in memory; or a `Schedule`, for a method that changes with the denoising step.

    Raises
    ------
    UserError
        A file is damaged, the two are of different bases, or the method or one of its options is unknown.

    Examples
    --------
    >>> lorarar.merge("cat.safetensors", "watercolor.safetensors", method="direct").save("both.safetensors")
    """
    row = _method(method or default_method(options), options)
    merged = row.merge(*_read(content, style, check=True), **options, dtype=dtype)
    return merged.computed() if isinstance(merged, Adapter) else merged


def merge_files(
    content: Path,
    style: Path,
    out: Path,
    *,
    method: str | None = None,
    format: str | None = None,
    dtype: str | None = None,
    force: bool = False,
    options: Mapping[str, Any] | None = None,
    reading: Reading | None = None,
) -> list[str]:
    """Merge two files into a third, whose metadata tells how it was made.

    Parameters
    ----------
    method
        As in `merge`.
    format
        One of `formats.FORMATS`; None is that of the content's file.
    dtype
        A key of `formats.DTYPES`; None is that of the content's file.
    options
        The method's options, as in `merge`.
    reading
        How updates of other kinds than LoRA are read; None keeps ranks up to 128 whole, and needs no base model.

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
    if dtype and dtype not in formats.DTYPES:
        raise UserError(f"dtype {dtype}: unknown; choose one of {', '.join(formats.DTYPES)}")
    content, style = formats.locate(content), formats.locate(style)
    refuse_existing(out, force, content, style)
    given = dict(options or {})
    notes = []
    if method is None:
        method = default_method(given)
        notes.append(f"method {method}: {METHODS[method].title}; `lorarar methods` lists the others")
    recorded = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    row = _method(method, given)
    if row.schedule and format:
        raise UserError(f"method {method}: writes a schedule, not a LoRA, so --format does not apply; leave it out")
    with ThreadPoolExecutor(2) as background:
        paths = {"content": content, "style": style}
        checksums = {name: background.submit(sha256, path) for name, path in paths.items()}
        adapters = _read(content, style, reading=reading)
        found = zip(paths.values(), adapters, strict=True)
        notes += [f"{path}: {adapter.note}" for path, adapter in found if adapter.note] or unused(reading)
        format = format or _format_of(adapters[0])
        for path in formats.sidecars(out, format):
            refuse_existing(path, force, content, style)
        for path in formats.sidecars(out, format):
            refuse_existing(path, True, *formats.sidecars(content, adapters[0].format))
            refuse_existing(path, True, *formats.sidecars(style, adapters[1].format))
        first = next(iter({**adapters[0].layers, **adapters[0].others}.values()))
        try:
            merged = row.merge(*adapters, **given, dtype=formats.DTYPES[dtype] if dtype else first.down.dtype)
            sources = {name: {"file": path.name, "sha256": checksums[name].result()} for name, path in paths.items()}
            for source, adapter in zip(sources.values(), adapters, strict=True):
                source |= {"kind": adapter.note} if adapter.note else {}
            base = _base(adapters, (content, style), notes)
            merged.metadata |= {
                "lorarar.method": method,
                "lorarar.options": json.dumps(recorded, sort_keys=True),
                "lorarar.sources": json.dumps(sources, sort_keys=True),
                "lorarar.base": base_models.guess({**adapters[0].layers, **adapters[1].layers}),
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
                files=[content.name, style.name],
            )
            merged.save(out, format=format)
        except (UserError, RuntimeError):  # NaN was met: to look for it in the sources before would take longer
            adapters[0].check(str(content))
            adapters[1].check(str(style))
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


def _format_of(content: Adapter) -> str:
    """The format of the content's file; diffusers' for a schedule's halves and for what peft's has no place for."""
    if content.format == "peft" and not content.layers:
        return "diffusers"
    return content.format or "diffusers"


def _base(adapters: Sequence[Adapter], files: Sequence[Path], notes: list[str]) -> str | None:
    """The base of both, a key of `describe.BASES`: what their metadata says, or else the shapes of their layers.

    Raises
    ------
    UserError
        The files say that they are for different bases.
    """
    claims = [describe.claimed(adapter.metadata) for adapter in adapters]
    if None not in claims and claims[0] != claims[1]:
        raise UserError(
            f"{files[0]} says that it is for {claims[0]}, {files[1]} for {claims[1]}: merge adapters of one base model"
        )
    linear = [base_models.possible(adapter.layers) for adapter in adapters]
    for file, claim, names in zip(files, claims, linear, strict=True):
        if claim and names and claim not in names:
            notes.append(f"{file}: says that it is for {claim}, but its layers are of {' or '.join(names)}")
    ours, theirs = (adapter.matrices.keys() for adapter in adapters)
    shared = len(ours & theirs)
    if min(len(ours), len(theirs)) > 10 * shared:
        notes.append(f"only {shared} layers are in both files ({len(ours)} and {len(theirs)}): are they for one base?")
    shapes = next((name for names in linear for name in names if name in describe.BASES), None)
    return next(filter(None, claims), shapes)


def default_method(options: Mapping[str, Any]) -> str:
    """LoRA.rar if its hypernetwork is given, else the method that needs nothing: the sum of both updates."""
    return "lorarar" if "hypernet" in options else "direct"


def _read(*given: Adapter | Path | str, check: bool = False, reading: Reading | None = None) -> list[Adapter]:
    """The adapters, read from their files if need be, of one base and, if `check`, without NaN."""
    names = ["an adapter" if isinstance(one, Adapter) else str(one) for one in given]
    adapters = [one if isinstance(one, Adapter) else Adapter.load(one, reading) for one in given]
    if check:
        with one_thread():
            for adapter, name in zip(adapters, names, strict=True):
                adapter.check(name)
    base_models.same(*(adapter.layers for adapter in adapters), names=names)
    return adapters


def _method(name: str, options: dict[str, Any]) -> Method:
    """The method's row, if it has these options; a hypernetwork's file is loaded into `options`."""
    if name not in METHODS:
        raise UserError(f"method {name}: unknown; choose one of {', '.join(METHODS)}")
    method = METHODS[name]
    if method.needs == "base+images":
        raise UserError(f"method {name}: is fitted to a base model and images; run it with `dvc repro`")
    if method.needs == "hypernet" and "hypernet" not in options:
        raise UserError(f"method {name}: needs a trained hypernetwork; give --hypernet FILE, or --method direct")
    for key in options:
        if key not in method.options and (key, method.needs) != ("hypernet", "hypernet"):
            raise UserError(f"method {name}: has no option {key}; it has {', '.join(method.options) or 'none'}")
    if isinstance(hypernet := options.get("hypernet"), str | Path):
        options["hypernet"] = HyperNetwork.load(hypernet)
    elif "hypernet" in options and not isinstance(hypernet, HyperNetwork):
        raise UserError(f"hypernet {hypernet}: give the file of a trained hypernetwork")
    return method
