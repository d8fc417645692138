"""LoRA.rar (arXiv 2412.05148): a hypernetwork predicts the column coefficients of an unseen pair."""

from __future__ import annotations

import torch

from lorarar.lora.adapter import Adapter
from lorarar.merging import columns
from lorarar.merging.hypernet import HyperNetwork
from lorarar.merging.options import require_weights


@torch.no_grad()
def merge(
    content: Adapter,
    style: Adapter,
    *,
    hypernet: HyperNetwork,
    constants: tuple[float, float] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """Merge by predicted coefficients on the guided projections and by constants on all other layers.

    Parameters
    ----------
    constants
        (m_c, m_s) of key and value; None takes those of the hypernetwork's training. The paper averages, (0.5, 0.5);
        its released code sums, (1, 1).
    """
    constants = hypernet.constants if constants is None else constants
    require_weights("constants", constants)
    coefficients = hypernet.coefficients(content, style)
    return columns.merge(content, style, coefficients, default=constants, dtype=dtype)
