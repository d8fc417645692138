"""Training the hypernetwork: Algorithm 1 of LoRA.rar, interruptible at any step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorarar.adapter import Adapter
from lorarar.errors import UserError
from lorarar.files import atomic
from lorarar.hypernet import HyperNetwork, read_pickle
from lorarar.merge import columns
from lorarar.objective import Fidelity, MergingLoss, Orthogonality, merging_loss
from lorarar.references import References, generator

if TYPE_CHECKING:
    from lorarar.backbone import Backbone

COLUMNS = ("total", "content", "style", "orthogonality")


@dataclass(frozen=True)
class Entry:
    """A member of the LoRA bank: an adapter and the pictures it was trained on."""

    adapter: Adapter
    references: References


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
    constants: tuple[float, float] = (0.5, 0.5),
    fidelity: Fidelity = "norm",
    orthogonality: Orthogonality = "dot",
    clip: float | None = None,
    seed: int = 0,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 100,
    progress: Callable[[int, MergingLoss], None] | None = None,
) -> list[dict[str, float]]:
    """Train `network` in place on content-style pairs drawn anew in each step.

    Parameters
    ----------
    contents, styles
        The training split of the bank. Only items are taken, so a sequence may load them when asked.
    weight
        lambda of Eq. 3.
    batch_size
        Noisy latents of content, and as many of style, in each step.
    constants
        (m_c, m_s) of the projections that are not guided; the released code has (1, 1).
    clip
        Largest gradient norm; the paper names none, the released code has 1.0.
    checkpoint, checkpoint_every
        A file for the state of training. If it exists, training goes on from it, and ends with the very
        weights of a run that was never interrupted: each step draws from its own stream, keyed by seed and
        step.
    progress
        Called with (steps done, losses) after each step.

    Returns
    -------
    list of dict
        For each step since the first one: step, total, content, style, orthogonality.

    Raises
    ------
    UserError
        The loss stopped being a number, or the checkpoint is damaged or comes from other settings.
    """
    settings: dict[str, Any] = {
        "learning_rate": learning_rate,
        "weight": weight,
        "batch_size": batch_size,
        "constants": list(constants),
        "fidelity": fidelity,
        "orthogonality": orthogonality,
        "clip": clip,
        "seed": seed,
        "pairs": [len(contents), len(styles)],
    }
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    history: list[list[float]] = []
    if checkpoint and Path(checkpoint).exists():
        history = _resume(Path(checkpoint), network, optimizer, settings)

    for step in range(len(history), steps):
        random = generator(seed, step)
        content = contents[int(torch.randint(len(contents), (), generator=random))]
        style = styles[int(torch.randint(len(styles), (), generator=random))]
        coefficients = network.coefficients(content.adapter, style.adapter)
        loss = merging_loss(
            backbone,
            content.adapter,
            style.adapter,
            columns.merge(content.adapter, style.adapter, coefficients, default=constants),
            coefficients,
            content.references.draw(backbone, batch_size, random),
            style.references.draw(backbone, batch_size, random),
            weight=weight,
            fidelity=fidelity,
            orthogonality=orthogonality,
        )
        if not torch.isfinite(loss.total):
            raise UserError(f"the hypernetwork's loss is not finite at step {step + 1}; lower its learning rate")
        optimizer.zero_grad()
        loss.total.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()

        history.append([float(term) for term in loss.detach()])
        if progress:
            progress(step + 1, loss.detach())
        if checkpoint and ((step + 1) % checkpoint_every == 0 or step + 1 == steps):
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            with atomic(checkpoint) as temporary:
                torch.save({**state, "history": history, "settings": settings}, temporary)
    return [{"step": i, **dict(zip(COLUMNS, row, strict=True))} for i, row in enumerate(history[:steps], start=1)]


def _resume(
    checkpoint: Path, network: HyperNetwork, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> list[list[float]]:
    state = read_pickle(checkpoint)
    try:
        if state["settings"] != settings:
            raise UserError(f"{checkpoint}: made with other settings; delete it to train from the start")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        return state["history"]
    except (KeyError, TypeError, RuntimeError, ValueError):
        raise UserError(f"{checkpoint}: not a state of this training; delete it to train from the start") from None
