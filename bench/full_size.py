"""Full size without weights: the whole UNets of SDXL and KOALA-700m through the product's own code, on CPU or GPU.

All weights are random, so nothing is said of pictures: what is shown is that layers are found, methods merge, exact
merges predict what the factors applied by hand predict, and trainings change what they should and nothing else.
Text encoders are left out: prompts are random vectors of their shapes.

    python -m bench.full_size               # both, each in a process of its own; at most 10 minutes and 12 GiB
    python -m bench.full_size --base koala
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn

from lorarar.device import best_device
from lorarar.diffusion.backbone import Backbone, Conditioning, LongPrompts
from lorarar.lora import base_models
from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging.hypernet import HyperNetwork, ends_with
from lorarar.merging.klora import Schedule
from lorarar.merging.registry import METHODS
from lorarar.randomness import generator
from lorarar.training import ziplora
from lorarar.training.dreambooth import PROJECTIONS, train_adapter
from lorarar.training.hypernet import Entry, train
from lorarar.training.references import References

RANK = 64
PIXELS = 256
LIMIT_GIB = 12
NEAR = 1e-4
"""How far an exact merge may be off in float32, as a share of what the adapters change."""

SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
KOALA = SDXL | {"layers_per_block": 1, "transformer_layers_per_block": (1, 2, 5), "mid_block_type": None}
# Of the blocks of width 640 and 1280: self-attention, and q and o of cross-attention, are square; k and v read text.
BASES = {
    "sdxl": (SDXL, {(640, 640): 60, (640, 2048): 20, (1280, 1280): 360, (1280, 2048): 120}),
    "koala": (KOALA, {(640, 640): 36, (640, 2048): 12, (1280, 1280): 90, (1280, 2048): 30}),
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
}


class Untold(Backbone):
    """A backbone without text encoders: each prompt is a random vector of its own."""

    def encode_prompts(self, prompts: list[str], long_prompts: LongPrompts = "cut") -> Conditioning:
        rows = [generator(*prompt.encode()) for prompt in prompts]
        embeds, pooled = (
            torch.stack([torch.randn(size, generator=row) for row in rows]) for size in ((77, 2048), (1280,))
        )
        return Conditioning(embeds.to(self.device), pooled.to(self.device))

    def encode_nothing(self) -> Conditioning:
        """One more."""
        return self.encode_prompts([""])


def random_model(make: Callable[[], nn.Module], dtype: torch.dtype, device: torch.device | str) -> Any:
    """A model with random weights of the usual size, never held in any other dtype."""
    with torch.device("meta"):
        model = make()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model = model.to_empty(device=device)
    random = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=random)
            else:
                parameter.fill_(float(name.endswith("weight")))  # of norms; biases are 0
    return model


def load(config: Mapping[str, Any], device: torch.device | str = "cpu") -> Untold:
    pipeline = SimpleNamespace(
        unet=random_model(lambda: UNet2DConditionModel(**config), torch.bfloat16, device),
        vae=random_model(lambda: AutoencoderKL(**VAE), torch.float32, device),
        text_encoder=nn.Identity(),
        text_encoder_2=nn.Identity(),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        vae_scale_factor=8,
    )
    return Untold(pipeline)  # type: ignore[arg-type]


def random_adapter(backbone: Backbone, seed: int, rank: int = RANK) -> Adapter:
    """Factors for every attention projection, which together change a prediction about as much as it is large."""
    random = torch.Generator().manual_seed(seed)
    layers = {}
    for path, module in backbone.unet.named_modules():
        if isinstance(module, nn.Linear) and ends_with(path, PROJECTIONS):
            m, n = module.weight.shape
            down, up = torch.randn(rank, n, generator=random) / n**0.5, torch.randn(m, rank, generator=random)
            layers[path] = Factors(down.bfloat16(), (up / 2 / rank**0.5).bfloat16())
    return Adapter(layers)


@contextmanager
def in_float32(backbone: Backbone) -> Iterator[None]:
    """Within the block each layer computes in float32, in which its weights are for just that moment."""
    narrow: dict[nn.Parameter, Tensor] = {}

    def widen(module: nn.Module, _: Any) -> None:
        for parameter in module.parameters(recurse=False):
            narrow[parameter] = parameter.data
            parameter.data = parameter.data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = narrow.pop(parameter)

    with ExitStack() as hooks:
        hooks.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))  # a GPU's convolutions too
        hooks.callback(setattr, backbone, "dtype", backbone.dtype)
        backbone.dtype = torch.float32
        for module in backbone.unet.modules():
            if next(module.parameters(recurse=False), None) is not None:
                hooks.callback(module.register_forward_pre_hook(widen).remove)
                hooks.callback(module.register_forward_hook(restore).remove)
        yield


@contextmanager
def by_hand(unet: nn.Module, update: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Add `update(path, input)`, taken on the CPU, to what each layer computes."""
    with ExitStack() as hooks:
        for path, module in unet.named_modules():
            if isinstance(module, nn.Linear) and ends_with(path, PROJECTIONS):
                hook = module.register_forward_hook(lambda _, x, y, path=path: y + update(path, x[0].cpu()).to(y))
                hooks.callback(hook.remove)
        yield


