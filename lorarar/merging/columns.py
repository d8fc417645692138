"""Column-wise merging, Eq. 2: dW_m = m_c * dW_c + m_s * dW_s, with one coefficient for each input column.

Scaling columns of up @ down scales only columns of down, so the merge is exactly

    dW_m = [up_c up_s] [down_c diag(m_c); down_s diag(m_s)],

a standard LoRA of rank r_c + r_s, and no dW is ever formed. Any number of adapters is added in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorarar.errors import UserError
from lorarar.lora import container
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.lazy import Lazy

Coefficients = dict[str, tuple[Tensor, Tensor]]
"""Module path -> (m_c, m_s), each (n_in,)."""


def merge(
    content: Adapter,
    style: Adapter,
    coefficients: Mapping[str, tuple[Tensor, Tensor]],
    default: tuple[float, float] = (1.0, 1.0),
    *,
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """Merge two adapters by Eq. 2 of LoRA.rar (arXiv 2412.05148).

    Parameters
    ----------
    coefficients
        (m_c, m_s) of the layers that have them. Gradients flow through.
    default
        The constants (m_c, m_s) of all other layers.
    dtype
        The dtype of the result; products are taken in float32.

    Returns
    -------
    Adapter
        Lazy: each layer that either adapter has, of rank r_c + r_s; an absent layer counts as rank 0.

    Raises
    ------
    UserError
        The adapters were made for different base models.
    """
    return weighted(content, style, weights=default, coefficients=coefficients, dtype=dtype)


def weighted(
    *adapters: Adapter,
    weights: Sequence[float],
    coefficients: Mapping[str, Sequence[Tensor]] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """Add the updates of any number of adapters, exactly: the sum of w_i dW_i, of the sum of their ranks.

    Parameters
    ----------
    weights
        A weight for each adapter.
    coefficients
        Layer -> one coefficient for each adapter, () or (n_in,), in the place of `weights`.

    Raises
    ------
    UserError
        The adapters were made for different base models.
    """
    special = coefficients or {}

    def merge_layer(path: str, *parts: Factors) -> Factors:
        return concatenate(*parts, weights=special.get(path, weights), dtype=dtype)

    return merge_layers(merge_layer, *adapters, dtype=dtype)


def merge_layers(
    merge_layer: Callable[..., Factors],
    *adapters: Adapter,
    dtype: torch.dtype,
    rank: Callable[[Iterable[int]], int] = sum,
) -> Adapter:
    """Merge lazily each layer that any adapter has; an absent layer counts as rank 0.

    Parameters
    ----------
    merge_layer
        (name in `Adapter.matrices`, factors of the first adapter, of the second, ...) -> the merged ones, in `dtype`,
        all of matrices.
    rank
        The ranks of a layer -> the rank of the merged layer.

    Returns
    -------
    Adapter
        Lazy; layers have the shapes that they have in the first adapter which has them.

    Raises
    ------
    UserError
        The adapters were made for different base models.
    """
    layers = {name: parts for name, *parts in aligned(*adapters)}
    blanks = {name: _empty(parts, rank(part.rank for part in parts), dtype, "meta") for name, parts in layers.items()}
    return Adapter.from_matrices(Lazy(blanks, lambda name: merge_layer(name, *layers[name])), *adapters)


def concatenate(
    *parts: Factors, weights: Sequence[Tensor | float] | None = None, dtype: torch.dtype = torch.float32
) -> Factors:
    """[up_1 up_2 ...] [down_1 diag(m_1); down_2 diag(m_2); ...], with coefficients (n_in,) or constants, or all 1."""
    # Written into place: at SDXL's size a further copy of everything would take most of the time.
    down, up = merged = _empty(parts, sum(part.rank for part in parts), dtype, parts[0].down.device)
    start = 0
    for part, weight in zip(parts, weights or [1.0] * len(parts), strict=True):
        end = start + part.rank
        down[start:end] = part.down.float() * weight
        up[:, start:end] = part.up
        start = end
    return merged


def aligned(*adapters: Adapter) -> Iterator[tuple[Any, ...]]:
    """Each of the `matrices` that any adapter has: its name, and its factors in each, of rank 0 where one has none.

    Raises
    ------
    UserError
        The adapters were made for different base models.
    """
    every = [adapter.matrices for adapter in adapters]
    for name in sorted(set().union(*every)):
        found = [matrices.get(name) for matrices in every]
        known = [factors for factors in found if factors]
        if len(shapes := list(dict.fromkeys(map(_shape, known)))) > 1:
            listed = " and ".join(" x ".join(map(str, shape)) for shape in shapes)
            number = "two" if len(adapters) == 2 else str(len(adapters))
            raise UserError(f"layer {name} is {listed} in the {number} adapters: merge adapters of one base model")
        yield name, *(factors or _nothing_like(known[0]) for factors in found)


def save(path: Path | str, coefficients: Mapping[str, tuple[Tensor, Tensor]], metadata: Mapping[str, str]) -> None:
    """Write coefficients as tensors `<path>.m_c` and `<path>.m_s` of a safetensors file."""
    tensors = {
        f"{layer}.{name}": m
        for layer, both in coefficients.items()
        for name, m in zip(("m_c", "m_s"), both, strict=True)
    }
    container.write_tensors(path, tensors, metadata)


def load(path: Path | str) -> Coefficients:
    """Read what `save` wrote; raises `UserError` if the file is missing, damaged or of another kind."""
    tensors, _ = container.read_tensors(path)
    layers = sorted({key.rpartition(".")[0] for key in tensors})
    try:
        coefficients = {layer: (tensors.pop(f"{layer}.m_c"), tensors.pop(f"{layer}.m_s")) for layer in layers}
    except KeyError as error:
        raise UserError(f"{path}: no tensor {error}; this is not a file of merging coefficients") from None
    return coefficients


def _empty(parts: Sequence[Factors], rank: int, dtype: torch.dtype, device: torch.device | str) -> Factors:
    """Factors of a rank with no numbers in them yet."""
    return Factors(
        torch.empty(rank, parts[0].down.shape[1], dtype=dtype, device=device),
        torch.empty(len(parts[0].up), rank, dtype=dtype, device=device),
    )


def _nothing_like(factors: Factors) -> Factors:
    return Factors(factors.down[:0], factors.up[:, :0])


def _shape(factors: Factors) -> tuple[int, int]:
    """(m_out, n_in)."""
    return factors.up.shape[0], factors.down.shape[1]
