"""Updates of other kinds than LoRA become plain factors: each formula on dense matrices, written here naively."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from lorarar.api import merge_files
from lorarar.cli import app
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from lorarar.lora.checkpoint_file import Checkpoint
from lorarar.lora.factors import Factors
from lorarar.lora.lycoris import KINDS, Reading
from lorarar.lora.products import Product, cut, dense

LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.1.resnets.0.conv1"
SHAPES = {LINEAR: (24, 16), CONV: (24, 16, 3, 3)}
Parts = dict[str, Tensor]


def stem(path: str) -> str:
    return f"lora_unet_{path.replace('.', '_')}"


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(dtype)


def tucker(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Sum over i and j of core[i, j, h, w] up[i, p] down[j, q]."""
    m, n, *kernel = up.shape[1], down.shape[1], *core.shape[2:]
    whole = torch.zeros(m, n, *kernel, dtype=torch.float64)
    for i in range(len(up)):
        for j in range(len(down)):
            whole += up[i].double()[:, None, None, None] * down[j].double()[:, None, None] * core[i, j].double()
    return whole


def loha(shape: tuple[int, ...], rank: int, form: str, dtype: torch.dtype) -> tuple[Parts, Tensor]:
    m, n, *kernel = shape
    places = torch.Size(kernel).numel()
    alpha = 3.0
    if form == "tucker" and kernel:
        parts = {f"hada_t{side}": random(rank, rank, *kernel, dtype=dtype) for side in "12"}
        parts |= {f"hada_w{side}_a": random(rank, m, dtype=dtype) for side in "12"}
        parts |= {f"hada_w{side}_b": random(rank, n, dtype=dtype) for side in "12"}
        sides = [tucker(parts[f"hada_t{side}"], parts[f"hada_w{side}_a"], parts[f"hada_w{side}_b"]) for side in "12"]
    else:
        parts = {f"hada_w{side}_a": random(m, rank, dtype=dtype) for side in "12"}
        parts |= {f"hada_w{side}_b": random(rank, n * places, dtype=dtype) for side in "12"}
        sides = [parts[f"hada_w{side}_a"].double() @ parts[f"hada_w{side}_b"].double() for side in "12"]
    parts["alpha"] = torch.tensor(alpha)
    return parts, (alpha / rank * sides[0] * sides[1]).reshape(shape)


def lokr(shape: tuple[int, ...], rank: int, form: str, dtype: torch.dtype) -> tuple[Parts, Tensor]:
    m, n, *kernel = shape
    places = torch.Size(kernel).numel()
    alpha, parts, scale = 3.0, {}, 1.0
    if "w1" in form:
        parts |= {"lokr_w1_a": random(4, rank, dtype=dtype), "lokr_w1_b": random(rank, 2, dtype=dtype)}
        first, scale = parts["lokr_w1_a"].double() @ parts["lokr_w1_b"].double(), alpha / rank
    else:
        parts["lokr_w1"] = random(4, 2, dtype=dtype)
        first = parts["lokr_w1"].double()
    b, d = m // 4, n // 2
    if form == "tucker" and kernel:
        parts |= {"lokr_w2_a": random(rank, b, dtype=dtype), "lokr_w2_b": random(rank, d, dtype=dtype)}
        parts["lokr_t2"] = random(rank, rank, *kernel, dtype=dtype)
        second, scale = tucker(parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"]), alpha / rank
    elif form == "whole" or form == "w1":
        parts["lokr_w2"] = random(b, d, *kernel, dtype=dtype)
        second = parts["lokr_w2"].double()
    else:
        parts |= {"lokr_w2_a": random(b, rank, dtype=dtype), "lokr_w2_b": random(rank, d * places, dtype=dtype)}
        second, scale = parts["lokr_w2_a"].double() @ parts["lokr_w2_b"].double(), alpha / rank
    second = second.reshape(b, d, *kernel)
    whole = torch.zeros(shape, dtype=torch.float64)
    for i in range(4):
        for j in range(2):
            whole[i * b : (i + 1) * b, j * d : (j + 1) * d] = scale * first[i, j] * second
    parts["alpha"] = torch.tensor(alpha)
    return parts, whole


def difference(shape: tuple[int, ...], rank: int, form: str, dtype: torch.dtype) -> tuple[Parts, Tensor]:
    diff = random(*shape, dtype=dtype)
    return {"diff": diff, "diff_b": torch.zeros(shape[0])}, diff.double()


MAKERS: Mapping[str, Callable[..., tuple[Parts, Tensor]]] = {
    "LoHa": loha,
    "LoKr": lokr,
    "a full difference": difference,
}
CASES = [
    ("LoHa", "plain"),
    ("LoHa", "tucker"),
    ("LoKr", "whole"),
    ("LoKr", "w1"),
    ("LoKr", "w2"),
    ("LoKr", "w1 w2"),
    ("LoKr", "tucker"),
    ("a full difference", ""),
]


def put(file: Path, layers: Mapping[str, Parts], metadata: dict[str, str] | None = None) -> Path:
    tensors = {f"{stem(path)}.{part}": tensor for path, parts in layers.items() for part, tensor in parts.items()}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata)
    return file


