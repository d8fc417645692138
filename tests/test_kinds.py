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


def test_large_ranks_are_cut_and_the_bounds_are_those_told():
    torch.manual_seed(0)
    whole = dense(random(200, 150))
    product = Product(dense(torch.ones(1, 1)), whole)
    found = cut(product)  # of rank 150, above 128
    assert found.exact == 150 and found.factors.rank < 150 and 0.02 < found.error <= 0.001**0.5
    assert error(found.factors.delta.double(), whole.delta.double()) == pytest.approx(found.error, rel=1e-4)
    small = Product(dense(torch.ones(1, 1)), dense(random(200, 128)))
    assert cut(small).error == 0 and cut(small).factors.rank == 128
    assert cut(product, energy=1).error == 0 and cut(product, energy=1).factors.rank == 150


def test_lokr_ignores_alpha_only_where_both_sides_are_matrices(tmp_path):
    parts, expected = lokr(SHAPES[LINEAR], 2, "whole", torch.float32)
    del parts["alpha"]
    for alpha in (None, 1.0, 1e10):  # LyCORIS writes any number here
        given = parts | ({} if alpha is None else {"alpha": torch.tensor(alpha)})
        adapter = Adapter.load(put(tmp_path / "a.safetensors", {LINEAR: given}))
        assert error(delta(adapter, LINEAR), expected) < 1e-6


def test_without_alpha_nothing_is_scaled(tmp_path):
    for make in (loha, lokr):
        parts, expected = make(SHAPES[LINEAR], 2, "w2", torch.float32)
        del parts["alpha"]
        adapter = Adapter.load(put(tmp_path / "a.safetensors", {LINEAR: parts}))
        assert error(delta(adapter, LINEAR) * (3 / 2), expected) < 1e-6


def test_a_file_of_an_update_of_zero_reads_as_zero(tmp_path):
    parts, _ = loha(SHAPES[LINEAR], 2, "", torch.float32)
    parts["hada_w2_a"].zero_()
    for reading in (None, Reading(rank=2), Reading(energy=0.5)):
        adapter = Adapter.load(put(tmp_path / "a.safetensors", {LINEAR: parts}), reading)
        assert delta(adapter, LINEAR).count_nonzero() == 0 and adapter.metadata["lorarar.kind_error"] == "0"


@pytest.mark.parametrize("text", [768, 2048])
def test_the_old_bases_projections_are_convolutions(tmp_path, text):
    """LoHa of 1 x 1 does not tell a convolution from a linear layer: the base that the other layers have does."""
    block = "down_blocks.1.attentions.0"
    shapes = {f"{block}.proj_in": (640, 640), f"{block}.transformer_blocks.0.attn2.to_k": (640, text)}
    made = {path: loha(shape, 1, "", torch.float32) for path, shape in shapes.items()}
    adapter = Adapter.load(put(tmp_path / "a.safetensors", {path: parts for path, (parts, _) in made.items()}))
    down = {**adapter.layers, **{name[5:]: each for name, each in adapter.others.items()}}[f"{block}.proj_in"].down
    assert down.shape == ((1, 640, 1, 1) if text == 768 else (1, 640))


@pytest.mark.parametrize(
    "stem, path",
    [
        ("lora_unet_input_blocks_4_0_in_layers_2", CONV),
        ("lycoris_down_blocks_1_resnets_0_conv1", CONV),
        ("diffusion_model.input_blocks.4.0.in_layers.2", CONV),
        ("unet.down_blocks.1.resnets.0.conv1", CONV),
        ("base_model.model.down_blocks.1.resnets.0.conv1", CONV),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "text_encoder.text_model.encoder.layers.0.mlp.fc1"),
    ],
)
def test_every_spelling_of_a_layer_is_read(tmp_path, stem, path):
    shape = SHAPES[CONV] if path == CONV else SHAPES[LINEAR]
    parts, expected = lokr(shape, 2, "w2", torch.float32)
    save_file({f"{stem}.{part}": tensor for part, tensor in parts.items()}, tmp_path / "a.safetensors")
    adapter = Adapter.load(tmp_path / "a.safetensors")
    (factors,) = adapter.others.values()
    assert list(adapter.others) == [path if path.startswith("text") else f"unet.{path}"]
    assert error(factors.delta.double().reshape(shape), expected) < 1e-6


# Kinds whose update depends on the base.


