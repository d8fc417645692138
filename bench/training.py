"""Times one training step of the hypernetwork and one of ZipLoRA: the released algorithm and ours.

The released algorithm forms both updates of every layer, shows their columns to the network (or scales them by
ZipLoRA's coefficients) and adds them up inside each forward pass. Ours works on the factors. Both take the same step:
the same model, in the same process, with the same noise, in turn. On pocket the model is the shipped one; SDXL has its
full size and random weights, at 256 pixels with gradient checkpointing. Adapters are random. The last line of the
output is one JSON object for each base.

    python -m bench.training                # pocket in a minute, SDXL in ten, 14 GB
    python -m bench.training --base pocket
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from bench.full_size import SDXL, in_float32, load, random_adapter, status
from bench.merge import released_columns
from lorarar.diffusion.backbone import Backbone
from lorarar.merging import columns
from lorarar.merging.hypernet import HyperNetwork, ends_with
from lorarar.randomness import generator
from lorarar.training.objective import merging_loss
from lorarar.training.references import Draw, References

WEIGHT = 0.01
Pair = tuple[Tensor, Tensor]
Step = Callable[[], float]


class Setting:
    """A model, two adapters, and noisy latents of both kinds."""

    def __init__(self, backbone: Backbone, rank: int, size: int, checkpointed: bool) -> None:
        self.backbone, self.checkpointed = backbone, checkpointed
        with torch.no_grad():
            self.content, self.style = (random_adapter(backbone, seed, rank).to(torch.float32) for seed in (1, 2))
        prompts = backbone.encode_prompts(["a dog", "a car"])
        clean = torch.randn(2, backbone.latent_shape[0], size, size, generator=generator(3))
        self.draws = [
            References(clean[i : i + 1], prompts[i : i + 1]).draw(backbone, 1, generator(4, i)) for i in (0, 1)
        ]
        self.network = HyperNetwork.for_adapter(self.content)
        self.fitted = {
            path: (torch.ones(f.down.shape[1], requires_grad=True), torch.ones(f.down.shape[1], requires_grad=True))
            for path, f in self.content.layers.items()
        }


def ours(setting: Setting, coefficients: Callable[[], columns.Coefficients], parameters: list[Tensor]) -> float:
    """One step of the product: the loss of Eq. 3 on factors."""
    found = coefficients()
    merged = columns.merge(setting.content, setting.style, found, default=(0.5, 0.5))
    loss = merging_loss(setting.backbone, setting.content, setting.style, merged, found, *setting.draws, weight=WEIGHT)
    with setting.backbone.checkpointed(setting.checkpointed), loss as terms:
        return learn(terms.total, parameters)


def released(
    setting: Setting, coefficients: Callable[[str, Tensor, Tensor], Pair | None], parameters: list[Tensor]
) -> float:
    """One step as the release takes it: updates formed, and merged, inside every forward pass."""
    backbone, seen = setting.backbone, dict[str, Pair]()

    def merged(path: str, of_content: Tensor, of_style: Tensor) -> Tensor:
        both = coefficients(path, of_content, of_style)
        if both:
            seen[path] = both
        m_c, m_s = both or (0.5, 0.5)
        return m_c * of_content + m_s * of_style

    with torch.no_grad():
        targets = []
        for draw, weigh in zip(setting.draws, ((1.0, 0.0), (0.0, 1.0)), strict=True):
            with formed(setting, lambda _, c, s, weigh=weigh: weigh[0] * c + weigh[1] * s):
                targets.append(predict(backbone, draw))
    with backbone.checkpointed(setting.checkpointed), formed(setting, merged):
        terms = [
            (predict(backbone, draw) - target).flatten(1).norm(dim=1).mean()
            for draw, target in zip(setting.draws, targets, strict=True)
        ]
        overlap = sum((m_c @ m_s).abs() for m_c, m_s in seen.values())
        return learn(terms[0] + terms[1] + WEIGHT * overlap, parameters)


@contextmanager
def formed(setting: Setting, merge: Callable[[str, Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Each layer adds the update that `merge(path, dW_c, dW_s)` gives, formed whenever it computes."""
    modules = dict(setting.backbone.unet.named_modules())

    def hook(path: str) -> Any:
        def add(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            c, s = setting.content.layers[path], setting.style.layers[path]
            return output + linear(inputs[0], merge(path, c.up @ c.down, s.up @ s.down).to(output.dtype))

        return add

    with ExitStack() as hooks:
        for path in setting.content.layers:
            hooks.callback(modules[path].register_forward_hook(hook(path)).remove)
        yield


def predict(backbone: Backbone, draw: Draw) -> Tensor:
    return backbone.predict(draw.latents, draw.timesteps, draw.conditioning)


def learn(loss: Tensor, parameters: list[Tensor]) -> float:
    """Go backward, and forget: the optimiser is the same for both, and its step would make the next ones differ."""
    if loss.requires_grad:
        loss.backward()
        for parameter in parameters:
            assert parameter.grad is not None and parameter.grad.isfinite().all()
            parameter.grad = None
    return float(loss.detach())


def contestants(setting: Setting) -> dict[str, dict[str, Step]]:
    network, fitted = setting.network, setting.fitted
    weights, scales = list(network.parameters()), [m for both in fitted.values() for m in both]

    def of_columns(path: str, of_content: Tensor, of_style: Tensor) -> Pair | None:
        return released_columns(network, of_content, of_style) if ends_with(path, network.guided) else None

    return {
        "hypernet": {
            "released": lambda: released(setting, of_columns, weights),
            "ours": lambda: ours(setting, lambda: network.coefficients(setting.content, setting.style), weights),
        },
        "ziplora": {
            "released": lambda: released(setting, lambda path, *_: fitted[path], scales),
            "ours": lambda: ours(setting, lambda: fitted, scales),
        },
    }


def memory(step: Step) -> float:
    """GiB that a step needs at most beyond what is there before; not the first step, which also sets libraries up."""
    step()
    ctypes.CDLL(None).malloc_trim(0)  # what steps before have left behind
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    step()
    return status("VmHWM") - before


def measure(base: str) -> dict[str, Any]:
    if base == "pocket":
        backbone, rank, rounds = Backbone.load(Path("data/pocket/base"), torch.float32), 16, 7
        setting = Setting(backbone, rank, backbone.latent_shape[1], checkpointed=False)
    else:
        rank, rounds = 64, 2
        setting = Setting(load(SDXL), rank, 32, checkpointed=True)
    layers = len(setting.content.layers)
    print(f"{base}: {layers} layers, rank {rank}, {torch.get_num_threads()} threads", flush=True)
    figures: dict[str, Any] = {"base": base, "layers": layers, "rank": rank, "rounds": rounds}
    for name, sides in contestants(setting).items():
        needed = {side: memory(step) for side, step in sides.items()}  # and both have been run once
        with torch.no_grad(), in_float32(backbone):  # bfloat16 rounds products otherwise than products of products
            losses = {side: step() for side, step in sides.items()}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, step in sides.items():
                begun = time.perf_counter()
                step()
                seconds[side].append(time.perf_counter() - begun)
        medians = {side: statistics.median(values) for side, values in seconds.items()}
        for side in sides:
            print(
                f"{name:9} {side:9} {medians[side]:9.3f} s a step {needed[side]:7.2f} GiB  loss {losses[side]:.6g}",
                flush=True,
            )
        figures |= {
            f"{name}_step_seconds": medians["ours"],
            f"{name}_step_speedup": medians["released"] / medians["ours"],
            f"{name}_memory_ratio": needed["released"] / needed["ours"],
            f"{name}_loss_difference": abs(losses["released"] - losses["ours"]) / losses["released"],
        }
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=["pocket", "sdxl"], help="only this one")
    base = parser.parse_args().base
    found = [measure(name) for name in ([base] if base else ["pocket", "sdxl"])]
    for figures in found:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
