"""Adds LoRAs to a checkpoint: tensor by tensor, so that no more than a layer is in memory."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lorarar import describe
from lorarar.errors import UserError
from lorarar.files import refuse_existing, sha256, write_json
from lorarar.lora import container, formats
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.checkpoint_file import Checkpoint
from lorarar.lora.container import Stored
from lorarar.lora.lazy import Lazy
from lorarar.lora.lycoris import Reading
from lorarar.parallel import one_thread
from lorarar.version import __version__

DTYPES = {**formats.DTYPES, "fp8": torch.float8_e4m3fn}
PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".onnx", ".h5"}
"""Ends of files that would hold the old weights next to the new."""


@dataclass
class Baking:
    """The sum of a checkpoint's tensors and the updates of LoRAs, and a record of what rounding does to it.

    Attributes
    ----------
    checkpoint
        Where the tensors are read.
    updates
        Name in `Checkpoint.tensors` -> (layer, rows of the tensor, factors as matrices, weight) of what is added to it.
    dtype
        The dtype of all floating-point tensors; None keeps each tensor's own.
    errors
        Layer -> (|stored - exact|^2, |update|^2), once its tensor was computed.
    saturated
        Numbers beyond the range of 8 bits, which got its largest.
    """

    checkpoint: Checkpoint
    updates: Mapping[str, Sequence[tuple[str, slice, Factors, float]]]
    dtype: torch.dtype | None = None
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)
    saturated: int = 0

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, loras: Sequence[tuple[str, Adapter, float]], dtype: torch.dtype | None
    ) -> Baking:
        """Find the tensor of every layer.

        Parameters
        ----------
        loras
            Name for messages, adapter, weight. A weight of 0 adds nothing.

        Raises
        ------
        UserError
            The checkpoint lacks layers of a LoRA, or has them in another shape.
        """
        updates = defaultdict(list)
        for source, adapter, weight in loras:
            matrices = adapter.matrices
            if missing := [name for name in matrices if name not in checkpoint.layers]:
                raise UserError(
                    f"{source}: {len(missing)} of its {len(matrices)} layers are not in {checkpoint.path}: "
                    f"{', '.join(missing[:3])}{' ...' if missing[3:] else ''}; give the LoRA's base model"
                )
            for name, factors in matrices.items():
                place = checkpoint.layers[name]
                shape = (len(factors.up), factors.down.shape[1])
                if shape != (place.shape[0], math.prod(place.shape[1:])):
                    raise UserError(
                        f"{source}: layer {name} is {shape[0]} x {shape[1]}, but {' x '.join(map(str, place.shape))} "
                        f"in {checkpoint.path}; give the LoRA's base model"
                    )
                if weight and factors.rank:
                    updates[place.tensor].append((name, place.rows, factors, weight))
        return cls(checkpoint, updates, dtype)

    def tensors(self, file: Path) -> Lazy[Tensor]:
        """The new tensors of one of the checkpoint's files, by their keys there, computed when they are asked for."""
        names = {place.key: name for name, place in self.checkpoint.tensors.items() if place.file == file}
        places = {key: self.checkpoint.tensors[name] for key, name in names.items()}
        blanks = {key: place.blank.to(self._kind(place)) for key, place in places.items()}
        return Lazy(blanks, lambda key: self._compute(names[key], places[key]))

    @property
    def error(self) -> float:
        """|stored - exact| / |update| over all layers that got an update: 0 is exact, 1 as bad as no update."""
        lost, whole = (math.fsum(part) for part in zip(*self.errors.values(), strict=True)) if self.errors else (0, 0)
        return math.sqrt(lost / (whole or 1.0))

    def _kind(self, place: Stored) -> torch.dtype:
        return self.dtype if self.dtype and place.dtype.is_floating_point else place.dtype

    @torch.no_grad()
    def _compute(self, name: str, place: Stored) -> Tensor:
        tensor, kind = place.read(), self._kind(place)
        parts = self.updates.get(name, ())
        if not parts:
            return tensor if kind == tensor.dtype else self._rounded(tensor.double(), kind)
        exact, squares = tensor.double(), defaultdict[str, float](float)
        sums: dict[str, tuple[slice, Tensor]] = {}
        for layer, rows, factors, weight in parts:
            update = (factors.up.float() @ factors.down.float()).mul_(weight).view(exact[rows].shape)
            sums[layer] = (rows, sums[layer][1] + update if layer in sums else update)
        for layer, (rows, update) in sums.items():
            exact[rows] += update
            squares[layer] = float(update.double().square().sum())
        new = self._rounded(exact, kind)
        for layer, (rows, _) in sums.items():
            self.errors[layer] = (float((new[rows].double() - exact[rows]).square().sum()), squares[layer])
        return new

    def _rounded(self, exact: Tensor, kind: torch.dtype) -> Tensor:
        """The nearest numbers of a dtype: in 8 bits, which know no or hardly an infinity, at most the largest."""
        if kind.itemsize > 1:
            return exact.to(kind)
        largest = torch.finfo(kind).max
        self.saturated += int((exact.abs() > largest).sum())
        return exact.clamp(-largest, largest).to(kind)


