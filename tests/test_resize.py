"""Resizing a LoRA: against a dense SVD of every layer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import lora, update
from test_cli import fails, run

from lorarar.files import sha256
from lorarar.lora.adapter import Adapter, Factors
from lorarar.resize import Size, distance, resize


def relative(first: Adapter, second: Adapter) -> float:
    """|dW_1 - dW_2| / |dW_1| of all layers, of dense matrices; layers that the second lacks are zero there."""
    lost = whole = 0.0
    for name, factors in first.matrices.items():
        exact = update(factors)
        kept = update(second.matrices[name]) if name in second.matrices else torch.zeros_like(exact)
        lost, whole = lost + float((exact - kept).square().sum()), whole + float(exact.square().sum())
    return (lost / whole) ** 0.5


def uneven(rank: int = 8) -> Adapter:
    """A LoRA whose layers differ in norm, and whose singular values fall off."""
    adapter = lora(rank, 1)
    for i, part in enumerate((adapter.layers, adapter.others)):
        for j, factors in enumerate(part.values()):
            falls = torch.logspace(0, -1.5, rank)[:, None] * (1 + (3 * i + j) % 7)
            factors.down.flatten(1).mul_(falls)
    return adapter


def test_a_rank_gives_the_best_approximation_of_every_layer() -> None:
    adapter = uneven()
    resized, changes = resize(adapter, Size(rank=3), torch.float32)
    assert resized.layers.keys() == adapter.layers.keys() and resized.others.keys() == adapter.others.keys()
    for name, factors in adapter.matrices.items():
        exact, kept = update(factors), update(resized.matrices[name])
        best = torch.linalg.svdvals(exact)[3:].norm()
        assert resized.matrices[name].rank == changes[name].after == 3 and changes[name].before == 8
        assert torch.allclose((exact - kept).norm(), best, rtol=1e-5)
        assert changes[name].error == pytest.approx(float(best / exact.norm()), rel=1e-5)
    convolution = next(name for name, factors in adapter.others.items() if factors.down.ndim == 4)
    assert resized.others[convolution].down.shape == (3, *adapter.others[convolution].down.shape[1:])
    assert float(resized.metadata["relative_error"]) == pytest.approx(relative(adapter, resized), rel=1e-5)


def test_energy_gives_the_smallest_rank_that_keeps_the_share() -> None:
    adapter = uneven()
    resized, changes = resize(adapter, Size(energy=0.9), torch.float64)
    for name, factors in adapter.matrices.items():
        kept = torch.linalg.svdvals(update(factors)).square().cumsum(0)
        kept, rank = kept / kept[-1], resized.matrices[name].rank
        assert kept[rank - 1] >= 0.9 and (rank == 1 or kept[rank - 2] < 0.9)
    assert len({change.after for change in changes.values()}) > 1
    _, limited = resize(adapter, Size(energy=0.9, max_rank=2), torch.float64)
    assert [change.after for change in limited.values()] == [min(change.after, 2) for change in changes.values()]


def test_energy_of_all_layers_takes_the_largest_singular_values_of_all() -> None:
    adapter = uneven()
    resized, changes = resize(adapter, Size(energy=0.9, per="all"), torch.float64)
    squares = {name: torch.linalg.svdvals(update(factors))[:8].square() for name, factors in adapter.matrices.items()}
    kept = [value for name, values in squares.items() for value in values[: changes[name].after].tolist()]
    gone = [value for name, values in squares.items() for value in values[changes[name].after :].tolist()]
    whole = sum(kept) + sum(gone)
    assert sum(kept) >= 0.9 * whole > sum(kept) - min(kept) and min(kept) > max(gone)
    error = float(resized.metadata["relative_error"])
    assert error == pytest.approx((sum(gone) / whole) ** 0.5, rel=1e-5) == pytest.approx(relative(adapter, resized))
    _, each = resize(adapter, Size(energy=0.9), torch.float64)
    assert sum(change.after for change in changes.values()) < sum(change.after for change in each.values())


def test_the_whole_energy_drops_only_directions_that_hold_nothing() -> None:
    small = lora(2, 3)
    doubled = {
        name: Factors(*(torch.cat([f, f], i) for i, f in enumerate(pair))) for name, pair in small.layers.items()
    }
    resized, changes = resize(Adapter(doubled), Size(energy=1.0), torch.float64)
    assert {change.after for change in changes.values()} == {2}
    assert relative(Adapter(doubled), resized) < 1e-7


def test_layers_that_are_small_enough_keep_their_numbers() -> None:
    adapter = lora(4, 2)
    resized, changes = resize(adapter, Size(rank=4), torch.float32)
    for name, factors in adapter.matrices.items():
        assert all(map(torch.equal, factors, resized.matrices[name])) and changes[name].lost == 0
    assert resized.metadata["relative_error"] == "0"


def test_no_update_is_formed() -> None:
    random = torch.Generator().manual_seed(0)
    huge = Factors(torch.randn(4, 400_000, generator=random), torch.randn(400_000, 4, generator=random))
    resized, changes = resize(Adapter({"down_blocks.0.x": huge}), Size(rank=2), torch.float32)  # dW: 640 GB
    exact = float(torch.linalg.svdvals((huge.up.T.double() @ huge.up.double()) @ (huge.down @ huge.down.T).double())[0])
    assert exact > 0 and resized.layers["down_blocks.0.x"].rank == 2
    assert 0.5 < changes["down_blocks.0.x"].error < 0.8, "random directions are equally strong"


def test_the_distance_of_two_updates_is_exact_to_the_last_digits() -> None:
    first, second = (lora(rank, rank).layers["mid_block.resnets.0.time_emb_proj"] for rank in (3, 5))
    assert distance(first, second) == pytest.approx(float((update(first) - update(second)).norm()), rel=1e-12)
    nudged = Factors(first.down.double(), first.up.double() * (1 + 1e-10))
    assert distance(first, nudged) == pytest.approx(1e-10 * float(update(first).norm()), rel=1e-4)


@pytest.mark.parametrize("format, dtype", [("diffusers", "fp32"), ("kohya", "fp16"), ("kohya-sgm", "bf16")])
def test_the_command_writes_the_error_that_is_measured(tmp_path: Path, monkeypatch, capsys, format, dtype) -> None:
    source, out = tmp_path / "cat.safetensors", tmp_path / "small.safetensors"
    uneven().save(source, format)
    assert run(monkeypatch, "resize", source, "-o", out, "--energy", "0.95", "--dtype", dtype) == 0
    shown = capsys.readouterr()
    resized = Adapter.load(out)
    error = relative(Adapter.load(source), resized)
    assert float(resized.metadata["relative_error"]) == pytest.approx(error, rel=1e-5)
    assert f"relative error {error:.3g}" in shown.err and "rank 8 before" in shown.err
    assert resized.format == format and resized.metadata["ss_network_dim"] == str(max(resized.all_ranks))
    assert json.loads(resized.metadata["lorarar.resized_from"]) == {"file": source.name, "sha256": sha256(source)}
    assert f"{out}: " in shown.out and out.stat().st_size < source.stat().st_size


def test_what_is_left_out_is_said(tmp_path: Path, monkeypatch, capsys) -> None:
    adapter, out = lora(4, 1, encoders=False), tmp_path / "small.safetensors"
    adapter.layers["mid_block.resnets.0.time_emb_proj"].up.zero_()
    adapter.save(tmp_path / "cat.safetensors")
    words = ("resize", tmp_path / "cat.safetensors", "-o", out, "--force")
    assert run(monkeypatch, *words, "--energy", "0.9") == 0
    assert "1 layers are left out" in capsys.readouterr().err
    assert "mid_block.resnets.0.time_emb_proj" not in Adapter.load(out).layers
    assert run(monkeypatch, *words, "--rank", "9") == 0
    assert "none is cut" in capsys.readouterr().err


def test_mistakes_end_with_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    source, out = tmp_path / "cat.safetensors", tmp_path / "small.safetensors"
    lora(2, 1).save(source)

    def refused(*words: object) -> str:
        error = fails(monkeypatch, capsys, "resize", source, "-o", out, *words)
        assert not out.exists()
        return error

    assert "give one of them" in refused() and "give one of them" in refused("--rank", 2, "--energy", 0.5)
    assert "--rank 0" in refused("--rank", 0) and "--energy 1.5" in refused("--energy", 1.5)
    assert "--energy nan" in refused("--energy", "nan") and "--max-rank 0" in refused("--energy", 1, "--max-rank", 0)
    assert "--per layers" in refused("--energy", 0.5, "--per", "layers")
    assert "go with --energy" in refused("--rank", 2, "--max-rank", 1)
    assert "is one of the inputs" in fails(monkeypatch, capsys, "resize", source, "-o", source, "--rank", 1, "--force")
    zero = lora(2, 1)
    for factors in (*zero.layers.values(), *zero.others.values()):
        factors.up.zero_()
    zero.save(source)
    assert "cat.safetensors: every update is zero" in refused("--energy", 0.9)
