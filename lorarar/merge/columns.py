"""Column-wise merging, Eq. 2: dW_m = m_c * dW_c + m_s * dW_s, with one coefficient for each input column.

Scaling columns of up @ down scales columns of down alone, so the merge is exactly

    dW_m = [up_c up_s] [down_c diag(m_c); down_s diag(m_s)],

a standard LoRA of rank r_c + r_s, and no dW is ever formed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lorarar.errors import UserError
from lorarar.lora import container
from lorarar.lora.adapter import Adapter, Factors
from lorarar.parallel import map_layers

Coefficients = dict[str, tuple[Tensor, Tensor]]
"""Module path -> (m_c, m_s), each (n_in,)."""


def merge(
    content: Adapter,
    style: Adapter,
    coefficients: Mapping[str, tuple[Tensor, Tensor]],
    default: tuple[float, float] = (1.0, 1.0),
    *,
    dtype: torch.dtype = torch.float32,
    lazy: bool = False,
) -> Adapter:
    """Merge two adapters by Eq. 2 of LoRA.rar (arXiv 2412.05148).

    Parameters
    ----------
    coefficients
        (m_c, m_s) of the layers that have them. Gradients flow through.
    default
        The constants (m_c, m_s) of all other layers.
    dtype
        Of the result; products are taken in float32.
    lazy
        Compute each layer only while it is saved, so that they are never all in memory.

    Returns
    -------
    Adapter
        Each layer that either adapter has, of rank r_c + r_s; an absent layer counts as rank 0.

    Raises
    ------
    UserError
        The adapters were made for different base models.
    """
    both = {path: (c, s) for path, c, s in pairs(content, style)}

    def of(path: str) -> Factors:
        return concatenate(*both[path], *coefficients.get(path, default), dtype=dtype)

    rest = add_unmerged(content, style, dtype)
    if lazy:
        layers = {path: _empty(*two, dtype, "meta") for path, two in both.items()}
        return Adapter(layers, unmerged=rest, compute=lambda name: of(name.removeprefix("unet.")))
    return Adapter(dict(zip(both, map_layers(of, zip(both)), strict=True)), unmerged=rest)


def concatenate(
    content: Factors,
    style: Factors,
    m_c: Tensor | float = 1.0,
    m_s: Tensor | float = 1.0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Factors:
    """[up_c up_s] [down_c diag(m_c); down_s diag(m_s)]; with constants also of convolutions, whose factors are 4-d."""
    # Written into place: at SDXL's size a further copy of everything is what would take the time.
    down, up = room = _empty(content, style, dtype, content.down.device)
    down[: content.rank] = content.down.float() * m_c
    down[content.rank :] = style.down.float() * m_s
    up[:, : content.rank] = content.up
    up[:, content.rank :] = style.up
    return room


def pairs(content: Adapter, style: Adapter) -> Iterator[tuple[str, Factors, Factors]]:
    """Each layer that either adapter has, by name, with rank-0 factors where one has none."""
    return _pairs(content.layers, style.layers)


def add_unmerged(content: Adapter, style: Adapter, dtype: torch.dtype = torch.float32) -> dict[str, Factors]:
    """Text encoders and convolutions, which no method merges: one adapter's as they are, both adapters' summed."""
    return {path: concatenate(c, s, dtype=dtype) for path, c, s in _pairs(content.unmerged, style.unmerged)}


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


def _pairs(content: Mapping[str, Factors], style: Mapping[str, Factors]) -> Iterator[tuple[str, Factors, Factors]]:
    for path in sorted(content.keys() | style.keys()):
        c = content.get(path) or _nothing_like(style[path])
        s = style.get(path) or _nothing_like(content[path])
        if _shape(c) != _shape(s):
            shapes = " and ".join(" x ".join(map(str, _shape(factors))) for factors in (c, s))
            raise UserError(f"layer {path} is {shapes} in the two adapters: merge adapters of one base model")
        yield path, c, s


def _empty(content: Factors, style: Factors, dtype: torch.dtype, device: torch.device | str) -> Factors:
    """Factors of rank r_c + r_s with nothing in them yet."""
    rank = content.rank + style.rank
    return Factors(
        torch.empty(rank, *content.down.shape[1:], dtype=dtype, device=device),
        torch.empty(len(content.up), rank, *content.up.shape[2:], dtype=dtype, device=device),
    )


def _nothing_like(factors: Factors) -> Factors:
    return Factors(factors.down[:0], factors.up[:, :0])


def _shape(factors: Factors) -> tuple[int, ...]:
    """(m_out, n_in), and of a convolution the sizes of both kernels."""
    return factors.up.shape[0], *factors.down.shape[1:], *factors.up.shape[2:]