def bake_files(
    checkpoint: Path, loras: Sequence[str], out: Path, *, dtype: str | None = None, force: bool = False
) -> list[str]:
    """Write a checkpoint with the updates of LoRAs added; equal inputs make equal bytes.

    Parameters
    ----------
    checkpoint
        A file, which makes a file, or a folder, which makes a folder with the same files.
    loras
        Each a file in any format, and after a colon its weight, 1 if there is none.
    dtype
        A key of `DTYPES`; None keeps that of each tensor. Integers keep theirs.

    Returns
    -------
    list of str
        Notes for the user, the last on the rounding of the updates.

    Raises
    ------
    UserError
        A file cannot be read, a LoRA has layers that the checkpoint lacks, `out` exists, or the result would hold
        infinity. Nothing is written then.
    """
    if dtype and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
    base = Checkpoint.open(checkpoint)
    given = [(formats.locate(path), weight) for path, weight in map(parse, loras)]
    reading = Reading(base=base)  # DoRA and others change the weights that they are given
    adapters = [(str(path), Adapter.load(path, reading), weight) for path, weight in given]
    for name, adapter, _ in adapters:
        adapter.check(name)
    baking = Baking.of(base, adapters, DTYPES[dtype] if dtype else None)
    record = [{"file": path.name, "sha256": sha256(path), "weight": weight} for path, weight in given]
    added = {"lorarar.baked": json.dumps(record, sort_keys=True), "lorarar.version": __version__}

    def write(file: Path, target: Path) -> None:
        kept = {key: text for key, text in base.metadata[file].items() if not key.startswith(describe.HASHES[:3])}
        with one_thread():  # whose sums do not depend on the number of threads
            container.write_tensors(target, baking.tensors(file), {**kept, **added})

    sources = [*base.metadata, *(path for path, _ in given)]
    notes = [adapter.note for _, adapter, _ in adapters if adapter.note]
    if base.path.is_dir():
        notes += _write_folder(base, out, write, baking)
    else:
        refuse_existing(out, force, *sources)
        write(base.path, out)
    if baking.saturated:
        notes.append(f"{baking.saturated} numbers are beyond the range of the 8-bit format and got its largest")
    number = len({layer for parts in baking.updates.values() for layer, *_ in parts})
    notes.append(f"{number} layers changed by {len(given)} LoRA{'s' if len(given) > 1 else ''}")
    if baking.errors:
        name, (lost, whole) = max(baking.errors.items(), key=lambda item: item[1][0] / (item[1][1] or math.inf))
        notes[-1] += (
            f"; rounding error {baking.error:.3g} of the update (0 is exact, 1 as bad as no update), "
            f"at worst {math.sqrt(lost / (whole or 1)):.3g} in {name}"
        )
    return notes


def parse(text: str) -> tuple[str, float]:
    """The file and the weight of `FILE:WEIGHT`; the weight is 1 if the text names a file or ends with no number.

    Raises
    ------
    UserError
        The weight is NaN or infinite.
    """
    path, colon, end = text.rpartition(":")
    try:
        weight = float(end)
    except ValueError:
        return text, 1.0
    if not (colon and path) or Path(text).exists():
        return text, 1.0
    if not math.isfinite(weight):
        raise UserError(f"{text}: weight {end} is no finite number; give one, such as {path}:0.8")
    return path, weight


def _write_folder(base: Checkpoint, out: Path, write: Callable[[Path, Path], None], baking: Baking) -> list[str]:
    """Write a folder with the checkpoint's files, and copies of all others except weights in other formats."""
    if out.exists():
        raise UserError(f"{out}: exists; give the name of a new folder")
    if out.resolve().is_relative_to(base.path.resolve()):
        raise UserError(f"{out}: lies in the checkpoint's folder; give another")
    left = []
    with _new_folder(out) as folder:
        for source in sorted(path for path in base.path.rglob("*") if path.is_file()):
            name = source.relative_to(base.path)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if source in base.metadata:
                write(source, folder / name)
            elif source.suffix in PICKLES:
                left.append(str(name))
            elif source.name.endswith(".safetensors.index.json"):
                index = json.loads(source.read_text(encoding="utf-8"))
                files = {source.parent / shard for shard in index["weight_map"].values()}
                size = sum(blank.nbytes for file in files for blank in baking.tensors(file).blanks.values())
                write_json(folder / name, {**index, "metadata": {**index.get("metadata", {}), "total_size": size}})
            else:
                shutil.copyfile(source, folder / name)
    return [f"{len(left)} files of old weights are left out, such as {left[0]}"] if left else []


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder next to `out` that gets its name once it is complete, and is removed if it is not."""
    folder = out.with_name(f".{out.name}.{socket.gethostname()}-{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); write to another folder") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
