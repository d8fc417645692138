"""Data-parallel training: processes that share the batch of each step, as `accelerate launch` starts them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorarar.errors import UserError
from lorarar.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Processes:
    """One of `number` processes that take the same steps, each on its share of the batch.

    Attributes
    ----------
    number, index : how many there are, and which of them this is. The first one writes.
    """

    number: int = 1
    index: int = 0

    @classmethod
    def here(cls) -> Processes:
        """Join the processes that `accelerate launch` has started with this one, on GPUs or on cores."""
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        return cls(state.num_processes, state.process_index)

    @property
    def main(self) -> bool:
        """True for the process that writes results, checkpoints and curves."""
        return self.index == 0

    def share(self, batch: int) -> slice:
        """The rows of a batch that are this process's. Raises `UserError` if the shares would differ."""
        if batch % self.number:
            raise UserError(f"batch_size {batch} has no equal shares for {self.number} processes; make it a multiple")
        size = batch // self.number
        return slice(self.index * size, (self.index + 1) * size)

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over all processes, which have tensors of the same shapes."""
        if self.number > 1:
            from accelerate.utils import reduce

            for tensor in tensors:
                tensor.copy_(reduce(tensor, "mean"))

    def any(self, asked: Callable[[], bool], device: torch.device) -> bool:
        """True in all processes if it is true in one of them."""
        flag = torch.tensor(float(asked()), device=device)
        self.mean([flag])
        return bool(flag)

    def checkpoint(self, given: Checkpoint, device: torch.device) -> Checkpoint:
        """The same checkpoint, which the first process writes and all obey."""
        return replace(given, stop=lambda: self.any(given.stop, device), writes=self.main)


ALONE = Processes()
"""The only process of a training."""
