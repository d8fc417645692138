"""Fits the column coefficients of ZipLoRA (arXiv 2311.13600) to one pair by gradient descent on Eq. 3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from lorarar.lora.adapter import Adapter
from lorarar.merging import columns
from lorarar.training.loop import minimise
from lorarar.training.objective import Fidelity, MergingLoss, Orthogonality, merging_loss
from lorarar.training.references import References

if TYPE_CHECKING:
    from lorarar.diffusion.backbone import Backbone
    from lorarar.training.checkpoint import Checkpoint


def optimise(
    backbone: Backbone,
    content: Adapter,
    style: Adapter,
    content_references: References,
    style_references: References,
    *,
    steps: int = 100,
    learning_rate: float = 0.01,
    weight: float = 0.01,
    batch_size: int = 1,
    fidelity: Fidelity = "norm",
    orthogonality: Orthogonality = "dot",
    seed: int = 0,
    gradient_checkpointing: bool = False,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, MergingLoss], None] | None = None,
) -> columns.Coefficients:
    """Fit m_c and m_s, starting at 1, for every layer both adapters have.

    Parameters
    ----------
    content_references, style_references
        The pictures and prompts the two adapters were trained on.
    weight
        lambda of Eq. 3.
    batch_size
        Noisy latents of content, and as many of style, in each step.
    gradient_checkpointing
        Trade time for memory, as SDXL at 1024 pixels needs.
    checkpoint
        Keeps the state and continues from it. The result equals an uninterrupted run's, bit for bit.
    progress
        Called with (steps done, losses) after each step.

    Raises
    ------
    UserError
        The loss stopped being a number, or the checkpoint is not of this training.
    Interrupted
        The checkpoint was asked to stop.
    """
    content, style = (adapter.to(torch.float32).to(backbone.device) for adapter in (content, style))
    coefficients: columns.Coefficients = {
        path: (
            torch.ones(c.down.shape[1], device=backbone.device, requires_grad=True),
            torch.ones(c.down.shape[1], device=backbone.device, requires_grad=True),
        )
        for path, c, s in columns.aligned(content, style)
        if c.rank and s.rank
    }
    parameters = [m for both in coefficients.values() for m in both]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, fused=True)
    settings = {
        "learning_rate": learning_rate,
        "weight": weight,
        "batch_size": batch_size,
        "fidelity": fidelity,
        "orthogonality": orthogonality,
        "seed": seed,
    }

    @contextmanager
    def loss_of(random: torch.Generator) -> Iterator[MergingLoss]:
        loss = merging_loss(
            backbone,
            content,
            style,
            columns.merge(content, style, coefficients),
            coefficients,
            content_references.draw(backbone, batch_size, random),
            style_references.draw(backbone, batch_size, random),
            weight=weight,
            fidelity=fidelity,
            orthogonality=orthogonality,
        )
        with backbone.checkpointed(gradient_checkpointing), loss as terms:
            yield terms

    minimise(
        loss_of,
        parameters,
        optimizer,
        name="ZipLoRA",
        steps=steps,
        seed=seed,
        settings=settings,
        checkpoint=checkpoint,
        after=(lambda step, loss: progress(step + 1, loss.detach())) if progress else None,
    )
    return {path: (m_c.detach().cpu(), m_s.detach().cpu()) for path, (m_c, m_s) in coefficients.items()}
