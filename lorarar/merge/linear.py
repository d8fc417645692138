"""Merges with one constant weight for each adapter."""

from __future__ import annotations

from lorarar.adapter import Adapter
from lorarar.merge import columns


def direct(content: Adapter, style: Adapter) -> Adapter:
    """dW_c + dW_s (Model soups, arXiv 2203.05482, with weights 1 and 1 as LoRA.rar's comparison has them)."""
    return columns.merge(content, style, {}, default=(1.0, 1.0))


def average(content: Adapter, style: Adapter) -> Adapter:
    """0.5 dW_c + 0.5 dW_s."""
    return columns.merge(content, style, {}, default=(0.5, 0.5))
