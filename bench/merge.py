"""Measures how fast merging is: the released algorithm, ours and peft's, side by side at the full size of SDXL.

560 attention projections, rank 64, random factors. Each contestant runs in turn, several rounds, and medians are
compared. The last line of the output is one JSON object with the figures.

    python -m bench.merge            # needs some 16 GB
    python -m bench.merge --small    # a fourteenth of the layers, to try it out
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorarar.api import merge_files
from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging import columns, klora
from lorarar.merging.hypernet import HyperNetwork, ends_with
from lorarar.merging.registry import METHODS

RANK = 64
ROUNDS = 5
# Merges two files and says how many kB it needed at most. (A child's ru_maxrss begins with what its parent had.)
PEAK = """
import sys
from pathlib import Path
from lorarar.api import merge_files
content, style, hypernet, out = map(Path, sys.argv[1:])
merge_files(content, style, out, options={"hypernet": hypernet}, force=True)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def sdxl(small: bool) -> Iterator[tuple[str, int, int]]:
    """Path, output and input width of SDXL's attention projections."""
    places = [("down_blocks.1", 2, 640, 2), ("down_blocks.2", 2, 1280, 10), ("mid_block", 1, 1280, 10)]
    places += [("up_blocks.0", 3, 1280, 10), ("up_blocks.1", 3, 640, 2)]
    for block, attentions, width, depth in places:
        for i in range(1 if small else attentions):
            for j in range(1 if small else depth):
                for attention in ("attn1", "attn2"):
                    for name in ("to_q", "to_k", "to_v", "to_out.0"):
                        text = attention == "attn2" and name in ("to_k", "to_v")
                        path = f"{block}.attentions.{i}.transformer_blocks.{j}.{attention}.{name}"
                        yield path, width, 2048 if text else width


def random_adapter(seed: int, small: bool) -> Adapter:
    random = torch.Generator().manual_seed(seed)
    return Adapter(
        {
            path: Factors(
                torch.randn(RANK, n, generator=random) / n**0.5,
                torch.randn(m, RANK, generator=random) / RANK**0.5,
            )
            for path, m, n in sdxl(small)
        }
    )


# --- the released algorithm: form both updates, show every column to the network ------------------------------------


def released_columns(network: HyperNetwork, of_content: Tensor, of_style: Tensor) -> tuple[Tensor, Tensor]:
    """m_c and m_s of one layer, from both updates as wholes."""
    layer = network.get_submodule(f"input_{1 + network.widths.index(of_content.shape[0])}")
    m = network.output(layer(torch.cat([of_content, of_style]).T))
    return m[:, 0], m[:, 1]


def released_updates(content: Adapter, style: Adapter) -> dict[str, tuple[Tensor, Tensor]]:
    """Both dW of every layer, which its modules are made of before any coefficient is asked for."""
    both = ((path, c, style.layers[path]) for path, c in content.layers.items())
    return {path: (c.up @ c.down, s.up @ s.down) for path, c, s in both}


def released_coefficients(network: HyperNetwork, updates: dict[str, tuple[Tensor, Tensor]]) -> columns.Coefficients:
    return {path: released_columns(network, *both) for path, both in updates.items() if ends_with(path, network.guided)}


def released_merge(network: HyperNetwork, content: Adapter, style: Adapter) -> dict[str, Tensor]:
    """Merged dW of every layer; those of key and value are averaged."""
    updates = released_updates(content, style)
    coefficients = released_coefficients(network, updates)
    merged = {}
    for path, (of_content, of_style) in updates.items():
        m_c, m_s = coefficients.get(path, (0.5, 0.5))
        merged[path] = m_c * of_content + m_s * of_style
    return merged


def guided_alone(network: HyperNetwork, content: Adapter, style: Adapter) -> columns.Coefficients:
    """The same coefficients from as little as dense updates allow: one guided layer after another, none kept."""
    return {
        path: released_columns(network, c.up @ c.down, style.layers[path].up @ style.layers[path].down)
        for path, c in content.layers.items()
        if ends_with(path, network.guided)
    }


