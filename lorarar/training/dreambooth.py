"""DreamBooth (arXiv 2208.12242) with LoRA: one adapter from a few pictures, of a subject or of a style."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from lorarar.diffusion.backbone import Backbone
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter, Factors
from lorarar.training.checkpoint import Checkpoint
from lorarar.training.loop import minimise
from lorarar.training.references import References

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


def train_adapter(
    backbone: Backbone,
    images: Tensor,
    prompts: Sequence[str],
    *,
    rank: int = 64,
    steps: int = 1000,
    learning_rate: float = 5e-5,
    batch_size: int = 1,
    seed: int = 0,
    gradient_checkpointing: bool = False,
    eight_bit_adam: bool = False,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> Adapter:
    """Train a LoRA of the UNet's attention projections; text encoders stay frozen and run once.

    Parameters
    ----------
    images
        (N, 3, H, W) in [-1, 1].
    prompts
        One for each picture.
    rank
        Of every layer; alpha equals it.
    batch_size
        Pictures drawn, with replacement, for each step.
    gradient_checkpointing
        Trade time for memory, as SDXL at 1024 pixels needs.
    eight_bit_adam
        Keep AdamW's state in 8 bits, by bitsandbytes, as the released code does.
    checkpoint
        Keeps the state and continues from it. The result equals an uninterrupted run's, bit for bit.
    progress
        Called with (steps done, loss) after each step.

    Returns
    -------
    Adapter
        In float32. The backbone is left as it was.

    Raises
    ------
    UserError
        The loss stopped being a number, the checkpoint is not of this training, or bitsandbytes is not installed.
    Interrupted
        The checkpoint was asked to stop.
    """
    from peft import LoraConfig

    adam = _adam(eight_bit_adam)
    references = References.encode(backbone, images, prompts)
    unet = backbone.unet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(PROJECTIONS))
        )
    try:
        parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        for parameter in parameters:
            parameter.data = parameter.data.float()
        optimizer = adam(parameters, lr=learning_rate)
        settings = {"rank": rank, "learning_rate": learning_rate, "batch_size": batch_size, "seed": seed}

        @contextmanager
        def loss_of(random: torch.Generator) -> Iterator[Tensor]:
            draw = references.draw(backbone, batch_size, random)
            with backbone.checkpointed(gradient_checkpointing):
                yield mse_loss(backbone.predict(draw.latents, draw.timesteps, draw.conditioning), draw.target)

        minimise(
            loss_of,
            parameters,
            optimizer,
            name="the adapter",
            steps=steps,
            seed=seed,
            settings=settings,
            checkpoint=checkpoint,
            after=(lambda step, loss: progress(step + 1, float(loss.detach()))) if progress else None,
        )
        return _extract(unet)
    finally:
        unet.unload_lora()
        unet.requires_grad_(False).eval()


def _adam(eight_bit: bool) -> Callable[..., torch.optim.Optimizer]:
    if not eight_bit:
        return partial(torch.optim.AdamW, fused=True)
    try:
        from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]
    except ImportError:
        raise UserError("eight_bit_adam needs bitsandbytes; `pip install bitsandbytes`, or set it to false") from None
    return partial(AdamW8bit, weight_decay=0.01)  # PyTorch's default


def _extract(unet: torch.nn.Module) -> Adapter:
    from peft.tuners.lora import LoraLayer

    layers = {}
    for path, module in unet.named_modules():
        if isinstance(module, LoraLayer):
            ((name, down),) = module.lora_A.items()
            both = down.weight, module.lora_B[name].weight
            layers[path] = Factors(*(weight.detach().cpu().clone() for weight in both))
    return Adapter(layers)
