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

from lorarar import formats
from lorarar.adapter import Adapter, Factors
from lorarar.errors import UserError

Coefficients = dict[str, tuple[Tensor, Tensor]]
"""Module path -> (m_c, m_s), each (n_in,)."""


def merge(
    content: Adapter,
    style: Adapter,
    coefficients: Mapping[str, tuple[Tensor, Tensor]],
    default: tuple[float, float] = (1.0, 1.0),
) -> Adapter:
    """Merge two adapters by Eq. 2 of LoRA.rar (arXiv 2412.05148).

    Parameters
    ----------
    coefficients
        (m_c, m_s) of the layers that have them. Gradients flow through.
    default
        The constants (m_c, m_s) of all other layers.

    Returns
    -------
    Adapter
        In float32. Each layer that either adapter has, of rank r_c + r_s; an absent layer counts as rank 0.

    Raises
    ------
    UserError
        The adapters were made for different base models.
    """
    layers = {}
    for path, c, s in pairs(content, style):
        m_c, m_s = coefficients.get(path, default)
        down = torch.cat([c.down.float() * m_c, s.down.float() * m_s])
        layers[path] = Factors(down, torch.cat([c.up.float(), s.up.float()], dim=1))
    return Adapter(layers)


def pairs(content: Adapter, style: Adapter) -> Iterator[tuple[str, Factors, Factors]]:
    """Each layer that either adapter has, by name, with rank-0 factors where one has none."""
    for path in sorted(content.layers.keys() | style.layers.keys()):
        c = content.layers.get(path) or _nothing_like(style.layers[path])
        s = style.layers.get(path) or _nothing_like(content.layers[path])
        if (c.up.shape[0], c.down.shape[1]) != (s.up.shape[0], s.down.shape[1]):
            shapes = " and ".join(f"{f.up.shape[0]} x {f.down.shape[1]}" for f in (c, s))
            raise UserError(f"layer {path} is {shapes} in the two adapters: merge adapters of one base model")
        yield path, c, s


def save(path: Path | str, coefficients: Mapping[str, tuple[Tensor, Tensor]], metadata: Mapping[str, str]) -> None:
    """Write coefficients as tensors `<path>.m_c` and `<path>.m_s` of a safetensors file."""
    tensors = {
        f"{layer}.{name}": m
        for layer, both in coefficients.items()
        for name, m in zip(("m_c", "m_s"), both, strict=True)
    }
    formats.write_tensors(path, tensors, metadata)


def load(path: Path | str) -> Coefficients:
    """Read what `save` wrote; raises `UserError` if the file is missing, damaged or of another kind."""
    tensors, _ = formats.read_tensors(path)
    layers = sorted({key.rpartition(".")[0] for key in tensors})
    try:
        coefficients = {layer: (tensors.pop(f"{layer}.m_c"), tensors.pop(f"{layer}.m_s")) for layer in layers}
    except KeyError as error:
        raise UserError(f"{path}: no tensor {error}; this is not a file of merging coefficients") from None
    return coefficients


def _nothing_like(factors: Factors) -> Factors:
    return Factors(factors.down[:0], factors.up[:, :0])