# --- ours and the others -------------------------------------------------------------------------------------------


def ours(method: str, content: Adapter, style: Adapter, **options: Any) -> Adapter:
    """A merge with all its layers in memory."""
    return METHODS[method].merge(content, style, **options).computed()


def peft_model(content: Adapter, style: Adapter) -> Any:
    """A model of bare linear layers with both adapters in it, as peft has them."""
    from peft import LoraConfig, get_peft_model

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for index, factors in enumerate(content.layers.values()):
                with torch.device("meta"):
                    linear = nn.Linear(factors.down.shape[1], factors.up.shape[0], bias=False)
                self.add_module(f"layer{index}", linear.to_empty(device="cpu"))

    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=r"layer\d+", init_lora_weights=False)
    model = get_peft_model(Layers(), config, adapter_name="content")
    model.add_adapter("style", config)
    with torch.no_grad():
        for name, adapter in (("content", content), ("style", style)):
            for index, factors in enumerate(adapter.layers.values()):
                layer = model.base_model.model.get_submodule(f"layer{index}")
                layer.lora_A[name].weight.data = factors.down.clone()
                layer.lora_B[name].weight.data = factors.up.clone()
    return model


def peft_merge(model: Any, kind: str) -> None:
    options = {} if kind == "cat" else {"density": 0.5}
    model.add_weighted_adapter(["content", "style"], [1.0, 1.0], "merged", combination_type=kind, **options)
    model.delete_adapter("merged")


def klora_each_step(content: Adapter, style: Adapter) -> None:
    """What K-LoRA's release does in every forward pass: all sums again."""
    for path, c in content.layers.items():
        for factors in (c, style.layers[path]):
            magnitudes = factors.delta.abs().flatten()
            magnitudes.topk(RANK * RANK, sorted=False).values.sum()


# --- measuring -----------------------------------------------------------------------------------------------------


