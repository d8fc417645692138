"""Merges two LoRA files into one: the function `lorarar.merge` and, for the command, `merge_files`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from lorarar import __version__
from lorarar.errors import UserError
from lorarar.files import refuse_existing, sha256
from lorarar.lora import base_models, formats
from lorarar.lora.adapter import Adapter
from lorarar.lora.lazy import blanks
from lorarar.merge.hypernet import HyperNetwork
from lorarar.merge.klora import Schedule
from lorarar.merge.registry import METHODS, Method
from lorarar.parallel import one_thread


def merge(
    content: Adapter | Path | str,
    style: Adapter | Path | str,
    method: str = "lorarar",
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
        A name of `lorarar methods`.
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
    row = _method(method, options)
    merged = row.merge(*_read(content, style, check=True), **options, dtype=dtype)
    return merged.computed() if isinstance(merged, Adapter) else merged


def merge_files(
    content: Path,
    style: Path,
    out: Path,
    *,
    method: str = "lorarar",
    format: str = "diffusers",
    dtype: str | None = None,
    force: bool = False,
    options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Merge two files into a third, whose metadata tells how it was made.

    Parameters
    ----------
    format
        A key of `formats.WRITERS`.
    dtype
        A key of `formats.DTYPES`; None is that of the content's file.
    options
        The method's options, as in `merge`.

    Returns
    -------
    list of str
        Notes for the user: layers carried over, the error of an approximation.

    Raises
    ------
    UserError
        As `merge`, or `out` exists and `force` is not given. Nothing is written then.
    """
    if dtype and dtype not in formats.DTYPES:
        raise UserError(f"dtype {dtype}: unknown; choose one of {', '.join(formats.DTYPES)}")
    for path in (out, *formats.sidecars(out, format)):
        refuse_existing(path, force, content, style)
    given = dict(options or {})
    recorded = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    row = _method(method, given)
    if row.schedule and format != "diffusers":
        raise UserError(f"method {method}: writes a schedule, not a LoRA, so --format does not apply; leave it out")
    with ThreadPoolExecutor(2) as background:
        paths = {"content": content, "style": style}
        checksums = {name: background.submit(sha256, path) for name, path in paths.items()}
        adapters = _read(content, style)
        for path in formats.sidecars(out, format):
            refuse_existing(path, True, *formats.sidecars(content, adapters[0].format))
            refuse_existing(path, True, *formats.sidecars(style, adapters[1].format))
        first = next(iter({**adapters[0].layers, **adapters[0].unmerged}.values()))
        try:
            merged = row.merge(*adapters, **given, dtype=formats.DTYPES[dtype] if dtype else first.down.dtype)
            sources = {name: {"file": path.name, "sha256": checksums[name].result()} for name, path in paths.items()}
            merged.metadata |= {
                "lorarar.method": method,
                "lorarar.options": json.dumps(recorded, sort_keys=True),
                "lorarar.sources": json.dumps(sources, sort_keys=True),
                "lorarar.base": base_models.guess({**adapters[0].layers, **adapters[1].layers}),
                "lorarar.version": __version__,
            }
            if isinstance(merged, Schedule):
                merged.save(out)
                note = "result is a schedule, not one LoRA: this file is for `lorarar`, not for other tools"
                return [f"{row.title}'s {note}"]
            ranks = {factors.rank for part in (merged.layers, merged.unmerged) for factors in blanks(part).values()}
            merged.metadata["lorarar.rank"] = ",".join(map(str, sorted(ranks)))
            merged.save(out, format=format)
        except (UserError, RuntimeError):  # NaN was met: to look for it in the sources before would take longer
            adapters[0].check(str(content))
            adapters[1].check(str(style))
            raise
    notes = []
    if merged.unmerged:
        of = "text encoders or convolutions (summed where both files have them)"
        notes.append(f"carried over unmerged: {len(merged.unmerged)} layers of {of}")
    if "relative_error" in merged.metadata:
        notes.append(f"relative error of the approximation: {float(merged.metadata['relative_error']):.3g}")
    return notes


def _read(*given: Adapter | Path | str, check: bool = False) -> list[Adapter]:
    """The adapters, read from their files if need be, of one base and, if `check`, without NaN."""
    names = ["an adapter" if isinstance(one, Adapter) else str(one) for one in given]
    adapters = [one if isinstance(one, Adapter) else Adapter.load(one) for one in given]
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
