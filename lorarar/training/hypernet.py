"""Training the hypernetwork: Algorithm 1 of LoRA.rar, interruptible at any step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from lorarar.merging import columns
from lorarar.merging.hypernet import HyperNetwork
from lorarar.training.loop import minimise
from lorarar.training.objective import Fidelity, MergingLoss, Orthogonality, merging_loss
from lorarar.training.processes import ALONE, Processes
from lorarar.training.references import Entry

if TYPE_CHECKING:
    from lorarar.diffusion.backbone import Backbone
    from lorarar.training.checkpoint import Checkpoint

COLUMNS = ("total", "content", "style", "orthogonality")


def train(
    network: HyperNetwork,
    backbone: Backbone,
    contents: Sequence[Entry],
    styles: Sequence[Entry],
    *,
    steps: int = 5000,
    learning_rate: float = 0.01,
    weight: float = 0.01,
    batch_size: int = 1,
    fidelity: Fidelity = "norm",
    orthogonality: Orthogonality = "dot",
    clip: float | None = None,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    processes: Processes = ALONE,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, MergingLoss], None] | None = None,
) -> list[dict[str, float]]:
    """Train `network` in place on content-style pairs that each step draws.

    Parameters
    ----------
    contents, styles
        The training split of the bank. Each step takes one item of each, so a sequence may load them when asked.
    weight
        lambda of Eq. 3.
    batch_size
        Noisy latents of content, and as many of style, in each step: of all processes together.
    clip
        Largest gradient norm; the paper names none, the released code has 1.0.
    gradient_checkpointing
        Trade time for memory, as SDXL at 1024 pixels needs.
    processes
        Those that share the batch; all of them call this with the same arguments. Any number of them takes the
        same steps, but for rounding, and a checkpoint is of any number.
    checkpoint
        Keeps the state and continues from it. The result equals an uninterrupted run's, bit for bit: each
        step draws from its own stream, keyed by seed and step.
    progress
        Called with (steps done, losses) after each step.

    Returns
    -------
    list of dict
        For each step since the first one: step, total, content, style, orthogonality.

    Raises
    ------
    UserError
        The loss stopped being a number, the processes cannot share the batch equally, or the checkpoint is damaged
        or comes from other settings.
    """
    settings = {
        "learning_rate": learning_rate,
        "weight": weight,
        "batch_size": batch_size,
        "constants": list(network.constants),
        "fidelity": fidelity,
        "orthogonality": orthogonality,
        "clip": clip,
        "seed": seed,
        "pairs": [len(contents), len(styles)],
    }
    network.to(backbone.device)
    own = processes.share(batch_size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    history = torch.zeros(steps, len(COLUMNS), dtype=torch.float64)

    @contextmanager
    def loss_of(random: torch.Generator) -> Iterator[MergingLoss]:
        content = contents[int(torch.randint(len(contents), (), generator=random))]
        style = styles[int(torch.randint(len(styles), (), generator=random))]
        subject_lora, style_lora = (member.adapter.to(backbone.device) for member in (content, style))
        coefficients = network.coefficients(subject_lora, style_lora)
        loss = merging_loss(
            backbone,
            subject_lora,
            style_lora,
            columns.merge(subject_lora, style_lora, coefficients, default=network.constants),
            coefficients,
            content.references.draw(backbone, batch_size, random)[own],
            style.references.draw(backbone, batch_size, random)[own],
            weight=weight,
            fidelity=fidelity,
            orthogonality=orthogonality,
        )
        with backbone.checkpointed(gradient_checkpointing), loss as terms:
            yield terms

    def after(step: int, loss: MergingLoss) -> None:
        terms = torch.stack(loss.detach())
        processes.mean([terms])
        history[step] = terms
        if progress:
            progress(step + 1, MergingLoss(*terms))

    minimise(
        loss_of,
        list(network.parameters()),
        optimizer,
        name="the hypernetwork",
        steps=steps,
        seed=seed,
        settings=settings,
        checkpoint=processes.checkpoint(checkpoint, backbone.device) if checkpoint else None,
        further_state=(history,),
        clip=clip,
        average=processes.mean,
        after=after,
    )
    network.cpu()
    rows = history.tolist()
    return [{"step": i, **dict(zip(COLUMNS, row, strict=True))} for i, row in enumerate(rows, start=1)]
