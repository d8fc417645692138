"""Properties of a merge of any two files: each layer is the formula on dense matrices, and no key vanishes."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorarar.api import merge_files
from lorarar.lora.adapter import Adapter
from lorarar.lora.factors import Factors
from lorarar.lora.formats import WRITERS

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
SHAPES = {
    f"unet.{BLOCK}.attn1.to_q": (640, 640),
    f"unet.{BLOCK}.attn2.to_k": (640, 2048),
    f"unet.{BLOCK}.ff.net.2": (640, 2560),
    "unet.down_blocks.1.resnets.0.conv1": (640, 320, 3, 3),
    "unet.down_blocks.1.attentions.0.proj_in": (640, 640),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (768, 768),
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc1": (5120, 1280),
}
"""Layers of SDXL -> (m_out, n_in), of a convolution with its kernel."""


@st.composite
def files(draw: st.DrawFn) -> dict[str, tuple[Tensor, Tensor]]:
    """Some of the layers with random factors of any rank; `proj_in` is a matrix or a convolution of 1 x 1."""
    random = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    found = {}
    for layer in draw(st.sets(st.sampled_from(sorted(SHAPES)), min_size=1)):
        rows, columns, *kernel = SHAPES[layer]
        rank = draw(st.integers(1, 5))
        if layer.endswith("proj_in") and draw(st.booleans()):
            kernel = [1, 1]
        down = torch.randn(rank, columns, *kernel, generator=random) / columns**0.5
        up = torch.randn(rows, rank, *(1 for _ in kernel), generator=random)
        found[layer] = down, up
    return found


def put(path: Path, layers: dict[str, tuple[Tensor, Tensor]], format: str) -> Path:
    Adapter({}, others={name: Factors(*pair) for name, pair in layers.items()}).save(path, format)
    return path


def dense(layers: dict[str, tuple[Tensor, Tensor]], layer: str) -> Tensor:
    """dW as a matrix in float64; zero where a file has no such layer."""
    if layer not in layers:
        rows, columns, *kernel = SHAPES[layer]
        return torch.zeros(rows, columns * torch.Size(kernel).numel(), dtype=torch.float64)
    down, up = layers[layer]
    return up.double().flatten(1) @ down.double().flatten(1)


def nplora(c: Tensor, s: Tensor) -> Tensor:
    """dW_s + dW_c (I - mu / (1 + mu) V V^T), mu = 0.5."""
    _, sigma, vh = torch.linalg.svd(s, full_matrices=False)
    vh = vh[sigma > 1e-5 * sigma.max().clamp(min=1e-30)]
    return s + c - c @ vh.T @ vh / 3


FORMULAS = {
    "direct": (lambda c, s: c + s, {}),
    "average": (lambda c, s: (c + s) / 2, {}),
    "concat": (lambda c, s: 0.3 * c - 1.5 * s, {"weights": (0.3, -1.5)}),
    "svd": (lambda c, s: c + s, {"rank": 10}),  # the ranks of both together: nothing is cut
    "nplora": (nplora, {}),
}


@pytest.mark.parametrize("method", FORMULAS)
@settings(max_examples=5, deadline=None)
@given(content=files(), style=files(), formats=st.tuples(*[st.sampled_from(["diffusers", "kohya", "kohya-sgm"])] * 2))
def test_every_layer_of_a_merge_is_the_formula_on_dense_matrices(method, content, style, formats):
    formula, options = FORMULAS[method]
    with tempfile.TemporaryDirectory() as folder:
        one = put(Path(folder, "one.safetensors"), content, formats[0])
        other = put(Path(folder, "other.safetensors"), style, formats[1])
        out = Path(folder, "both.safetensors")
        merge_files(one, other, out, method=method, dtype="fp32", options=options)
        merged = Adapter.load(out)
    found = {**{f"unet.{path}": factors for path, factors in merged.layers.items()}, **merged.others}
    assert found.keys() == content.keys() | style.keys()
    for layer, factors in found.items():
        meant = formula(dense(content, layer), dense(style, layer))
        assert (factors.delta.double().flatten(1) - meant).norm() <= 2e-6 * max(meant.norm(), 1e-6), layer
        shape = (content if layer in content else style)[layer][0].shape[1:]
        assert factors.down.shape[1:] == shape


@settings(max_examples=15, deadline=None)
@given(layers=files(), format=st.sampled_from(sorted(set(WRITERS) - {"peft"})))
def test_reading_and_writing_again_is_the_identity(layers, format):
    with tempfile.TemporaryDirectory() as folder:
        first = put(Path(folder, "first.safetensors"), layers, format)
        again = Path(folder, "again.safetensors")
        adapter = Adapter.load(first)
        adapter.save(again, format)
        assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    "extra", ["bundle_emb.word.string_to_param.*", "lora_unet_mid_block_attentions_0_proj_in.alpha"]
)
def test_a_key_is_never_dropped_without_a_line_that_says_so(extra, tmp_path, caplog):
    layer = f"unet.{BLOCK}.attn1.to_q"
    put(tmp_path / "a.safetensors", {layer: (torch.ones(2, 640), torch.ones(640, 2))}, "kohya")
    tensors = load_file(tmp_path / "a.safetensors") | {extra: torch.ones(1)}
    save_file(tensors, tmp_path / "a.safetensors")
    with caplog.at_level(logging.WARNING):
        assert list(Adapter.load(tmp_path / "a.safetensors").layers) == [layer.removeprefix("unet.")]
    assert extra in caplog.text and "left out" in caplog.text and "a.safetensors" in caplog.text
