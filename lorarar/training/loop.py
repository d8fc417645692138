"""The step loop of every training here: interruptible at any step, and the same bits when it continues."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor

from lorarar.errors import UserError
from lorarar.randomness import generator
from lorarar.training.checkpoint import Checkpoint

Loss = TypeVar("Loss", Tensor, Any)


def minimise(
    loss_of: Callable[[torch.Generator], AbstractContextManager[Loss]],
    parameters: list[Tensor],
    optimizer: torch.optim.Optimizer,
    *,
    name: str,
    steps: int,
    seed: int,
    settings: Mapping[str, Any],
    checkpoint: Checkpoint | None = None,
    further_state: tuple[Tensor, ...] = (),
    clip: float | None = None,
    average: Callable[[list[Tensor]], None] | None = None,
    after: Callable[[int, Loss], None] | None = None,
) -> None:
    """Take the steps of a training, or those that are left of it.

    Parameters
    ----------
    loss_of
        Stream of random numbers of a step -> its loss, a scalar or a tuple with a `total`, which is differentiated
        inside of the context.
    name
        For messages, such as "ZipLoRA".
    settings
        Everything that a continued training must share with the interrupted one.
    further_state
        Tensors that the checkpoint keeps with the parameters.
    clip
        Largest norm of the gradient of `parameters`; None is no limit.
    average
        Replaces gradients by their means over the processes that share a batch.
    after
        Called with (step, loss) after each step, counted from 0, before the state is kept.

    Raises
    ------
    UserError
        The loss stopped being a number, or the checkpoint is not of this training.
    Interrupted
        The checkpoint was asked to stop.
    """
    state = [*parameters, *further_state]
    start = checkpoint.resume(state, optimizer, settings) if checkpoint else 0
    for step in range(start, steps):
        with loss_of(generator(seed, step)) as loss:
            total = loss if isinstance(loss, Tensor) else loss.total
            if not torch.isfinite(total):
                raise UserError(f"{name}'s loss is not finite at step {step + 1}; lower its learning rate")
            optimizer.zero_grad()
            total.backward()
        if average:
            average([parameter.grad for parameter in parameters if parameter.grad is not None])
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        if after:
            after(step, loss)
        if checkpoint:
            checkpoint.after(step + 1, state, optimizer, settings)