def delta(adapter: Adapter, path: str) -> Tensor:
    factors = adapter.layers[path] if path in adapter.layers else adapter.others[f"unet.{path}"]
    return (factors.up.double().flatten(1) @ factors.down.double().flatten(1)).reshape(
        len(factors.up), *factors.down.shape[1:]
    )


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind, form", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_factors_are_exact(tmp_path, kind, form, dtype):
    made = {path: MAKERS[kind](shape, 2, form, dtype) for path, shape in SHAPES.items()}
    adapter = Adapter.load(put(tmp_path / "a.safetensors", {path: parts for path, (parts, _) in made.items()}))
    for path, (_, expected) in made.items():
        assert error(delta(adapter, path), expected) < 1e-6
    assert adapter.format == "kohya"
    assert adapter.note.startswith(f"{kind}: 2 layers of exact rank ") and adapter.note.endswith(", kept whole")
    assert adapter.metadata == {"lorarar.kind": kind, "lorarar.kind_error": "0"}


@settings(max_examples=40, deadline=None)
@given(
    case=st.sampled_from(CASES),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 9)),
    rank=st.integers(1, 4),
    kernel=st.booleans(),
    cut_to=st.none() | st.integers(1, 6),
    energy=st.none() | st.floats(0.3, 1),
    seed=st.integers(0, 1000),
)
def test_the_error_told_is_the_error_measured(case, sizes, rank, kernel, cut_to, energy, seed):
    torch.manual_seed(seed)
    kind, form = case
    path = CONV if kernel else LINEAR
    shape = (4 * sizes[0], 2 * sizes[1], *((3, 3) if kernel else ()))
    parts, expected = MAKERS[kind](shape, rank, form, torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = put(Path(folder, "a.safetensors"), {path: parts})
        adapter = Adapter.load(file, Reading(cut_to, energy))
    told, measured = float(adapter.metadata["lorarar.kind_error"]), error(delta(adapter, path), expected)
    assert told == pytest.approx(measured, rel=1e-3, abs=2e-6)
    (kept,) = adapter.all_ranks
    assert kept <= (cut_to or kept)
    singular = torch.linalg.svdvals(expected.flatten(1))
    # No matrix of this rank is closer, and no smaller rank would keep as much.
    best = float((singular[kept:].square().sum() / singular.square().sum()) ** 0.5)
    assert measured == pytest.approx(best, rel=1e-3, abs=2e-6)
    if energy and not cut_to:
        assert measured**2 <= 1 - energy + 1e-5
        fewer = float(singular[: kept - 1].square().sum() / singular.square().sum())
        assert energy == 1 or fewer < energy + 1e-5