def formulas(
    content: Adapter, style: Adapter, options: Mapping[str, dict]
) -> dict[str, Callable[[str, Tensor], Tensor]]:
    """What the exact methods say of a layer's input, in float32: (path, x) -> dW x."""

    def summed(coefficients: Callable[[str], tuple[Any, Any]]) -> Callable[[str, Tensor], Tensor]:
        def update(path: str, x: Tensor) -> Tensor:
            scaled = zip((content, style), coefficients(path), strict=True)
            parts = [(x.float() * m) @ a.layers[path].down.float().T @ a.layers[path].up.float().T for a, m in scaled]
            return parts[0] + parts[1]

        return update

    def projected(path: str, x: Tensor) -> Tensor:
        c, s = (Factors(*(f.float() for f in a.layers[path])) for a in (content, style))
        read = torch.linalg.qr(s.down.T).Q  # what the style reads
        return (x.float() - (x.float() @ read) @ read.T / 3) @ c.down.T @ c.up.T + x.float() @ s.down.T @ s.up.T

    predicted = options["lorarar"]["hypernet"].coefficients(content, style)
    fitted = options["ziplora"]["coefficients"]
    return {
        "direct": summed(lambda path: (1.0, 1.0)),
        "average": summed(lambda path: (0.5, 0.5)),
        "concat": summed(lambda path: (1.0, 1.0)),
        "ziplora": summed(lambda path: fitted[path]),
        "lorarar": summed(lambda path: predicted.get(path, (0.5, 0.5))),
        "nplora": projected,  # mu = 1/2, and mu / (1 + mu) = 1/3
    }


def checksum(tensors: Iterable[Tensor]) -> int:
    """Changes with any one bit of bfloat16 tensors."""
    sums = [int(tensor.detach().view(torch.int16).sum(dtype=torch.int64)) for tensor in tensors]
    return sum(i * total for i, total in enumerate(sums, start=1))


