"""The base model as tasks name it: loaded once in each process."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from stages.shared.context import Context

if TYPE_CHECKING:
    from lorarar.diffusion.backbone import Backbone


@dataclass(frozen=True)
class Model:
    """A base model, and how it computes.

    Attributes
    ----------
    dtype : a name of PyTorch's; `auto` is the fastest of this machine.
    training : whether `auto` has to do for training, too.
    offload : keep on the GPU only the part that is in use.
    """

    folder: str
    dtype: str = "auto"
    training: bool = False
    offload: bool = False

    @cache  # noqa: B019  (a process has one base, or two)
    def load(self) -> Backbone:
        """Load the model."""
        import torch

        from lorarar.diffusion.backbone import Backbone, best_dtype

        chosen = best_dtype(self.training)[0] if self.dtype == "auto" else getattr(torch, self.dtype)
        return Backbone.load(self.folder, chosen, offload=self.offload)


@dataclass(frozen=True)
class Setting:
    """How a base trains: the model, the size of its pictures, the rank of its LoRAs, and what saves memory."""

    model: Model
    resolution: int
    rank: int
    gradient_checkpointing: bool
    eight_bit_adam: bool


def base_model(context: Context, training: bool = False) -> Model:
    """The chosen base as params.yaml says."""
    knobs = context.knobs.backbone
    dtype = knobs.training_dtype if training else knobs.dtype
    return Model(str(context.data / "base"), dtype, training, knobs.offload)


def training_setting(context: Context) -> Setting:
    """How the chosen base trains, as params.yaml says."""
    knobs, model = context.knobs.backbone, base_model(context, training=True)
    saving = (knobs.gradient_checkpointing, knobs.eight_bit_adam)
    return Setting(model, knobs.resolution, context.knobs.bank.rank, *saving)