@pytest.fixture
def base(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A UNet's file in diffusers' names, and its weights."""
    weights = {path: torch.randn(shape) for path, shape in SHAPES.items()}
    file = tmp_path / "base" / "diffusion_pytorch_model.safetensors"
    file.parent.mkdir()
    save_file({f"{path}.weight": weight for path, weight in weights.items()}, file)
    return file, weights


def read(file: Path, base: Path, **options: object) -> Adapter:
    return Adapter.load(file, Reading(base=Checkpoint.open(base), **options))


@pytest.mark.parametrize("path", [LINEAR, CONV])
@pytest.mark.parametrize("order", ["now", "once"])
def test_glora_is_exact_with_the_base(tmp_path, base, path, order):
    file, weights = base
    weight, (m, n, *kernel), r = weights[path].double(), SHAPES[path], 2
    ones = [1 for _ in kernel]
    a1, a2 = random(n, r, *ones), random(r, n, *ones)
    b1, b2 = random(m, r, *ones), random(r, n, *(kernel if order == "now" else ones))
    parts = {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}
    mixed = a1.double().flatten(1) @ a2.double().flatten(1)
    added = b1.double().flatten(1) @ b2.double().flatten(1)
    if order == "once":
        if kernel:
            pytest.skip("the first version of GLoRA had no convolutions")
        parts = {"a1.weight": a2, "a2.weight": a1, "b1.weight": b2, "b2.weight": b1}
    whole = torch.zeros_like(weight)
    for i in range(n):
        for j in range(n):
            whole[:, j] += weight[:, i] * mixed[i, j]
    expected = 1.5 * (whole + added.reshape(weight.shape))
    given = put(tmp_path / "a.safetensors", {path: parts | {"alpha": torch.tensor(3.0)}})
    adapter = read(given, file)
    assert error(delta(adapter, path), expected) < 1e-6
    assert adapter.note.startswith("GLoRA: 1 layers of exact rank") and adapter.note.endswith("kept whole")


def test_glora_with_tucker_factors(tmp_path, base):
    file, _ = base
    m, n, *kernel = SHAPES[CONV]
    parts = {"a1.weight": torch.zeros(n, 2, 1, 1), "a2.weight": random(2, n, 1, 1), "b1.weight": random(m, 2, 1, 1)}
    parts |= {"bm.weight": random(2, 2, *kernel), "b2.weight": random(2, n, 1, 1)}
    adapter = read(put(tmp_path / "a.safetensors", {CONV: parts}), file)
    expected = tucker(parts["bm.weight"], parts["b1.weight"].flatten(1).T, parts["b2.weight"].flatten(1))
    assert error(delta(adapter, CONV), expected) < 1e-6


@pytest.mark.parametrize("path", [LINEAR, CONV])
@pytest.mark.parametrize("on_input", [0, 1])
def test_ia3_scales_inputs_or_outputs_of_the_base(tmp_path, base, path, on_input):
    file, weights = base
    shape = SHAPES[path]
    scale = random(shape[on_input])
    stored = scale.reshape(1, -1, 1, 1) if len(shape) == 4 else scale
    parts = {"weight": stored, "on_input": torch.tensor(on_input)}
    adapter = read(put(tmp_path / "a.safetensors", {path: parts}), file)
    expected = weights[path].double().clone()
    for i in range(shape[on_input]):
        expected.select(on_input, i).mul_(scale[i].double())
    assert error(delta(adapter, path), expected) < 1e-6


@pytest.mark.parametrize("path", [LINEAR, CONV])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("inner", ["plain", "LoHa", "LoKr"])
def test_dora_is_the_difference_of_the_decomposed_weight(tmp_path, base, path, axis, inner):
    file, weights = base
    (m, n, *kernel), weight = SHAPES[path], weights[path].double()
    if inner == "plain":
        ones = [1 for _ in kernel]
        parts = {"lora_down.weight": random(2, n, *kernel), "lora_up.weight": random(m, 2, *ones)}
        inside = 0.5 * (parts["lora_up.weight"].double().flatten(1) @ parts["lora_down.weight"].double().flatten(1))
        parts["alpha"] = torch.tensor(1.0)
    else:
        parts, inside = MAKERS[inner](SHAPES[path], 2, "w2", torch.float32)
    magnitude = torch.rand(m if axis == 0 else n) + 0.5
    shape = [1 for _ in SHAPES[path]]
    shape[axis] = -1
    parts["dora_scale"] = magnitude.reshape(shape)
    whole = weight + inside.reshape(weight.shape)
    for i in range(len(magnitude)):
        row = whole.select(axis, i)
        row *= magnitude[i].double() / row.norm()
    expected = whole - weight
    given = put(tmp_path / "a.safetensors", {path: parts})
    adapter = read(given, file)
    assert error(delta(adapter, path), expected) < 2e-6
    assert adapter.metadata["lorarar.kind"] == ("DoRA" if inner == "plain" else f"{inner} with DoRA")
    cut_to = read(given, file, rank=3)
    assert cut_to.all_ranks == {3}
    measured = error(delta(cut_to, path), expected)
    assert float(cut_to.metadata["lorarar.kind_error"]) == pytest.approx(measured, rel=1e-4) and measured > 0.1


@pytest.mark.parametrize("end", ["lora_magnitude_vector", "lora_magnitude_vector.weight"])
def test_pefts_dora_has_the_alpha_of_its_configuration(tmp_path, base, end):
    file, weights = base
    down, up, magnitude = random(2, 16), random(24, 2), torch.rand(24) + 0.5
    stem = f"base_model.model.{LINEAR}"
    tensors = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up, f"{stem}.{end}": magnitude}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 6, "use_dora": true}')
    whole = weights[LINEAR].double() + 3 * up.double() @ down.double()
    expected = magnitude.double()[:, None] * whole / whole.norm(dim=1, keepdim=True) - weights[LINEAR].double()
    adapter = read(tmp_path / "adapter_model.safetensors", file)
    assert error(delta(adapter, LINEAR), expected) < 2e-6


# What is refused, in one line.


def spoil(parts: Parts, **changes: Tensor | None) -> Parts:
    return {part: tensor for part, tensor in (parts | changes).items() if tensor is not None}


LOHA = loha(SHAPES[LINEAR], 2, "", torch.float32)[0]
LOKR = lokr(SHAPES[LINEAR], 2, "w2", torch.float32)[0]
PLAIN = {"lora_down.weight": torch.ones(2, 16), "lora_up.weight": torch.ones(24, 2)}
GLORA = {f"{name}.weight": torch.ones(*shape) for name, shape in (("a1", (16, 2)), ("a2", (2, 16)), ("b1", (24, 2)))}


@pytest.mark.parametrize(
    "parts, message",
    [
        (spoil(LOHA, hada_w2_b=None), "is LoHa without hada_w2_b; the file is incomplete"),
        (spoil(LOHA, hada_w1_b=torch.ones(3, 16)), "is LoHa whose shapes do not fit"),
        (spoil(LOHA, hada_w2_a=torch.ones(1, 2)), "is LoHa whose shapes do not fit"),
        (spoil(LOHA, hada_w1_a=torch.full((24, 2), torch.nan)), "hada_w1_a holds NaN or infinity"),
        (spoil(LOHA, hada_w1_a=torch.ones(24, 2, dtype=torch.int32)), "hada_w1_a is of int32, not real numbers"),
        (spoil(LOHA, alpha=torch.ones(2)), "alpha is no number"),
        (spoil(LOKR, lokr_w2_b=None), "is LoKr without lokr_w2_b"),
        (spoil(LOKR, lokr_w1=None), "is LoKr without lokr_w1_b"),
        (spoil(LOKR, lokr_w2_a=torch.ones(6, 3)), "is LoKr whose shapes do not fit"),
        (spoil(LOKR, lokr_t2=torch.ones(2, 2, 3, 3, 3)), "is LoKr whose shapes do not fit"),
        (LOHA | LOKR, "is LoHa and LoKr at once"),
        (LOHA | PLAIN, "has two updates"),
        (PLAIN | {"diff_b": torch.ones(24)}, "diff_b changes a bias or a norm, for which a LoRA has no place"),
        (PLAIN | {"w_norm": torch.ones(24)}, "w_norm changes a bias or a norm"),
        ({"diff": torch.ones(24)}, "diff changes a bias or a norm"),
        (
            PLAIN | {"dora_scale": torch.ones(24, 1)},
            "is DoRA, which depends on the base's weights; give them with --base",
        ),
        (GLORA, "is GLoRA, which depends on the base's weights"),
        ({"weight": torch.ones(24), "on_input": torch.tensor(0)}, r"is \(IA\)\^3, which depends on the base's weights"),
        ({"oft_blocks": torch.ones(4, 6, 6)}, "oft_blocks is OFT"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, parts, message):
    with pytest.raises(UserError, match=message) as caught:
        Adapter.load(put(tmp_path / "a.safetensors", {LINEAR: parts}))
    assert "a.safetensors" in str(caught.value) and stem(LINEAR) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "parts, message",
    [
        (GLORA, "is GLoRA without b2.weight"),
        (GLORA | {"b2.weight": torch.ones(2, 15)}, "is GLoRA whose shapes do not fit"),
        ({"weight": torch.ones(25), "on_input": torch.tensor(0)}, "whose shapes do not fit"),
        (PLAIN | {"dora_scale": torch.ones(25, 1)}, "that does not fit the base's weight"),
        (
            PLAIN | {"dora_scale": torch.ones(24, 1), "lora_up.weight": torch.ones(1, 2)},
            "does not fit the base's weight",
        ),
        ({"dora_scale": torch.ones(24, 1)}, "without factors"),
        ({"diff": torch.ones(24, 15)}, "has an update 24 x 15, and the base's weight the shape"),
    ],
)
def test_what_does_not_fit_the_base_is_one_line(tmp_path, base, parts, message):
    layers = {LINEAR: parts, CONV: {"diff": torch.ones(24, 16, 3, 3)}}
    with pytest.raises(UserError, match=message) as caught:
        read(put(tmp_path / "a.safetensors", layers), base[0])
    assert "\n" not in str(caught.value)


def test_a_base_without_the_layer_is_named(tmp_path, base):
    other = "mid_block.resnets.0.conv1"
    parts = {"weight": torch.ones(1, 24, 1, 1), "on_input": torch.tensor(0)}
    with pytest.raises(UserError, match=rf"base.*: has no weight of layer unet\.{other}"):
        read(put(tmp_path / "a.safetensors", {other: parts}), base[0])


def test_differences_of_zero_are_left_out(tmp_path):
    file = put(tmp_path / "a.safetensors", {LINEAR: PLAIN | {"diff_b": torch.zeros(24), "w_norm": torch.zeros(24)}})
    adapter = Adapter.load(file)
    assert adapter.layers[LINEAR].rank == 2 and adapter.note == ""


# The commands.


def run(*words: object) -> str:
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == 0, found.output
    return found.output


@pytest.mark.parametrize("format", ["diffusers", "kohya", "peft"])
def test_convert_writes_a_plain_lora_in_any_format(tmp_path, format):
    parts, expected = loha(SHAPES[LINEAR], 4, "", torch.float16)
    metadata = {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "loha"}', "ss_network_dim": "4"}
    file, out = put(tmp_path / "a.safetensors", {LINEAR: parts}, metadata), tmp_path / "out" / "b.safetensors"
    out.parent.mkdir()
    told = run("convert", file, "-o", out, "-f", format, "--rank", 5)
    assert "LoHa: 1 layers of exact rank 16, cut to 5; relative error" in told
    adapter = Adapter.load(out)
    assert adapter.format == format and adapter.ranks == {LINEAR: 5} and adapter.note == ""
    measured = error(delta(adapter, LINEAR), expected)
    assert float(adapter.metadata["lorarar.kind_error"]) == pytest.approx(measured, rel=1e-3)
    assert adapter.metadata["lorarar.kind"] == "LoHa" and adapter.metadata["ss_network_module"] == "networks.lora"
    assert "ss_network_args" not in adapter.metadata and adapter.metadata["ss_network_dim"] == "5"
    assert not any("hada" in key for key in load_file(out))


def test_inspect_names_kind_exact_rank_and_error(tmp_path):
    file = put(tmp_path / "a.safetensors", {LINEAR: loha(SHAPES[LINEAR], 3, "", torch.float32)[0]})
    assert "LoHa: 1 layers of exact rank 9, kept whole" in run("inspect", file)
    assert "cut to 2; relative error" in run("inspect", file, "--rank", 2)
    plain = put(tmp_path / "b.safetensors", {LINEAR: PLAIN})
    assert "change nothing here" in run("inspect", plain, "--energy", 0.9)
    assert "change nothing here" not in run("inspect", plain)


def test_merge_takes_other_kinds_and_the_base(tmp_path, base):
    file, weights = base
    parts, expected = loha(SHAPES[LINEAR], 2, "", torch.float32)
    scale = torch.rand(24)
    first = put(tmp_path / "a.safetensors", {LINEAR: parts})
    second = put(tmp_path / "b.safetensors", {LINEAR: {"weight": scale, "on_input": torch.tensor(0)}})
    run("merge", first, second, "-o", tmp_path / "c.safetensors", "-m", "direct", "--base", file.parent)
    expected = expected + scale.double()[:, None] * weights[LINEAR].double()
    merged = Adapter.load(tmp_path / "c.safetensors")
    assert error(delta(merged, LINEAR), expected) < 2e-6
    assert '"kind": "LoHa: 1 layers' in merged.metadata["lorarar.sources"]
    notes = merge_files(first, first, tmp_path / "d.safetensors", reading=Reading(rank=1))
    assert sum("LoHa: 1 layers of exact rank 4, cut to 1; relative error" in note for note in notes) == 2


@pytest.mark.parametrize("words, message", [(["--energy", "2"], "energy 2.0: give a share"), (["--base", "no"], "no")])
def test_mistakes_in_options_are_one_line(tmp_path, words, message):
    file = put(tmp_path / "a.safetensors", {LINEAR: LOHA})
    found = CliRunner().invoke(app, ["convert", str(file), "-o", str(tmp_path / "b.safetensors"), *words])
    assert isinstance(found.exception, UserError) and message in str(found.exception)
    assert not (tmp_path / "b.safetensors").exists()


def test_every_kind_is_tested():
    assert {kind.name for kind in KINDS} == {*MAKERS, "GLoRA", "(IA)^3"}
