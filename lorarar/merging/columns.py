"""Column-wise merging, Eq. 2: dW_m = m_c * dW_c + m_s * dW_s, with one coefficient for each input column.

Scaling columns of up @ down scales only columns of down, so the merge is exactly

    dW_m = [up_c up_s] [down_c diag(m_c); down_s diag(m_s)],

a standard LoRA of rank r_c + r_s, and no dW is ever formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import add
from pathlib import Path

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

    def merge_layer(path: str, c: Factors, s: Factors) -> Factors:
        return concatenate(c, s, *coefficients.get(path, default), dtype=dtype)

    return merge_layers(merge_layer, content, style, dtype)


def merge_layers(
    merge_layer: Callable[[str, Factors, Factors], Factors],
    content: Adapter,
    style: Adapter,
    dtype: torch.dtype,
    rank: Callable[[int, int], int] = add,
) -> Adapter:
    """Merge lazily each layer that either adapter has; an absent layer counts as rank 0.

    Parameters
    ----------
    merge_layer
        (name in `Adapter.matrices`, content's factors, style's) -> the merged ones, in `dtype`, all of matrices.
    rank
        (r_c, r_s) -> rank of the merged layer.

    Returns
    -------
    Adapter
        Lazy; layers have the shapes that they have in the content, or else in the style.

    Raises
    ------
    UserError
        The adapters were made for different base models.
    """
    both = {name: (c, s) for name, c, s in pairs(content, style)}
    blanks = {name: _empty(c, s, rank(c.rank, s.rank), dtype, "meta") for name, (c, s) in both.items()}
    return Adapter.from_matrices(Lazy(blanks, lambda name: merge_layer(name, *both[name])), content, style)


def concatenate(
    content: Factors,
    style: Factors,
    m_c: Tensor | float = 1.0,
    m_s: Tensor | float = 1.0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Factors:
    """[up_c up_s] [down_c diag(m_c); down_s diag(m_s)], with coefficients (n_in,) or constants."""
    # Written into place: at SDXL's size a further copy of everything would take most of the time.
    down, up = merged = _empty(content, style, content.rank + style.rank, dtype, content.down.device)
    down[: content.rank] = content.down.float() * m_c
    down[content.rank :] = style.down.float() * m_s
    up[:, : content.rank] = content.up
    up[:, content.rank :] = style.up
    return merged


def pairs(content: Adapter, style: Adapter) -> Iterator[tuple[str, Factors, Factors]]:
    """Each of the `matrices` that either adapter has, by name, with rank-0 factors where one has none.

    Raises
    ------
    UserError
        The adapters were made for different base models.
    """
    ours, theirs = content.matrices, style.matrices
    for name in sorted(ours.keys() | theirs.keys()):
        c = ours.get(name) or _nothing_like(theirs[name])
        s = theirs.get(name) or _nothing_like(ours[name])
        if _shape(c) != _shape(s):
            shapes = " and ".join(" x ".join(map(str, _shape(factors))) for factors in (c, s))
            raise UserError(f"layer {name} is {shapes} in the two adapters: merge adapters of one base model")
        yield name, c, s


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


def _empty(content: Factors, style: Factors, rank: int, dtype: torch.dtype, device: torch.device | str) -> Factors:
    """Factors of a rank with no numbers in them yet."""
    return Factors(
        torch.empty(rank, content.down.shape[1], dtype=dtype, device=device),
        torch.empty(len(content.up), rank, dtype=dtype, device=device),
    )


def _nothing_like(factors: Factors) -> Factors:
    return Factors(factors.down[:0], factors.up[:, :0])


def _shape(factors: Factors) -> tuple[int, int]:
    """(m_out, n_in)."""
    return factors.up.shape[0], factors.down.shape[1]
