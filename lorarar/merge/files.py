"""From two LoRA files to one: what the command `lorarar merge` and the function `lorarar.merge` do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lorarar import __version__
from lorarar.adapter import Adapter
from lorarar.errors import UserError
from lorarar.files import sha256
from lorarar.formats import bases
from lorarar.hypernet import HyperNetwork
from lorarar.merge.klora import Schedule
from lorarar.merge.registry import METHODS, Method

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def merge(
    content: Adapter | Path | str, style: Adapter | Path | str, method: str = "lorarar", **options: Any
) -> Adapter | Schedule:
    """Merge a content and a style LoRA.

    Parameters
    ----------
    content, style
        Adapters or their files, in any format, of one base model.
    method
        A name of `lorarar methods`.
    options
        Of the method. `hypernet` may be a `HyperNetwork` or its file; `dtype` is that of the result,
        float32 if not given.

    Returns
    -------
    Adapter
        Or, for a method that changes with the denoising step, a `Schedule`.

    Raises
    ------
    UserError
        A file is damaged, the two are of different bases, or the method or one of its options is unknown.

    Examples
    --------
    >>> lorarar.merge("cat.safetensors", "watercolor.safetensors", method="direct").save("both.safetensors")
    """
    row = _method(method, options)
    if isinstance(hypernet := options.get("hypernet"), str | Path):
        options["hypernet"] = HyperNetwork.load(hypernet)
    names = [str(given) if isinstance(given, str | Path) else "an adapter" for given in (content, style)]
    content, style = (given if isinstance(given, Adapter) else Adapter.load(given) for given in (content, style))
    for adapter, name in zip((content, style), names, strict=True):
        adapter.check(name)
    bases.same(content, style, names=names)
    return row.merge(content, style, **options)


def merge_files(
    content: Path,
    style: Path,
    out: Path,
    *,
    method: str = "lorarar",
    format: str = "diffusers",
    dtype: str | None = None,
    force: bool = False,
    **options: Any,
) -> list[str]:
    """Merge two files into a third, which tells how it was made in its metadata.

    Returns
    -------
    list of str
        What the user should know beside success: layers carried over, the error of an approximation.

    Raises
    ------
    UserError
        As `merge`, or `out` exists and `force` is not given. Nothing is written then.
    """
    refuse_existing(out, force, content, style)
    _method(method, options)
    adapters = [Adapter.load(path) for path in (content, style)]
    first = next(iter((adapters[0].layers | adapters[0].rest).values()))
    number = DTYPES[dtype] if dtype else first.down.dtype
    recorded = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
    merged = merge(adapters[0], adapters[1], method, dtype=number, **options)
    sources = [{"file": path.name, "sha256": sha256(path)} for path in (content, style)]
    merged.metadata |= {
        "lorarar.method": method,
        "lorarar.options": json.dumps(recorded, sort_keys=True),
        "lorarar.sources": json.dumps(dict(zip(("content", "style"), sources, strict=True)), sort_keys=True),
        "lorarar.base": bases.guess(adapters[0].layers),
        "lorarar.version": __version__,
    }
    if isinstance(merged, Schedule):
        merged.save(out)
        return ["K-LoRA's result is a schedule, not one LoRA: this file is for `lorarar`, not for other tools"]
    merged.metadata["lorarar.rank"] = ",".join(map(str, sorted(set(merged.ranks.values()))))
    merged.save(out, format=format)
    notes = []
    if merged.rest:
        of = "text encoders or convolutions (summed where both files have them)"
        notes.append(f"carried over unmerged: {len(merged.rest)} layers of {of}")
    if "relative_error" in merged.metadata:
        notes.append(f"relative error of the approximation: {float(merged.metadata['relative_error']):.3g}")
    return notes


def refuse_existing(out: Path, force: bool, *sources: Path) -> None:
    """Raise `UserError` if writing `out` would replace a file that nobody said may be replaced, or a source."""
    if any(out.exists() and source.exists() and out.samefile(source) for source in sources):
        raise UserError(f"{out}: is one of the inputs; write to another file")
    if out.exists() and not force:
        raise UserError(f"{out}: exists; give another name, or --force to replace it")


def _method(name: str, options: dict[str, Any]) -> Method:
    if name not in METHODS:
        raise UserError(f"method {name}: unknown; choose one of {', '.join(METHODS)}")
    method = METHODS[name]
    if method.needs == "base+images":
        raise UserError(f"method {name}: is fitted to a base model and images; run it with `dvc repro`")
    if method.needs == "hypernet" and "hypernet" not in options:
        raise UserError(f"method {name}: needs a trained hypernetwork; give --hypernet FILE, or --method direct")
    known = [*method.options, "dtype", *(["hypernet"] if method.needs == "hypernet" else [])]
    for key in options:
        if key not in known:
            raise UserError(f"method {name}: has no option {key}; it has {', '.join(method.options) or 'none'}")
    return method
