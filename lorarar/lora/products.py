"""Updates as Kronecker products of low-rank matrices, and the plain factors that hold them, whole or cut.

A singular value of a Kronecker product is a product of one of each side. So a cut costs the decomposition of the two
sides, which are small where the product is large.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lorarar.lora.factors import Factors

EXACT = 128
"""Ranks up to this one are kept whole if no rank or share of the energy is asked for."""
ENERGY = 0.999
"""Share of |dW|_F^2 that a larger rank is cut to: a relative error of at most 0.032."""


class Product(NamedTuple):
    """An update dW = first (x) second, the Kronecker product of two matrices given by their factors."""

    first: Factors  # (a, c)
    second: Factors  # (b, d); dW is (a b, c d)

    @property
    def rank(self) -> int:
        """The rank of dW, if none of the factors lacks full rank."""
        return self.first.rank * self.second.rank

    @property
    def shape(self) -> tuple[int, int]:
        """(m_out, n_in) of dW."""
        a, b = (len(side.up) for side in self)
        c, d = (side.down.shape[1] for side in self)
        return a * b, c * d

    @property
    def factors(self) -> Factors:
        """The factors of dW itself: the Kronecker products of the sides' factors."""
        return Factors(torch.kron(self.first.down, self.second.down), torch.kron(self.first.up, self.second.up))


class Cut(NamedTuple):
    """The plain factors of an update, and what they cost."""

    factors: Factors
    exact: int  # the rank that needs no cut
    lost: float  # |dW - up @ down|_F^2
    total: float  # |dW|_F^2

    @property
    def error(self) -> float:
        """The relative error |dW - up @ down| / |dW|, in the Frobenius norm."""
        return relative(self.lost, self.total)


def relative(lost: float, total: float) -> float:
    """The relative error of a squared difference from a squared norm; 0 where there is nothing to lose."""
    return (lost / total) ** 0.5 if total else 0.0


def single(factors: Factors) -> Product:
    """The product whose first side is the number 1."""
    return Product(Factors(torch.ones(1, 1), torch.ones(1, 1)), factors)


def dense(matrix: Tensor) -> Factors:
    """Factors of a matrix (m_out, n_in) of rank min(m_out, n_in): the matrix itself, and an identity."""
    rows, columns = matrix.shape
    return Factors(matrix, torch.eye(rows)) if rows < columns else Factors(torch.eye(columns), matrix)


def hadamard(first: Factors, second: Factors) -> Factors:
    """Factors of the entrywise product of two matrices.

    Its rank is the product of theirs: column (i, j) of up is the entrywise product of the columns i and j of the two
    ups, and so are the rows of down. Where that is no less than the size of the matrix, the product itself is formed.
    """
    rows, columns = len(first.up), first.down.shape[1]
    if (rows, columns) != (len(second.up), second.down.shape[1]):
        raise ValueError("the two matrices have different shapes")
    if first.rank * second.rank >= min(rows, columns):
        return dense(first.delta * second.delta)
    down = (first.down[:, None] * second.down).flatten(0, 1)
    return Factors(down, (first.up[:, :, None] * second.up[:, None]).flatten(1))


def added(first: Factors, second: Factors) -> Factors:
    """Factors of the sum of two matrices: those of both, side by side."""
    return Factors(torch.cat([first.down, second.down]), torch.cat([first.up, second.up], 1))


def cut(product: Product, rank: int | None = None, energy: float | None = None) -> Cut:
    """The plain factors of an update, cut by its singular values where that is asked for or needed.

    Parameters
    ----------
    rank
        The largest rank of the result.
    energy
        The share of |dW|_F^2 to keep, from 0 to 1, by the smallest rank that does.
        If both are None, `EXACT` and `ENERGY` decide.
    """
    exact, total = product.rank, (product.first.norm * product.second.norm) ** 2
    if (energy is None or energy == 1) and exact <= (rank or (EXACT if energy is None else exact)):
        return Cut(product.factors, exact, 0.0, total)
    (u_1, sigma_1, vh_1), (u_2, sigma_2, vh_2) = map(_decompose, product)
    sigma, order = torch.outer(sigma_1, sigma_2).flatten().sort(descending=True)
    kept = sigma.double().square().cumsum(0)
    enough = energy if energy is not None else 1.0 if rank else ENERGY
    k = min(1 + int((kept < enough * kept[-1]).sum()), rank or exact, len(sigma))
    i, j = order[:k] // len(sigma_2), order[:k] % len(sigma_2)
    root = sigma[:k].sqrt()
    up = (u_1[:, None, i] * u_2[None, :, j]).flatten(0, 1) * root
    down = (vh_1[i, :, None] * vh_2[j, None, :]).flatten(1) * root[:, None]
    return Cut(Factors(down, up), exact, float(sigma[k:].double().square().sum()), total)


def _decompose(factors: Factors) -> tuple[Tensor, Tensor, Tensor]:
    """U (m_out, k), sigma (k,), V^T (k, n_in) of up @ down: QR of each factor, then the SVD of their core."""
    q_up, r_up = torch.linalg.qr(factors.up)
    q_down, r_down = torch.linalg.qr(factors.down.T)
    u, sigma, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return q_up @ u, sigma, vh @ q_down.T