def status(name: str) -> float:
    """GiB of memory that this process has (`VmRSS`) or had at most (`VmHWM`)."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 2**20


class Checks:
    """What has been looked at, printed as it comes."""

    def __init__(self) -> None:
        self.begun = self.last = time.monotonic()
        self.failed: list[str] = []

    def __call__(self, name: str, right: bool, detail: str = "") -> None:
        now = time.monotonic()
        print(f"{'ok  ' if right else 'FAIL'} {name:44} {detail:44} {now - self.last:6.1f} s", flush=True)
        self.last = now
        if not right:
            self.failed.append(name)


def check_merging(check: Checks, backbone: Untold, content: Adapter, style: Adapter) -> float:
    """Every method merges and is applied; the largest relative difference of exact ones from the factors by hand."""
    random = torch.Generator().manual_seed(5)
    fitted = {p: tuple(torch.rand(2, f.down.shape[1], generator=random) * 2) for p, f in content.layers.items()}
    options: dict[str, dict] = {name: {} for name in METHODS} | {
        "lorarar": {"hypernet": HyperNetwork.for_adapter(content)},
        "ziplora": {"coefficients": fitted},
        "joint": {"adapter": style},
    }
    size = PIXELS // 8
    latents, device = torch.randn(1, 4, size, size, generator=random), backbone.device
    given = latents.to(device), torch.tensor([500], device=device), backbone.encode_prompts(["a dog"])
    plain = backbone.predict(*given)
    check("noise prediction", bool(plain.isfinite().all()), f"spread {plain.std():.2f}")
    expected = formulas(content, style, options)
    worst = 0.0
    for name, method in METHODS.items():
        begun = time.monotonic()
        merged = method.merge(content, style, **options[name])
        merged = merged.at(0.5) if isinstance(merged, Schedule) else merged.computed()
        seconds = time.monotonic() - begun
        with backbone.applied(merged):
            found = backbone.predict(*given)
        effect = float((found - plain).norm() / plain.norm())
        right, detail = (
            bool(found.isfinite().all()) and effect > 0.01,
            f"merged in {seconds:.1f} s, effect {effect:.2f}",
        )
        if name in expected:
            with by_hand(backbone.unet, expected[name]):
                hand = backbone.predict(*given)
            difference = float((found - hand).norm() / (hand - plain).norm())
            worst = max(worst, difference)
            right, detail = right and difference < NEAR, f"{detail}, by hand {difference:.1e}"
        check(f"{name} ({len(merged.layers)} layers)", right, detail)
    return worst


def check_training(check: Checks, backbone: Untold, content: Adapter, style: Adapter) -> None:
    """A step of each training, with gradient checkpointing: what changes, and what must not."""
    frozen = [*backbone.unet.parameters(), *(f for a in (content, style) for both in a.layers.values() for f in both)]
    before = checksum(frozen)
    images = torch.rand(1, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(6)) * 2 - 1
    references = References.encode(backbone, images, ["a sks dog"])
    check(
        "picture encoded", bool(references.latents.isfinite().all()), f"latents {tuple(references.latents.shape[1:])}"
    )
    trained = train_adapter(backbone, images, ["a sks dog"], rank=RANK, steps=1, gradient_checkpointing=True)
    moved = sum(bool(f.up.any()) for f in trained.layers.values())  # each begins at 0
    right = moved == len(content.layers) and checksum(frozen) == before
    check("DreamBooth step", right, f"{moved} layers changed, the base not")
    del trained

    losses: list[Any] = []
    network = HyperNetwork.for_adapter(content)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    entries = [[Entry(adapter, references)] for adapter in (content, style)]
    train(
        network, backbone, *entries, steps=1, gradient_checkpointing=True, progress=lambda _, loss: losses.append(loss)
    )
    changed = [name for name, value in network.state_dict().items() if not torch.equal(value, state[name])]
    right = len(changed) == len(state) and checksum(frozen) == before
    check("hypernetwork step", right, f"loss {losses[-1].total:.1f}; all of it changed, the base not")

    coefficients = ziplora.optimise(
        backbone, content, style, references, references, steps=1, gradient_checkpointing=True,
        progress=lambda _, loss: losses.append(loss),
    )  # fmt: skip
    moved = sum(bool((m != 1).any()) for both in coefficients.values() for m in both)
    right = moved == 2 * len(content.layers) and checksum(frozen) == before
    check("ZipLoRA step", right, f"loss {losses[-1].total:.1f}; {moved} vectors changed, the base not")


def check_base(name: str) -> dict[str, Any]:
    config, shapes = BASES[name]
    check = Checks()
    device = best_device()
    backbone = load(config, device)
    parameters = sum(p.numel() for p in backbone.unet.parameters())
    check(f"{name}: UNet built on {device}, random bfloat16", True, f"{parameters / 1e6:.1f} M parameters")
    with torch.no_grad():
        content, style = random_adapter(backbone, 1), random_adapter(backbone, 2)
        found = Counter((f.up.shape[0], f.down.shape[1]) for f in content.layers.values())
        size = sum(f.up.numel() + f.down.numel() for f in content.layers.values())
        check("LoRA layers and their shapes", found == shapes, f"{len(content.layers)}, {size / 1e6:.1f} M numbers")
        check(
            "base guessed from them",
            name.upper() in base_models.guess(content.layers),
            base_models.guess(content.layers),
        )
        with in_float32(backbone):
            worst = check_merging(check, backbone, content, style)
    check_training(check, backbone, content, style)
    peak = status("VmHWM")
    check("peak memory", peak < LIMIT_GIB, f"{peak:.1f} of {LIMIT_GIB} GiB")
    return {
        "base": name,
        "parameters": parameters,
        "layers": len(content.layers),
        "largest_difference_by_hand": float(f"{worst:.3g}"),
        "peak_gib": round(peak, 2),
        "seconds": round(time.monotonic() - check.begun, 1),
        "failed": check.failed,
    }


def main() -> None:
    """Check one base here, or all of them in processes of their own; the last lines are JSON objects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=BASES, help="only this one")
    base = parser.parse_args().base
    if base:
        figures = check_base(base)
        print(json.dumps(figures))
        sys.exit(bool(figures["failed"]))
    sys.exit(
        max(subprocess.run([sys.executable, "-m", "bench.full_size", "--base", name]).returncode for name in BASES)
    )


if __name__ == "__main__":
    main()