def rounds(contestants: dict[str, Callable[[], Any]], count: int) -> dict[str, float]:
    """Median seconds of each, taken in turn so that a busy moment hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant()
    for _ in range(count):
        for name, contestant in contestants.items():
            begun = time.perf_counter()
            contestant()
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


def coefficient_operations(network: HyperNetwork, adapter: Adapter) -> int:
    """Of the factored form: W_c up_c, times down_c, and the same for style; the output layer is next to nothing."""
    hidden = network.output[1].in_features
    guided = [f for path, f in adapter.layers.items() if ends_with(path, network.guided)]
    return sum(2 * 2 * hidden * RANK * (f.up.shape[0] + f.down.shape[1]) + 4 * hidden * f.down.shape[1] for f in guided)


def file_to_file(folder: Path, content: Adapter, style: Adapter, network: HyperNetwork) -> dict[str, float]:
    """Two fp16 files into one, against copying as many bytes; the peak memory is of a process that only merges."""
    sources = folder / "content.safetensors", folder / "style.safetensors"
    for path, adapter in zip(sources, (content, style), strict=True):
        adapter.save(path, dtype=torch.float16)
    hypernet, out = folder / "hypernet.safetensors", folder / "merged.safetensors"
    network.save(hypernet)

    def duplicate() -> None:
        for path in sources:  # together as many bytes as are read, and as many as are written
            target = path.with_suffix(".copy")
            shutil.copyfile(path, target)
            with open(target, "rb") as file:
                os.fsync(file.fileno())

    contestants = {
        "merge": lambda: merge_files(*sources, out, options={"hypernet": hypernet}, force=True),
        "copy": duplicate,
    }
    seconds = rounds(contestants, ROUNDS)
    command = [sys.executable, "-c", PEAK, *map(str, (*sources, hypernet, out))]
    peak = int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) / 1024
    return {
        "file_to_file_seconds": seconds["merge"],
        "copy_seconds": seconds["copy"],
        "output_mb": out.stat().st_size / 1e6,
        "peak_rss_mb": peak,
    }


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one block of each kind only")
    small = parser.parse_args().small
    begun = time.monotonic()
    content, style = random_adapter(1, small), random_adapter(2, small)
    network = HyperNetwork([640, 1280])
    half, half_content, half_style = (
        copy.deepcopy(network).bfloat16(),
        *(a.to(torch.bfloat16) for a in (content, style)),
    )
    print(f"{len(content.layers)} layers, rank {RANK}, {torch.get_num_threads()} threads", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        figures = file_to_file(Path(folder), content, style, network)
    dense, factored = guided_alone(network, content, style), network.coefficients(content, style)
    figures["max_abs_diff"] = max(
        float((a - b).abs().max()) for path in dense for a, b in zip(dense[path], factored[path], strict=True)
    )
    square = torch.randn(2, 1280, 1280)
    half_square = square.bfloat16()
    seconds = rounds(
        {
            "ten products of 1280 x 1280": lambda: [square[0] @ square[1] for _ in range(10)],
            "ten products of 1280 x 1280, bf16": lambda: [half_square[0] @ half_square[1] for _ in range(10)],
            "released: coefficients": lambda: released_coefficients(network, released_updates(content, style)),
            "dense, only guided layers": lambda: guided_alone(network, content, style),
            "ours: coefficients": lambda: network.coefficients(content, style),
            "ours: coefficients, bf16": lambda: half.coefficients(half_content, half_style),
            "released: merge": lambda: released_merge(network, content, style),
            "ours: merge": lambda: ours("lorarar", content, style, hypernet=network),
        },
        ROUNDS,
    )
    model = peft_model(content, style)
    seconds |= rounds(
        {
            "peft: cat": lambda: peft_merge(model, "cat"),
            "ours: concat": lambda: ours("concat", content, style),
            "peft: ties": lambda: peft_merge(model, "ties"),
            "ours: ties": lambda: ours("ties", content, style),
            "peft: dare_ties": lambda: peft_merge(model, "dare_ties"),
            "ours: dare_ties": lambda: ours("dare_ties", content, style),
        },
        ROUNDS,
    )
    schedule = klora.merge(content, style)
    seconds |= rounds(
        {
            "K-LoRA: sums of one forward pass": lambda: klora_each_step(content, style),
            "ours: one step of the schedule": lambda: schedule.at(0.5),
        },
        1,
    )
    for name, value in seconds.items():
        print(f"{name:36} {value:9.4f} s", flush=True)

    # The rate of large products is measured next to its user: clocks fall under load.
    rate = 10 * 2 * 1280**3 / seconds["ten products of 1280 x 1280"]
    limit = coefficient_operations(network, content) / rate
    figures |= {
        "coefficient_speedup": seconds["released: coefficients"] / seconds["ours: coefficients"],
        "coefficient_speedup_bf16": seconds["released: coefficients"] / seconds["ours: coefficients, bf16"],
        "coefficient_speedup_guided_alone": seconds["dense, only guided layers"] / seconds["ours: coefficients"],
        "merge_speedup": seconds["released: merge"] / seconds["ours: merge"],
        "coefficient_limit": seconds["released: coefficients"] / limit,  # the speedup that a limit_ratio of 1 would be
        "gflops": rate / 1e9,
        "gflops_bf16": 10 * 2 * 1280**3 / seconds["ten products of 1280 x 1280, bf16"] / 1e9,
        "limit_ratio": seconds["ours: coefficients"] / limit,
        "peft_cat_ratio": seconds["peft: cat"] / seconds["ours: concat"],
        "peft_ties_ratio": seconds["peft: ties"] / seconds["ours: ties"],
        "peft_dare_ties_ratio": seconds["peft: dare_ties"] / seconds["ours: dare_ties"],
        "klora_step_ratio": seconds["K-LoRA: sums of one forward pass"] / seconds["ours: one step of the schedule"],
        "layers": len(content.layers),
        "seconds": time.monotonic() - begun,
    }
    print(json.dumps({name: float(f"{value:.4g}") for name, value in figures.items()}))


if __name__ == "__main__":
    main()
