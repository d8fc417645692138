"""Costs of merging, the paper's Table 2: time to coefficients, parameters, attempts, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lorarar.lora.adapter import Adapter
from lorarar.merging.columns import Coefficients
from lorarar.merging.hypernet import HyperNetwork
from lorarar.report.tables import Figures, Table
from lorarar.tables import interval, title

ROUNDS = 3
"""Number of times that a forward pass is timed."""
ROWS = ("ziplora", "lorarar")


def predicted(
    hypernet: HyperNetwork, pairs: Mapping[str, tuple[Adapter, Adapter]]
) -> tuple[dict[str, Coefficients], list[float]]:
    """Coefficients of each pair by one forward pass, and its seconds on one thread, median of `ROUNDS`."""
    found, seconds = {}, []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        hypernet.coefficients(*next(iter(pairs.values())))  # the first call does more than later ones
        for name, (content, style) in pairs.items():
            taken = []
            for _ in range(ROUNDS):
                begun = time.perf_counter()
                found[name] = hypernet.coefficients(content, style)
                taken.append(time.perf_counter() - begun)
            seconds.append(statistics.median(taken))
    torch.set_num_threads(threads)
    return found, seconds


def extra(hypernet: HyperNetwork, content: Adapter, style: Adapter) -> float | None:
    """Largest number of megabytes that a forward pass adds to this process; None if the system is not Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before = _status("VmRSS")
        with torch.inference_mode():
            hypernet.coefficients(content, style)
        return max(_status("VmHWM") - before, 0.0)
    except OSError:
        return None


def _status(name: str) -> float:
    """Megabytes of this process that Linux reports under a name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and number of measurements; empty if there are none."""
    if not values:
        return {}
    if len(values) == 1:
        return {"median": values[0], "low": values[0], "high": values[0], "n": 1}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high, "n": len(values)}


def table(measured: Mapping[str, Any], metrics: Mapping[str, Figures], paper: Mapping[str, Any], split: str) -> Table:
    """Costs of ZipLoRA and LoRA.rar, if they were evaluated, next to the paper's figures.

    Parameters
    ----------
    measured : method -> seconds (from `quartiles`), parameters and extra_mb, as far as they are known.
    metrics : method -> result of `score_table.summarise`.
    """
    rows = []
    for method in (name for name in ROWS if name in metrics):
        found, published = measured.get(method, {}), paper.get(method, {})
        seconds = found.get("seconds")
        row = [
            title(method),
            f"{_seconds(seconds)} (n = {seconds['n']})" if seconds else "not measured",
            f"{found['parameters']:,}" if "parameters" in found else "not measured",
            interval(metrics[method], "attempts"),
            f"{found['extra_mb']:+,.1f} MB" if "extra_mb" in found else "not measured",
        ]
        if published:
            row += [
                f"{published['seconds_to_predict_coefficients']:g} s",
                f"{float(published['parameters']) / 1e6:.2f} M",
                f"{published['attempts_to_good_image']:.2f}",
                f"{published['extra_memory_gb']:g} GB",
            ]
        rows.append(row)
    notes = [
        "Seconds: median and quartiles over pairs, on one thread. LoRA.rar's are of the forward pass on adapters in "
        f"memory (median of {ROUNDS} each), ZipLoRA's of its whole task for a pair: loading, encoding, optimising; "
        "where a task is one thread of a CPU, its processor time, which other load does not change. "
        "Times are of the machine that made this report or ran the tasks, and differ from run to run.",
        "Parameters: of the hypernetwork, trained once for all pairs; of ZipLoRA, the coefficients that each pair has "
        "of its own. Attempts: images drawn until the first right one, one more than there are where none is.",
        "Extra memory: of LoRA.rar, what one pair's forward pass adds to the process at most; of ZipLoRA, by how much "
        "its tasks' processes exceed those that sample, as medians of what each held at most. On a base as small as "
        "pocket's the libraries are nearly all of it; docs/full-scale.md has full-size bases.",
        "The paper's figures are of SDXL on an NVIDIA 4090.",
    ]
    header = [
        "", "seconds to coefficients", "parameters", "attempts [95%]", "extra memory", "paper: seconds",
        "paper: parameters", "paper: attempts", "paper: extra memory",
    ]  # fmt: skip
    return Table(f"What merging costs, split {split}", header, rows, notes)


def _seconds(found: Mapping[str, float]) -> str:
    scale, unit = (1e3, "ms") if found["median"] < 1 else (1, "s")
    low, middle, high = (f"{found[name] * scale:.3g}" for name in ("low", "median", "high"))
    return f"{middle} [{low}, {high}] {unit}"
