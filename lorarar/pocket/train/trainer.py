"""One training loop for all small models of the miniature world: it checkpoints, resumes, and says how far
it is.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from lorarar.errors import UserError
from lorarar.files import atomic

SAVE_STEPS = 200
REPORT_SECONDS = 5.0


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
    replay: bool = True,
    team: Team | None = None,
) -> None:
    """Train `model` in place under a cosine schedule; it ends up with the moving average of its weights.

    Weights of linear and convolutional layers are trained with Muon, which orthogonalises their momentum, all others
    with AdamW: on the miniature UNet that took far fewer steps. The processes of a team divide the orthogonalisations
    among them.

    Whatever is random must be drawn in `batch`, from the step number, so that a run that was cut off and resumed
    sees what an uninterrupted run sees. Dropout apart, which is not drawn again.

    Parameters
    ----------
    model : trained where it lies, on a CPU or a GPU; afterwards set to evaluation mode.
    batch : step -> the tensors of that step, of the same shapes at every step, where the model lies.
    loss : those tensors -> scalar loss.
    name : for progress lines and messages.
    steps : in all, those before an interruption included.
    learning_rate : peak of the schedule for AdamW; Muon's is twice that.
    checkpoint : file that holds the state; read if it exists, kept at the end so that a finished run is not
        repeated.
    weight_decay : of both.
    warmup : steps of linear warm-up.
    average : decay of the moving average of weights and batch statistics.
    bf16 : run the forward pass under bfloat16 autocast.
    replay : on a GPU, record a step once and replay it; for a loss that never looks at a value on its way.
    team : the processes that train this model together, each on a batch of its own; alone by default.

    Raises
    ------
    UserError : the checkpoint is of another model or another number of steps.
    """
    team = team or Team()
    matrices, others = _matrices(model)
    shares = _shares(matrices, team.workers)
    # Weights are views of one vector, ordered by who takes care of them, and gradients of another: one message each.
    ordered = [*(matrix for share in shares for matrix in share), *others]
    weights = torch.cat([parameter.detach().flatten() for parameter in ordered])
    device = weights.device
    gradient = torch.zeros_like(weights)
    sizes = [parameter.numel() for parameter in ordered]
    for parameter, weight, slope in zip(ordered, weights.split(sizes), gradient.split(sizes), strict=True):
        parameter.data, parameter.grad = weight.view_as(parameter), slope.view_as(parameter)
    parts = weights.split([sum(matrix.numel() for matrix in share) for share in [*shares, others]])[: team.workers]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            others, lr=learning_rate, weight_decay=weight_decay, fused=True, capturable=device.type == "cuda"
        )
    ]
    if mine := [_flat(matrix) for matrix in shares[team.rank]]:
        optimisers.append(
            torch.optim.Muon(mine, lr=2 * learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    before = torch.empty_like(weights)
    shadow = {key: value.detach().clone() for key, value in model.state_dict().items()}
    start = _resume(checkpoint, steps, model, optimisers, shadow, team) if checkpoint.is_file() else 0
    begun = reported = time.monotonic()
    running, since = torch.zeros((), device=device), 0

    def advance(pace: Tensor, decay: Tensor, *inputs: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            value = loss(*inputs)
        gradient.zero_()
        value.backward()
        team.average(gradient)
        gradient.div_(gradient.norm().clamp(min=1.0))
        before.copy_(weights)
        for optimiser in optimisers:
            optimiser.step()
        # What both optimisers do, decay included, is proportional to their rates: the schedule takes its part of it.
        torch.lerp(before, weights, pace, out=weights)
        team.share(parts)
        _follow(shadow, model, decay)
        return value.detach()

    take = Replay(advance) if replay and device.type == "cuda" else advance

    def save(done: int) -> None:
        states = team.collect([optimiser.state_dict() for optimiser in optimisers])
        if team.rank:
            return
        state = {"steps": steps, "done": done, "model": model.state_dict(), "shadow": shadow, "optimisers": states}
        with atomic(checkpoint) as temporary:
            torch.save(state, temporary)

    model.train()
    step = start
    try:
        for step in range(start, steps):
            pace, decay = _schedule(step, steps, warmup), min(average, (1 + step) / (10 + step))
            running += take(*torch.tensor([pace, decay], device=device), *batch(step))
            since, now = since + 1, time.monotonic()
            if team.rank == 0 and (now - reported > REPORT_SECONDS or step + 1 == steps):
                left = (now - begun) / (step + 1 - start) * (steps - step - 1)
                print(
                    f"{name} {step + 1}/{steps}  loss {running.item() / since:.4f}  {left / 60:.1f} min left",
                    file=sys.stderr,
                )
                reported, since = now, 0
                running.zero_()
            if (step + 1) % SAVE_STEPS == 0:
                save(step + 1)
    except KeyboardInterrupt:
        if team.workers == 1:  # a team that was interrupted no longer listens; it goes on from its last checkpoint
            save(step)
        raise
    if start < steps:
        save(steps)
    model.load_state_dict(shadow)
    model.eval()


def accelerator() -> torch.device:
    """The GPU if there is one; a CPU does as well, in hours."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Replay:
    """A function of tensors, recorded as a CUDA graph: the kernels of a small network take less time than launching
    them, and a replay launches all at once. Its first calls are made as they are, for whatever is set up in them.
    """

    def __init__(self, function: Callable[..., Tensor], calls: int = 3) -> None:
        self.function, self.calls = function, calls
        self.stream, self.graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls >= 0:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                value = self.function(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return value
        if self.calls == -1:
            self.inputs = [tensor.clone() for tensor in inputs]
            with torch.cuda.graph(self.graph):
                self.value = self.function(*self.inputs)
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.value


class Team:
    """Processes of one thread each that train one model together: on a CPU they beat one process of many threads.

    Attributes
    ----------
    rank, workers : which of how many this process is.
    """

    def __init__(self, rank: int = 0, workers: int = 1) -> None:
        self.rank, self.workers = rank, workers

    @classmethod
    def meet(cls, rank: int, workers: int, meeting: Path) -> Team:
        """Wait for the others at a file that no team has used before."""
        torch.set_num_threads(1)
        if workers > 1:
            store = torch.distributed.FileStore(str(meeting), workers)
            torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=workers)
        return cls(rank, workers)

    def generator(self, step: int) -> torch.Generator:
        """This member's random numbers for one step."""
        return torch.Generator().manual_seed(step * 64 + self.rank)

    def average(self, gradient: Tensor) -> None:
        """Replace everyone's vector by the mean of all."""
        if self.workers > 1:
            # In half the bytes: what bfloat16 rounds off is far below the noise of a batch.
            shared = gradient.bfloat16()
            torch.distributed.all_reduce(shared)
            gradient.copy_(shared).div_(self.workers)

    def share(self, parts: Sequence[Tensor]) -> None:
        """Everyone sends its own part of a vector to all others."""
        if self.workers > 1:
            for rank, part in enumerate(parts):
                torch.distributed.broadcast(part, rank)

    def collect(self, state: Any) -> list[Any]:
        """Everyone's state, in the order of ranks, for rank 0 to keep."""
        states: list[Any] = [state] * self.workers
        if self.workers > 1:
            torch.distributed.all_gather_object(states, state)
        return states

    def gather(self, rows: Tensor) -> Tensor:
        """Everyone's rows, interleaved: those of rank 0 are rows 0, workers, 2 workers, ..."""
        if self.workers == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.workers)]
        torch.distributed.all_gather(parts, rows)
        return torch.stack(parts, 1).flatten(0, 1)


@contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; on success move its files into `folder`, each of them whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        yield Path(temporary)
        for path in Path(temporary).iterdir():
            os.replace(path, folder / path.name)


def _matrices(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights of linear and convolutional layers, and everything else that is trained."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    matrices = list(
        dict.fromkeys(
            layer.weight for layer in layers if isinstance(layer.weight, nn.Parameter) and layer.weight.requires_grad
        )
    )
    known = set(matrices)
    return matrices, [p for p in model.parameters() if p.requires_grad and p not in known]


def _flat(weight: nn.Parameter) -> nn.Parameter:
    """The same memory as a matrix of outputs x everything else, with the same gradient."""
    matrix = nn.Parameter(weight.detach().flatten(1))
    matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
    return matrix


def _shares(matrices: list[nn.Parameter], workers: int) -> list[list[nn.Parameter]]:
    """Divide the matrices so that everyone has as much work orthogonalising its own."""

    def work(matrix: Tensor) -> int:
        short, long = sorted((matrix.shape[0], matrix[0].numel()))
        return short * short * (2 * long + short)

    shares: list[list[nn.Parameter]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for matrix in sorted(matrices, key=work, reverse=True):
        lightest = loads.index(min(loads))
        shares[lightest].append(matrix)
        loads[lightest] += work(matrix)
    return shares


def _schedule(step: int, steps: int, warmup: int) -> float:
    cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item())
    return min((step + 1) / warmup, 1.0) * max(cosine, 0.01)


@torch.no_grad()
def _follow(shadow: dict[str, Tensor], model: nn.Module, decay: Tensor) -> None:
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            shadow[key].lerp_(value, 1 - decay)
        else:
            shadow[key].copy_(value)


def _resume(
    checkpoint: Path,
    steps: int,
    model: nn.Module,
    optimisers: list[torch.optim.Optimizer],
    shadow: dict[str, Tensor],
    team: Team,
) -> int:
    state = torch.load(checkpoint, weights_only=True, map_location=next(iter(shadow.values())).device)
    try:
        if state["steps"] != steps:
            raise ValueError(f"it is of a run of {state['steps']} steps, not {steps}")
        if len(state["optimisers"]) != team.workers:
            raise ValueError(f"it is of a team of {len(state['optimisers'])} processes, not {team.workers}")
        model.load_state_dict(state["model"])
        for optimiser, kept in zip(optimisers, state["optimisers"][team.rank], strict=True):
            optimiser.load_state_dict(kept)
        for key, value in state["shadow"].items():
            shadow[key].copy_(value)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{checkpoint}: does not belong to this training ({reason}); remove it to start anew"
        ) from error
    return state["done"]
