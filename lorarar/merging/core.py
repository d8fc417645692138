"""Merges in bases that both adapters share: exact LoRAs of rank r_c + r_s, whatever a matrix between the bases is.

All depend on the two updates alone, and not on how B and A split them: each update is decomposed first, and its
balanced factors are B = U sqrt(sigma) and A = sqrt(sigma) V^T. Bases are found in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging.entries import Majority, Rule
from lorarar.merging.layerwise import merge_layerwise
from lorarar.merging.options import require, require_weights
from lorarar.merging.svd import decompose
from lorarar.randomness import generator

Bases = Literal["core", "knots"]


def add(
    content: Adapter,
    style: Adapter,
    *,
    weights: tuple[float, float] = (1.0, 1.0),
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """w_c dW_c + w_s dW_s by way of the core space of `Sparse`: the direct merge, with balanced factors.

    Raises `UserError` if a weight is no number, or the adapters were made for different base models.
    """
    require_weights("weights", weights)

    def merge_layer(path: str, c: Factors, s: Factors) -> Factors:
        up, (m_c, m_s), down = _core(c, s)
        return _balanced(up, weights[0] * m_c + weights[1] * m_s, down, c.rank + s.rank)

    return merge_layerwise(merge_layer, content, style, dtype)


@dataclass(frozen=True)
class Sparse(Rule):
    """A sparse merge, such as TIES, of the two updates as matrices between common bases.

    Attributes
    ----------
    bases
        "core" is Core Space (arXiv 2509.17786): U holds the left singular vectors of [B_c B_s], V the right ones of
        [A_c; A_s], and dW = U merge(U^T dW_c V, U^T dW_s V) V^T. "knots" is KnOTS (arXiv 2410.19735): U holds the left
        singular vectors of [dW_c dW_s], and dW = U merge(U^T dW_c, U^T dW_s).
    """

    bases: Bases

    def __call__(
        self,
        content: Adapter,
        style: Adapter,
        *,
        density: float = 0.5,
        weights: tuple[float, float] = (1.0, 1.0),
        majority: Majority | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Adapter:
        """Merge two adapters.

        Parameters
        ----------
        density
            The share of a matrix's entries that stay, in (0, 1], layer by layer.
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
        self.check(density, weights, majority, seed)

        def merge_layer(path: str, c: Factors, s: Factors) -> Factors:
            up, matrices, down = _core(c, s) if self.bases == "core" else _knots(c, s)
            pair = [matrix.float() for matrix in matrices]
            merged = self.merge(
                pair, weights, density=density, majority=majority, random=generator(seed, *path.encode())
            )
            return _balanced(up, merged.double(), down, c.rank + s.rank)

        return merge_layerwise(merge_layer, content, style, dtype)


def tsv(content: Adapter, style: Adapter, *, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Adapter:
    """scale U' diag(sigma_c, sigma_s) V'^T: TSV-Merge (arXiv 2412.00081) of the whole updates.

    U' is the matrix with orthonormal columns that is nearest to [U_c U_s], and V' to [V_c V_s]; U_i sigma_i V_i^T is
    dW_i. The paper cuts full-rank updates to a share of their rank; these have few enough directions.

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

    def merge_layer(path: str, c: Factors, s: Factors) -> Factors:
        (u_c, sigma_c, vh_c), (u_s, sigma_s, vh_s) = _decompose(c), _decompose(s)
        sigma = scale * torch.cat([sigma_c, sigma_s])
        up, down = _orthonormal(torch.cat([u_c, u_s], 1)), _orthonormal(torch.cat([vh_c, vh_s]))
        return _factors(up, sigma, down, c.rank + s.rank)

    return merge_layerwise(merge_layer, content, style, dtype)


def iso(content: Adapter, style: Adapter, *, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Adapter:
    """scale mean(sigma) U V^T, where U sigma V^T is dW_c + dW_s: Iso-C (arXiv 2502.04959).

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

    def merge_layer(path: str, c: Factors, s: Factors) -> Factors:
        down, up = torch.cat([c.down, s.down]), torch.cat([c.up, s.up], 1)
        u, sigma, vh = _decompose(Factors(down, up))
        flat = scale * sigma.mean().expand(len(sigma)) if len(sigma) else sigma
        return _factors(u, flat, vh, c.rank + s.rank)

    return merge_layerwise(merge_layer, content, style, dtype)


def _core(c: Factors, s: Factors) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """U (m_out, k), the matrices U^T dW V (k, l) of both, and V^T (l, n_in)."""
    (up_c, down_c), (up_s, down_s) = _roots(c), _roots(s)
    u = _left(torch.cat([up_c, up_s], 1))
    v = _left(torch.cat([down_c, down_s]).T)
    return u, (u.T @ up_c @ (down_c @ v), u.T @ up_s @ (down_s @ v)), v.T


def _knots(c: Factors, s: Factors) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
    """U (m_out, k), the matrices U^T dW (k, n_in) of both, and None for the other basis, which is the identity."""
    (up_c, down_c), (up_s, down_s) = _roots(c), _roots(s)
    u = _left(torch.cat([up_c @ _lower(down_c), up_s @ _lower(down_s)], 1))
    return u, (u.T @ up_c @ down_c, u.T @ up_s @ down_s), None


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
