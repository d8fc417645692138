"""From a file's tensors to the factors of each layer, with alpha folded in exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from lorarar.errors import UserError


class Factors(NamedTuple):
    """A low-rank update dW = up @ down, alpha folded in."""

    down: Tensor  # (r, n_in), of a convolution (r, c_in, h, w)
    up: Tensor  # (m_out, r), of a convolution (c_out, r, 1, 1)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def delta(self) -> Tensor:
        """dW (m_out, n_in) or (c_out, c_in, h, w) in float32, formed in full: for checks, not for merging."""
        return (self.up.float().flatten(1) @ self.down.float().flatten(1)).unflatten(1, self.down.shape[1:])

    @property
    def norm(self) -> float:
        """Frobenius norm of dW, without forming it: |dW|^2 = tr(up^T up down down^T)."""
        down, up = self.down.double().flatten(1), self.up.double().flatten(1)
        return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())

    @property
    def matrix(self) -> Factors:
        """The factors (r, n_in) and (m_out, r); those of a convolution, with n_in = c_in h w."""
        return self if self.down.ndim == 2 else Factors(self.down.flatten(1), self.up.flatten(1))

    def convolution(self, kernel: tuple[int, ...]) -> Factors:
        """The factors (r, c_in, h, w) and (c_out, r, 1, 1) of a convolution, whose `kernel` is (c_in, h, w)."""
        return Factors(self.down.unflatten(1, kernel), self.up[..., None, None])

    def to(self, target: torch.dtype | torch.device | str) -> Factors:
        """The same factors in a dtype or on a device."""
        return Factors(self.down.to(target), self.up.to(target))


Layers = Mapping[str, Factors]
"""`<component>.<module path>` -> its factors."""


def finite(tensor: Tensor) -> bool:
    """True if no number is NaN or infinite."""
    # The sum is quickly taken, and finite unless the numbers are larger than any training makes them.
    return isfinite(tensor.sum(dtype=torch.float32)) or bool(tensor.float().isfinite().all())


def gather(
    tensors: Mapping[str, Tensor],
    locate: Callable[[str], tuple[str, str] | None],
    scale: Callable[[str, int], float],
    source: str,
) -> Layers:
    """Pair the tensors of each layer and fold its scale into `up`.

    Parameters
    ----------
    locate
        Key -> (layer, "down", "up" or "alpha"), or None if the format has no such key.
    scale
        (layer, rank) -> the factor of up @ down where the file has no tensor of alpha; with one it is alpha / rank.
    source
        Names the file in messages.

    Raises
    ------
    UserError
        A key is unknown or repeats another, or a layer's tensors are no pair of factors.
    """
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        located = locate(key)
        if not located:
            raise UserError(f"{source}: {key} is not part of a plain LoRA; take it out, or convert the file to one")
        layer, part = located
        if part in found[layer]:
            raise UserError(f"{source}: {key} is the second `{part}` of its layer; the file is damaged, make it again")
        found[layer][part] = tensor
    return {layer: _factors(layer, parts, scale, source) for layer, parts in sorted(found.items())}


def _factors(layer: str, parts: Mapping[str, Tensor], scale: Callable[[str, int], float], source: str) -> Factors:
    for part in ("down", "up"):
        if part not in parts:
            raise UserError(f"{source}: layer {layer} has no `{part}` matrix; the file is incomplete, make it again")
    for part, tensor in parts.items():
        if tensor.is_complex() or (part != "alpha" and not tensor.is_floating_point()):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{source}: `{part}` of layer {layer} is of {kind}, not real numbers; convert it first")
    down, up = parts["down"], parts["up"]
    if "mid" in parts:  # Tucker factors (LyCORIS): dW = up mid down, so that down with mid is a convolution's
        down = _with_mid(layer, down, parts["mid"], source)
    shapes = f"down {tuple(down.shape)} and up {tuple(up.shape)}"
    if down.ndim not in (2, 4) or up.ndim != down.ndim or any(size != 1 for size in up.shape[2:]):
        raise UserError(f"{source}: layer {layer} has {shapes}, of neither a linear layer nor a convolution")
    if down.shape[0] != up.shape[1]:
        raise UserError(f"{source}: layer {layer} has {shapes}, which share no rank; the file is damaged")
    if "alpha" in parts and parts["alpha"].numel() != 1:
        raise UserError(f"{source}: layer {layer} has an alpha that is no number; the file is damaged")
    rank = down.shape[0]
    if rank == 0:
        return Factors(down, up)
    factor = float(parts["alpha"]) / rank if "alpha" in parts else scale(layer, rank)
    # In float32 whatever the file's dtype, whose rounding or range may not hold the product.
    return Factors(down, up if factor == 1 else up.float() * factor)


def _with_mid(layer: str, down: Tensor, mid: Tensor, source: str) -> Tensor:
    """Down (r, c_in, h, w) of down (r, c_in, 1, 1) and mid (r, r, h, w)."""
    if down.ndim != 4 or mid.ndim != 4 or mid.shape[1] != len(down) or down.shape[2:] != (1, 1):
        shapes = f"down {tuple(down.shape)} and mid {tuple(mid.shape)}"
        raise UserError(f"{source}: layer {layer} has {shapes}, which do not fit; the file is damaged")
    return torch.einsum("abhw,bi->aihw", mid.float(), down.float().flatten(1))
