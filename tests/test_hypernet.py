"""The hypernetwork: its factored pass equals the formula, and its training can stop and go on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import linear, relu

from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter, Factors
from lorarar.merging import hypernet
from lorarar.merging.hypernet import HyperNetwork
from lorarar.merging.lorarar import merge as lorarar_merge
from lorarar.training.checkpoint import Checkpoint
from lorarar.training.hypernet import Entry, train


def make(rank: int, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "a.to_q": (6, 6),
        "a.to_k": (6, 9),
        "a.to_out.0": (6, 6),
        "b.to_q": (10, 10),
        "b.to_out.0": (10, 10),
    }
    return Adapter(
        {
            path: Factors(torch.randn(rank, n, generator=generator), torch.randn(m, rank, generator=generator))
            for path, (m, n) in shapes.items()
        }
    )


content, style = make(3, seed=1), make(2, seed=2)


def test_factored_pass_equals_the_dense_formula():
    network = HyperNetwork([10, 6], hidden=16)
    found = network.coefficients(content, style)
    assert found.keys() == {"a.to_q", "a.to_out.0", "b.to_q", "b.to_out.0"}
    state = network.state_dict()
    for path, (m_c, m_s) in found.items():
        columns = torch.cat([content.layers[path].delta.T, style.layers[path].delta.T], dim=1)  # (n, 2m)
        layer = {6: "input_1", 10: "input_2"}[columns.shape[1] // 2]
        hidden = relu(linear(columns, state[f"{layer}.weight"], state[f"{layer}.bias"]))
        expected = linear(hidden, state["output.1.weight"], state["output.1.bias"])
        torch.testing.assert_close(torch.stack([m_c, m_s], dim=1), expected)


def test_without_training_columns_that_see_each_other_change_nothing():
    plain = HyperNetwork([10, 6], hidden=16).coefficients(content, style)
    for context in ("mean", "attention"):
        found = HyperNetwork([10, 6], hidden=16, context=context).coefficients(content, style)
        torch.testing.assert_close(found, plain, rtol=0, atol=0)


@pytest.mark.parametrize("context", ["mean", "attention"])
def test_columns_that_see_each_other_equal_the_dense_formula(context):
    network = HyperNetwork([10, 6], hidden=16, context=context)
    torch.nn.init.normal_(network.mixture.value.weight)
    state = network.state_dict()
    c, s = content.layers["b.to_q"], style.layers["b.to_q"]
    hidden = linear(torch.cat([c.delta.T, s.delta.T], dim=1), state["input_2.weight"], state["input_2.bias"])
    weights = torch.full((10, 10), 1 / 10)  # of every column (second) for every column (first)
    if context == "attention":
        query, key = (linear(hidden, state[f"mixture.{name}.weight"]) for name in ("query", "key"))
        weights = torch.softmax(query @ key.T / 16**0.5, dim=1)
    hidden = relu(hidden + linear(weights @ hidden, state["mixture.value.weight"]))
    expected = linear(hidden, state["output.1.weight"], state["output.1.bias"])
    torch.testing.assert_close(torch.stack(network(c, s), dim=1), expected)


@pytest.mark.parametrize("context", ["mean", "attention"])
def test_columns_that_see_each_other_are_trained_saved_and_read(context, tmp_path):
    network = HyperNetwork([10, 6], hidden=16, context=context)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    for _ in range(2):
        torch.stack([m.sum() for both in network.coefficients(content, style).values() for m in both]).sum().backward()
        optimizer.step()
    assert network.mixture.value.weight.any()
    network.save(tmp_path / "h.safetensors")
    read = HyperNetwork.load(tmp_path / "h.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(read.coefficients(content, style), network.coefficients(content, style))


def test_bfloat16_costs_less_than_a_hundredth():
    random = torch.Generator().manual_seed(0)
    both = [
        Factors(torch.randn(8, 640, generator=random) / 25, torch.randn(640, 8, generator=random) / 3) for _ in "cs"
    ]
    network = HyperNetwork([640])
    exact = torch.stack(network(*both))
    quick = torch.stack(network.bfloat16()(*(Factors(down.bfloat16(), up.bfloat16()) for down, up in both)))
    assert quick.dtype == torch.float32
    assert (quick - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize(("gain", "dtype"), [(0.5, torch.float32), (4.0, torch.bfloat16)])
def test_bfloat16_is_computed_in_what_the_cpu_is_fastest_in(monkeypatch, gain, dtype):
    monkeypatch.setattr(hypernet, "gain_of_bfloat16", lambda: gain)
    rough = HyperNetwork([6, 10]).bfloat16()
    both = [make(rank, seed).to(torch.bfloat16) for rank, seed in ((3, 1), (2, 2))]
    with torch.no_grad():
        expected = copy.deepcopy(rough).to(dtype).coefficients(*(adapter.to(dtype) for adapter in both))
        found = rough.coefficients(*both)
    for path, pair in expected.items():
        torch.testing.assert_close(found[path], pair, rtol=0, atol=0)


def test_sdxl_network_has_the_shapes_of_the_release():
    shapes = {key: tuple(value.shape) for key, value in HyperNetwork([640, 1280]).state_dict().items()}
    assert shapes == {
        "input_1.weight": (128, 1280),
        "input_1.bias": (128,),
        "input_2.weight": (128, 2560),
        "input_2.bias": (128,),
        "output.1.weight": (2, 128),
        "output.1.bias": (2,),
    }


def test_the_constants_it_was_trained_with_travel_with_it(tmp_path):
    network = HyperNetwork([6, 10], constants=(1.0, 0.25))
    network.save(tmp_path / "h.safetensors")
    loaded = HyperNetwork.load(tmp_path / "h.safetensors")
    assert loaded.constants == (1.0, 0.25)
    by_file, stated = (lorarar_merge(content, style, hypernet=loaded, **o) for o in ({}, {"constants": (1.0, 0.25)}))
    averaged = lorarar_merge(content, style, hypernet=loaded, constants=(0.5, 0.5))
    torch.testing.assert_close(by_file.layers["a.to_k"].delta, stated.layers["a.to_k"].delta)
    assert not torch.allclose(by_file.layers["a.to_k"].delta, averaged.layers["a.to_k"].delta)
    torch.save(network.state_dict(), tmp_path / "h.pth")
    assert HyperNetwork.load(tmp_path / "h.pth").constants == (0.5, 0.5), "the paper's, where a file says nothing"


def test_untrained_network_says_about_its_initial_value():
    tiny_updates = [a.to(torch.float32) for a in (make(1, 1), make(1, 2))]
    for a in tiny_updates:
        a.layers = {path: Factors(f.down * 1e-3, f.up * 1e-3) for path, f in a.layers.items()}
    for initial in (0.0, 0.5):
        m_c, m_s = HyperNetwork([6, 10], initial=initial).coefficients(*tiny_updates)["b.to_q"]
        assert (m_c - initial).abs().max() < 0.25 and (m_s - initial).abs().max() < 0.25


def test_guided_projections_and_widths_follow_the_adapter():
    network = HyperNetwork.for_adapter(content, guided=("to_k",))
    assert network.widths == [6]
    assert network.coefficients(content, style).keys() == {"a.to_k"}
    assert network.coefficients(content, style)["a.to_k"][0].shape == (9,)
    assert HyperNetwork.for_adapter(content).widths == [6, 10]
    with pytest.raises(UserError, match="to_x"):
        HyperNetwork.for_adapter(content, guided=("to_x",))
    with pytest.raises(UserError, match="10 wide, the hypernetwork knows 6"):
        HyperNetwork([6]).coefficients(content, style)


@pytest.mark.parametrize("name", ["h.safetensors", "h.pth"])
def test_weights_travel_through_files(tmp_path, name):
    network = HyperNetwork([6, 10], hidden=7, seed=4)
    if name.endswith(".pth"):
        torch.save(network.state_dict(), tmp_path / name)
    else:
        network.save(tmp_path / name)
    loaded = HyperNetwork.load(tmp_path / name)
    assert loaded.widths == [6, 10] and loaded.guided == ("to_q", "to_out.0")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))


def test_guided_projections_are_kept_in_the_file(tmp_path):
    HyperNetwork([6], guided=("to_k", "to_v")).save(tmp_path / "h.safetensors")
    assert HyperNetwork.load(tmp_path / "h.safetensors").guided == ("to_k", "to_v")


def test_damaged_weights_are_refused_by_name(tmp_path):
    (tmp_path / "h.pth").write_bytes(b"nonsense")
    content.save(tmp_path / "a.safetensors")
    for name in ("h.pth", "a.safetensors", "missing.pth", "missing.safetensors"):
        with pytest.raises(UserError, match=name):
            HyperNetwork.load(tmp_path / name)


@pytest.fixture
def bank(adapters, references):
    return [[Entry(adapter, reference)] for adapter, reference in zip(adapters, references, strict=True)]


def test_training_lowers_the_merging_loss(tiny, bank):
    network = HyperNetwork([32, 64], hidden=8, initial=0.0)
    options = {"weight": 0.0, "batch_size": 2}
    history = train(network, tiny, *bank, steps=20, **options)
    assert [row["step"] for row in history] == list(range(1, 21))
    assert list(history[0]) == ["step", "total", "content", "style", "orthogonality"]
    first, last = (sum(row["total"] for row in rows) for rows in (history[:5], history[-5:]))
    assert last < first


def test_resumed_training_equals_an_undisturbed_run_bit_for_bit(tiny, bank, tmp_path):
    def run(steps: int, **options):
        network = HyperNetwork([32, 64], hidden=8)
        return network, train(network, tiny, *bank, steps=steps, seed=3, **options)

    whole, whole_history = run(5)
    checkpoint = Checkpoint(tmp_path / "state.pt", every=2)

    def interrupt(step: int, loss: object) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(5, checkpoint=checkpoint, progress=interrupt)
    steps_done = []
    resumed, history = run(5, checkpoint=checkpoint, progress=lambda step, loss: steps_done.append(step))
    assert steps_done == [3, 4, 5]
    assert history == whole_history
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))

    finished, history = run(5, checkpoint=checkpoint, progress=interrupt)
    assert history == whole_history
    assert all(torch.equal(a, b) for a, b in zip(finished.parameters(), whole.parameters(), strict=True))


def test_checkpoint_of_other_settings_or_no_checkpoint_at_all_is_refused(tiny, bank, tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.pt", every=1)
    train(HyperNetwork([32, 64]), tiny, *bank, steps=1, checkpoint=checkpoint)
    with pytest.raises(UserError, match=r"state\.pt: made with other settings"):
        train(HyperNetwork([32, 64]), tiny, *bank, steps=1, checkpoint=checkpoint, learning_rate=0.1)
    with pytest.raises(UserError, match=r"state\.pt: not a state of this training"):
        train(HyperNetwork([32]), tiny, *bank, steps=1, checkpoint=checkpoint)
    checkpoint.path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"state\.pt: not a state of this training"):
        train(HyperNetwork([32, 64]), tiny, *bank, steps=1, checkpoint=checkpoint)


def test_scale_is_folded_into_the_weights_when_saved(adapters, tmp_path):
    network = HyperNetwork.for_adapter(adapters[0], scale=50.0, seed=3)
    plain = HyperNetwork.for_adapter(adapters[0], seed=3)
    network.save(tmp_path / "hypernet.safetensors")
    loaded = HyperNetwork.load(tmp_path / "hypernet.safetensors")
    assert loaded.scale == 1
    made = network.coefficients(*adapters)
    for path, both in loaded.coefficients(*adapters).items():
        for k in (0, 1):
            torch.testing.assert_close(both[k], made[path][k])
            assert not torch.allclose(both[k], plain.coefficients(*adapters)[path][k], atol=1e-3)
