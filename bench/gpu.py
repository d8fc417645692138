"""Measures trainings and images of SDXL and KOALA-700m on a GPU, at the settings of params.yaml.

Weights are random, which changes neither time nor memory: LoRAs and the loss at the first steps are checked to be
numbers, and no more is said of what comes out. Text encoders are left out: they run once for each prompt. For each
task the last lines tell seconds (of a step the median, images are sampled once), GPU memory at most, and the work done
in a second by the counts of data/costs.yaml.

    python -m bench.gpu                    # both, each in a process of its own: some 5 minutes on an H100
    python -m bench.gpu --base koala
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from bench.full_size import BASES, load, random_adapter
from lorarar.device import best_device
from lorarar.diffusion.sampling import generate
from lorarar.errors import UserError
from lorarar.merging import columns
from lorarar.merging.hypernet import HyperNetwork
from lorarar.parallel import one_thread
from lorarar.randomness import generator
from lorarar.training import ziplora
from lorarar.training.dreambooth import train_adapter
from lorarar.training.hypernet import Entry, train
from lorarar.training.references import References
from stages.shared.context import Context
from stages.shared.forecast import cost_table

STEPS = 8
"""Of each training. The first three, in which memory is taken and kernels are chosen, do not count."""
UNCOUNTED = 3
SAMPLING = 10
"""Steps of an image here; all others take as long."""


class Clock:
    """Seconds between calls, each taken when the GPU has finished what it was given."""

    def __init__(self) -> None:
        self._times: list[float] = []
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def __call__(self, *_: Any) -> None:
        torch.cuda.synchronize()
        self._times.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """The median of the steps that count."""
        counted = self._times[UNCOUNTED - 1 :]
        return statistics.median(after - before for before, after in pairwise(counted))


class Measured(dict[str, dict[str, float]]):
    """Task -> its figures, printed as they come."""

    def note(self, name: str, clock: Clock, tflop: float) -> None:
        self[name] = {
            "seconds": float(f"{clock.seconds:.3g}"),
            "memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
            "tflop_per_second": round(tflop / clock.seconds, 1),
        }
        print(f"{name:34} {json.dumps(self[name])}", flush=True)


def measure(base: str) -> dict[str, Any]:
    """Time every kind of task of a base on this GPU."""
    context = Context.load()
    context = replace(context, params=context.params.with_base(base))
    knobs, (_, counts) = context.knobs, cost_table(context)
    side = knobs.backbone.resolution
    counts = counts.scaled((side / 1024) ** 2)
    backbone = load(BASES[base][0], best_device())
    with torch.no_grad():
        content, style = (random_adapter(backbone, seed, knobs.bank.rank).to(torch.float32) for seed in (1, 2))
    images = torch.rand(2, 3, side, side, generator=generator(0)) * 2 - 1
    prompts = ["a sks dog", "a car in watercolor style"]
    references = [References.encode(backbone, images[i : i + 1], prompts[i : i + 1]) for i in (0, 1)]
    network = HyperNetwork.for_adapter(content, guided=knobs.hypernet.guided)
    measured = Measured()

    def trainings(checkpointing: bool) -> None:
        options: dict[str, Any] = {"steps": STEPS, "gradient_checkpointing": checkpointing}
        ending = "" if checkpointing else ", activations kept"
        size, clock = knobs.bank.subject.batch_size, Clock()
        train_adapter(backbone, images, prompts, rank=knobs.bank.rank, batch_size=size, progress=clock, **options)
        measured.note(f"LoRA step{ending}", clock, counts.training(1, size, checkpointing))

        size, clock = knobs.ziplora.batch_size, Clock()
        ziplora.optimise(backbone, content, style, *references, batch_size=size, progress=clock, **options)
        measured.note(f"ZipLoRA step{ending}", clock, counts.fitting(1, size, checkpointing, relative=False))

        size, clock = knobs.hypernet.batch_size, Clock()
        entries = [[Entry(adapter, drawn)] for adapter, drawn in zip((content, style), references, strict=True)]
        train(network, backbone, *entries, batch_size=size, progress=clock, **options)
        measured.note(f"hypernetwork step{ending}", clock, counts.fitting(1, size, checkpointing, relative=False))

    @torch.no_grad()
    def coefficients() -> None:
        network.to(backbone.device)
        both = [adapter.to(backbone.device) for adapter in (content, style)]
        clock = Clock()
        with one_thread():  # several would only wait for each other to give the GPU something to do
            for _ in range(STEPS):
                network.coefficients(*both)
                clock()
        measured.note("coefficients", clock, 0)

    def sampling(batch: int) -> None:
        merged, clock = columns.merge(content, style, {}).computed(), Clock()
        for _ in range(UNCOUNTED + 1):
            with suppress(UserError):  # random weights may well draw black
                generate(
                    backbone,
                    merged,
                    prompts[0],
                    seeds=list(range(batch)),
                    steps=SAMPLING,
                    guidance=knobs.generate.guidance,
                    batch_size=batch,
                )
            clock()
        tflop = counts.sampling(SAMPLING, knobs.generate.guidance) * batch
        measured.note(f"{SAMPLING} steps of {batch} images", clock, tflop)

    def decoding() -> None:
        latents, clock = torch.zeros(1, *backbone.latent_shape), Clock()
        for _ in range(STEPS):
            backbone.decode(latents)
            clock()
        measured.note("decoding", clock, counts.decode)

    for checkpointing in (True, False):
        trainings(checkpointing)
    coefficients()
    for batch in (1, 4, 10):
        sampling(batch)
    decoding()
    return {"base": base, "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "tasks": measured}


def main() -> None:
    """Measure one base here, or all of them in processes of their own; the last lines are JSON objects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", choices=BASES, help="only this one")
    base = parser.parse_args().base
    if not torch.cuda.is_available():
        sys.exit("error: PyTorch sees no GPU here; without one, `make check-full-size` checks the same code")
    if base:
        print(json.dumps(measure(base)))
        return
    sys.exit(max(subprocess.run([sys.executable, "-m", "bench.gpu", "--base", name]).returncode for name in BASES))


if __name__ == "__main__":
    main()
