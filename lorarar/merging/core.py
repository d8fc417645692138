"""Merges in bases that all adapters share: exact LoRAs of the sum of the ranks, whatever a matrix between the bases is.

All depend on the updates alone, and not on how B and A split them: each update is decomposed first, and its
balanced factors are B = U sqrt(sigma) and A = sqrt(sigma) V^T. Bases are found in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from math import inf
from operator import mul
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging.entries import Majority, Rule
from lorarar.merging.layerwise import merge_layerwise
from lorarar.merging.options import require, weights_of
from lorarar.merging.svd import decompose
from lorarar.randomness import generator

Bases = Literal["core", "knots"]


def add(*adapters: Adapter, weights: Sequence[float] | None = None, dtype: torch.dtype = torch.float32) -> Adapter:
    """The sum of w_i dW_i by way of the core space of `Sparse`: the direct merge, with balanced factors.

    Raises `UserError` if a weight is no number, or the adapters were made for different base models.
    """
    scales = weights_of(weights, len(adapters))

    def merge_layer(path: str, *parts: Factors) -> Factors:
        up, matrices, down = _core(*parts)
        return _balanced(up, reduce(torch.add, map(mul, scales, matrices)), down, _rank(parts))

    return merge_layerwise(merge_layer, *adapters, dtype=dtype)


@dataclass(frozen=True)
class Sparse(Rule):
    """A sparse merge, such as TIES, of the updates as matrices between common bases.

    Attributes
    ----------
    bases
        "core" is Core Space (arXiv 2509.17786): U holds the left singular vectors of [B_1 B_2 ...], V the right ones
        of [A_1; A_2; ...], and dW = U merge(U^T dW_1 V, U^T dW_2 V, ...) V^T. "knots" is KnOTS (arXiv 2410.19735): U
        holds the left singular vectors of [dW_1 dW_2 ...], and dW = U merge(U^T dW_1, U^T dW_2, ...).
    """

    bases: Bases

    def __call__(
        self,
        *adapters: Adapter,
        density: float = 0.5,
        weights: Sequence[float] | None = None,
        majority: Majority | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Adapter:
        """Merge any number of adapters.

        Parameters
        ----------
        density
            The share of a matrix's entries that stay, in (0, 1], layer by layer.
        weights
            A weight for each adapter, as in `sparse.Sparse`; None is 1 for each.
        majority
            The sign is elected by "total" magnitude, the default, or by the "frequency" of signs. Only TIES and
            DARE-TIES take it.
        seed
            The seed of DARE. Each layer has a separate stream, so that its result does not depend on the others.

        Raises
        ------
        UserError
            An option is out of range or has no meaning here, or the adapters were made for different base models.
        """
        self.check(density, majority, seed)
        scales = weights_of(weights, len(adapters))

        def merge_layer(path: str, *parts: Factors) -> Factors:
            up, matrices, down = _core(*parts) if self.bases == "core" else _knots(*parts)
            random = generator(seed, *path.encode())
            tensors = [matrix.float() for matrix in matrices]
            merged = self.merge(tensors, scales, density=density, majority=majority, random=random)
            return _balanced(up, merged.double(), down, _rank(parts))

        return merge_layerwise(merge_layer, *adapters, dtype=dtype)


core_ties = Sparse("smallest", True, "core")
core_dare = Sparse("random", False, "core")
core_dare_ties = Sparse("random", True, "core")
knots_ties = Sparse("smallest", True, "knots")


def tsv(*adapters: Adapter, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Adapter:
    """scale U' diag(sigma_1, sigma_2, ...) V'^T: TSV-Merge (arXiv 2412.00081) of the whole updates.

    U' is the matrix with orthonormal columns that is nearest to [U_1 U_2 ...], and V' to [V_1 V_2 ...]; U_i sigma_i
    V_i^T is dW_i. The paper cuts full-rank updates to a share of their rank; these have few enough directions.

    Parameters
    ----------
    scale
        A factor of the result, above 0.

    Raises
    ------
    UserError
        An option is out of range, or the adapters were made for different base models.
    """
    _require_scale(scale)

    def merge_layer(path: str, *parts: Factors) -> Factors:
        us, sigmas, vhs = zip(*map(_decompose, parts), strict=True)
        up, down = _orthonormal(torch.cat(us, 1)), _orthonormal(torch.cat(vhs))
        return _factors(up, scale * torch.cat(sigmas), down, _rank(parts))

    return merge_layerwise(merge_layer, *adapters, dtype=dtype)


def iso(*adapters: Adapter, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Adapter:
    """scale mean(sigma) U V^T, where U sigma V^T is the sum of all dW_i: Iso-C (arXiv 2502.04959).

    Every direction of the sum gets the mean of its singular values, over those that are not zero.

    Parameters
    ----------
    scale
        A factor of the result, above 0. The paper tunes it on validation data.

    Raises
    ------
    UserError
        An option is out of range, or the adapters were made for different base models.
    """
    _require_scale(scale)

    def merge_layer(path: str, *parts: Factors) -> Factors:
        downs, ups = zip(*parts, strict=True)
        u, sigma, vh = _decompose(Factors(torch.cat(downs), torch.cat(ups, 1)))
        flat = scale * sigma.mean().expand(len(sigma)) if len(sigma) else sigma
        return _factors(u, flat, vh, _rank(parts))

    return merge_layerwise(merge_layer, *adapters, dtype=dtype)


def _rank(parts: Iterable[Factors]) -> int:
    return sum(part.rank for part in parts)


def _core(*parts: Factors) -> tuple[Tensor, list[Tensor], Tensor]:
    """U (m_out, k), the matrices U^T dW V (k, l) of all, and V^T (l, n_in)."""
    ups, downs = zip(*map(_roots, parts), strict=True)
    u, v = _left(torch.cat(ups, 1)), _left(torch.cat(downs).T)
    return u, [u.T @ up @ (down @ v) for up, down in zip(ups, downs, strict=True)], v.T


def _knots(*parts: Factors) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """U (m_out, k), the matrices U^T dW (k, n_in) of all, and None for the other basis, which is the identity."""
    roots = [_roots(part) for part in parts]
    u = _left(torch.cat([up @ _lower(down) for up, down in roots], 1))
    return u, [u.T @ up @ down for up, down in roots], None


def _decompose(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """U, sigma and V^T of dW in float64, without the directions that are zero up to rounding."""
    u, sigma, vh = decompose(factors.to(torch.float64))
    # Singular vectors beyond the numerical rank are arbitrary. The factors were float32, or less.
    kept = sigma > sigma.norm() * max(factors.up.shape[0], factors.down.shape[1]) * torch.finfo(torch.float32).eps
    return u[:, kept], sigma[kept], vh[kept]


def _roots(factors: Factors) -> tuple[Tensor, Tensor]:
    """The balanced factors U sqrt(sigma) and sqrt(sigma) V^T."""
    u, sigma, vh = _decompose(factors)
    root = sigma.sqrt()
    return u * root, root[:, None] * vh


def _lower(down: Tensor) -> Tensor:
    """L (r, r) with L L^T = down down^T: up L has the left singular vectors and values of up down."""
    return torch.linalg.qr(down.T).R.T


def _left(matrix: Tensor) -> Tensor:
    """Left singular vectors (m, k) of a matrix (m, k), or (m, m) if it is wider than high."""
    q, r = torch.linalg.qr(matrix)
    return q @ torch.linalg.svd(r, full_matrices=False).U


def _orthonormal(matrix: Tensor) -> Tensor:
    """The nearest matrix whose columns, or rows if these are fewer, are orthonormal."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def _balanced(u: Tensor, matrix: Tensor, vh: Tensor | None, rank: int) -> Factors:
    """u @ matrix @ vh as balanced factors; u and vh have orthonormal columns and rows."""
    inner_u, sigma, inner_vh = decompose(Factors(matrix, torch.eye(len(matrix)).to(matrix)))
    return _factors(u @ inner_u, sigma, inner_vh if vh is None else inner_vh @ vh, rank)


def _factors(u: Tensor, sigma: Tensor, vh: Tensor, rank: int) -> Factors:
    """Balanced factors in float32, filled up to a rank with zeros."""
    root, more = sigma.sqrt(), rank - len(sigma)
    return Factors(pad(root[:, None] * vh, (0, 0, 0, more)), pad(u * root, (0, more))).to(torch.float32)


def _require_scale(scale: float) -> None:
    require("scale", scale, lambda number: 0 < number < inf, "a number above 0")
