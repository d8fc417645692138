"""The state of a training on disk, so that one that was interrupted goes on to the very same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorarar.errors import UserError
from lorarar.files import atomic

SIZE = sha256().digest_size
"""Bytes of the checksum that a state ends with."""


class Interrupted(Exception):
    """A training was asked to stop. Its state is on disk, and the same call continues it."""


@dataclass(frozen=True)
class Checkpoint:
    """Where, when and whether to keep the state of a training whose steps draw from streams of their own.

    Parameters
    ----------
    path : the file.
    every : steps from one state to the next.
    stop : asked after each step; when it says yes the state is kept and the training ends with `Interrupted`.
    writes : whether to keep the state; of several processes with the same one, one does.
    """

    path: Path
    every: int = 100
    stop: Callable[[], bool] = lambda: False
    writes: bool = True

    def resume(self, parameters: list[Tensor], optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]) -> int:
        """Put the state into parameters and optimizer, if there is one; return how many steps it is after.

        Raises
        ------
        UserError
            The file is damaged, or of a training with other settings.
        """
        if not self.path.exists():
            return 0
        try:
            content, checksum = (whole := self.path.read_bytes())[:-SIZE], whole[-SIZE:]
            if checksum != sha256(content).digest():  # which torch does not look for
                raise ValueError
            state = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
            if state["settings"] != settings:
                raise UserError(f"{self.path}: made with other settings; delete it to train from the start")
            with torch.no_grad():
                for parameter, value in zip(parameters, state["parameters"], strict=True):
                    parameter.copy_(value)
            optimizer.load_state_dict(state["optimizer"])
            return state["step"]
        except UserError:
            raise
        except Exception:  # damaged files raise all kinds of errors
            raise UserError(f"{self.path}: not a state of this training; delete it to train from the start") from None

    def after(
        self, step: int, parameters: list[Tensor], optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
    ) -> None:
        """Keep the state if it is time, after so many steps. Raises `Interrupted` if asked to stop."""
        stop = self.stop()
        if self.writes and (stop or step % self.every == 0):
            content = BytesIO()
            state = {"step": step, "parameters": parameters, "optimizer": optimizer.state_dict()}
            torch.save({**state, "settings": dict(settings)}, content)
            with atomic(self.path) as temporary:
                temporary.write_bytes(content.getvalue() + sha256(content.getbuffer()).digest())
        if stop:
            raise Interrupted(f"stopped after step {step}; {self.path} keeps its state")
