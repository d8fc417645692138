"""The training loop of all small models of the miniature world: it checkpoints, resumes and shows its progress.

The shipped weights came from an earlier loop with the same method, whose batches several processes shared.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import cos, pi
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from lorarar.errors import UserError
from lorarar.files import atomic

SAVE_STEPS = 200


def fit(
    model: nn.Module,
    batch: Callable[[int], Sequence[Tensor]],
    loss: Callable[..., Tensor],
    *,
    name: str,
    steps: int,
    learning_rate: float,
    checkpoint: Path,
    weight_decay: float = 0.05,
    warmup: int = 100,
    average: float = 0.998,
    bf16: bool = True,
) -> None:
    """Train `model` in place under a cosine schedule; afterwards it holds the moving average of its weights.

    Muon, which orthogonalises momentum, trains the weights of linear and convolutional layers; AdamW trains all others.
    With AdamW for all, the miniature UNet took far more steps.

    Everything random must be drawn in `batch`, from the step number, so that a resumed run sees the same batches as an
    uninterrupted one. Dropout is the exception.

    Parameters
    ----------
    model : trained where it lies, on a CPU or a GPU; afterwards set to evaluation mode.
    batch : step -> the tensors of that step, on the model's device.
    loss : those tensors -> scalar loss.
    name : for the progress bar.
    steps : in all, those before an interruption included.
    learning_rate : peak of the schedule for AdamW; Muon's is twice that.
    checkpoint : file of the state; read if it exists, and kept at the end so that a finished run is not repeated.
    weight_decay : of both optimisers.
    warmup : steps of linear warm-up.
    average : decay of the moving average of weights and batch statistics.
    bf16 : run the forward pass under bfloat16 autocast.

    Raises
    ------
    UserError : the checkpoint is damaged, or of another model or another number of steps.
    """
    matrices, others = _matrices(model)
    flat = [nn.Parameter(matrix.detach().flatten(1)) for matrix in matrices]  # the same memory, as Muon takes it
    optimisers: list[torch.optim.Optimizer] = []
    if others:
        optimisers.append(torch.optim.AdamW(others, lr=learning_rate, weight_decay=weight_decay, fused=True))
    if flat:
        muon = torch.optim.Muon(flat, lr=2 * learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        optimisers.append(muon)
    peaks = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    shadow = {key: value.detach().clone() for key, value in model.state_dict().items()}
    start = _resume(checkpoint, steps, model, shadow, optimisers) if checkpoint.is_file() else 0

    def save(done: int) -> None:
        state = {"steps": steps, "done": done, "model": model.state_dict(), "shadow": shadow}
        with atomic(checkpoint) as temporary:
            torch.save({**state, "optimisers": [optimiser.state_dict() for optimiser in optimisers]}, temporary)

    device, interval = next(model.parameters()).device, 0.1 if sys.stderr.isatty() else 15
    model.train()
    for step in (bar := tqdm(range(start, steps), name, steps, initial=start, unit="step", mininterval=interval)):
        try:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                value = loss(*batch(step))
            model.zero_grad()
            value.backward()
        except KeyboardInterrupt:  # not later in a step, when only a part of the weights may have moved
            save(step)
            raise
        nn.utils.clip_grad_norm_([*matrices, *others], 1.0)
        for view, matrix in zip(flat, matrices, strict=True):
            view.grad = None if matrix.grad is None else matrix.grad.flatten(1)
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            optimiser.param_groups[0]["lr"] = peak * _rate(step, steps, warmup)
            optimiser.step()
        _follow(shadow, model, min(average, (1 + step) / (10 + step)))
        if step % 20 == 0:  # not each time: a GPU would be waited for
            bar.set_postfix(loss=f"{value.item():.4f}", refresh=False)
        if (step + 1) % SAVE_STEPS == 0:
            save(step + 1)
    if start < steps:
        save(steps)
    model.load_state_dict(shadow)
    model.eval()


def generators(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """Generators of one training step, so that a resumed run draws the same as an uninterrupted one."""
    rng = np.random.default_rng((seed, step))
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success move its files into `folder`, each of them whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        yield Path(temporary)
        for path in Path(temporary).iterdir():
            os.replace(path, folder / path.name)


def _matrices(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights of linear and convolutional layers, and everything else that is trained."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    weights = {id(layer.weight) for layer in layers}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [p for p in trained if id(p) in weights], [p for p in trained if id(p) not in weights]


def _rate(step: int, steps: int, warmup: int) -> float:
    """Share of the peak learning rate: a linear warm-up, then a cosine down to one hundredth."""
    return min((step + 1) / warmup, 1.0) * max(0.5 + 0.5 * cos(pi * step / steps), 0.01)


@torch.no_grad()
def _follow(shadow: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Move the average of weights and buffers towards the model."""
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            shadow[key].lerp_(value, 1 - decay)
        else:
            shadow[key].copy_(value)


def _resume(
    checkpoint: Path, steps: int, model: nn.Module, shadow: dict[str, Tensor], optimisers: list[torch.optim.Optimizer]
) -> int:
    """Read the state into model, average and optimisers; returns the number of steps that are done."""
    try:
        state = torch.load(checkpoint, weights_only=True, map_location=next(model.parameters()).device)
        if state["steps"] != steps:
            raise ValueError(f"it is of a run of {state['steps']} steps, not {steps}")
        model.load_state_dict(state["model"])
        for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        for key, value in state["shadow"].items():
            shadow[key].copy_(value)
        return state["done"]
    except Exception as error:  # a damaged file fails in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{checkpoint}: does not belong to this training ({reason}); delete it to restart") from error
