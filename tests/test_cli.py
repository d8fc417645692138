"""The command `lorarar`, as a user types it."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lorarar
from lorarar.cli import main
from lorarar.files import sha256
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.formats import DTYPES, WRITERS
from lorarar.merging import columns
from lorarar.merging.hypernet import HyperNetwork
from lorarar.merging.registry import METHODS

LAYERS = [f"down_blocks.1.attentions.0.transformer_blocks.0.attn1.{p}" for p in ("to_q", "to_k", "to_v", "to_out.0")]


def adapter(seed: int, rank: int, width: int = 640) -> Adapter:
    random = torch.Generator().manual_seed(seed)
    return Adapter(
        {
            path: Factors(
                torch.randn(rank, width, generator=random) / 10, torch.randn(width, rank, generator=random) / 10
            )
            for path in LAYERS
        }
    )


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Content, style, and a name for the output."""
    adapter(1, 4).save(tmp_path / "cat.safetensors")
    adapter(2, 2).save(tmp_path / "watercolor.safetensors")
    return tmp_path / "cat.safetensors", tmp_path / "watercolor.safetensors", tmp_path / "both.safetensors"


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["lorarar", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *words: object) -> str:
    """The one line a mistake ends with."""
    assert run(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_merges_two_files_and_says_how(files, monkeypatch, capsys) -> None:
    content, style, out = files
    assert run(monkeypatch, "merge", content, style, "-o", out, "--method", "direct") == 0
    assert str(out) in capsys.readouterr().out
    merged, c, s = (Adapter.load(path) for path in (out, content, style))
    for path in LAYERS:
        assert torch.allclose(merged.layers[path].delta, c.layers[path].delta + s.layers[path].delta, atol=1e-6)
    sources = json.loads(merged.metadata["lorarar.sources"])
    assert sources["style"] == {"file": "watercolor.safetensors", "sha256": sha256(style)}
    assert merged.metadata["lorarar.method"] == "direct" and merged.metadata["lorarar.rank"] == "6"
    assert "SDXL" in merged.metadata["lorarar.base"]
    plain = out.with_name("plain")
    plain.touch()
    assert out.stat().st_mode == plain.stat().st_mode, "readable for whom any other file is"


def test_merges_by_a_hypernetwork(files, monkeypatch) -> None:
    content, style, out = files
    network = HyperNetwork([640, 1280])
    torch.save(network.state_dict(), out.with_name("hypernet.pth"))
    assert run(monkeypatch, "merge", content, style, "-o", out, "--hypernet", out.with_name("hypernet.pth")) == 0
    c, s = Adapter.load(content), Adapter.load(style)
    with torch.no_grad():
        expected = columns.merge(c, s, network.coefficients(c, s), default=(0.5, 0.5))
    merged = Adapter.load(out)
    assert all(torch.allclose(merged.layers[path].delta, expected.layers[path].delta, atol=1e-6) for path in LAYERS)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if not row.needs and not row.schedule])
@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_every_method_writes_every_format(files, monkeypatch, method: str, format: str) -> None:
    content, style, out = files
    words = ["merge", content, style, "-o", out, "-m", method, "-f", format, "-d", "fp16"]
    options = {f"{side}_blocks": ("down_blocks",) for side in ("content", "style") if method.endswith("_blocks")}
    settings = [word for name, value in options.items() for word in ("-s", f"{name}={value}")]
    assert run(monkeypatch, *words, *settings) == 0
    merged = Adapter.load(out)
    assert merged.layers.keys() == set(LAYERS) and merged.layers[LAYERS[0]].down.dtype == torch.float16
    assert torch.equal(
        merged.layers[LAYERS[0]].delta,
        lorarar.merge(content, style, method=method, dtype=torch.float16, **options).layers[LAYERS[0]].delta,
    )


def test_options_reach_the_method(files, monkeypatch, capsys) -> None:
    content, style, out = files
    assert run(monkeypatch, "merge", content, style, "-o", out, "-m", "svd", "-s", "rank=3") == 0
    assert set(Adapter.load(out).ranks.values()) == {3}
    assert "relative error" in capsys.readouterr().err


def test_looks_into_a_file(files, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "inspect", files[0], "--layers") == 0
    text = capsys.readouterr().out
    assert "diffusers format" in text and "rank 4" in text and LAYERS[0] in text
    norm = float(adapter(1, 4).layers[LAYERS[0]].delta.norm())
    assert f"norm {norm:.4g}" in text


def test_converts_there_and_back(files, monkeypatch) -> None:
    content, _, out = files
    assert run(monkeypatch, "convert", content, "-o", out, "-f", "kohya") == 0
    back = out.with_name("back.safetensors")
    assert run(monkeypatch, "convert", out, "-o", back) == 0
    first, second = load_file(content), load_file(back)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_lists_the_methods(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "methods") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in METHODS) and "density=0.5" in text


def test_help_has_examples(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "merge", "--help") == 0
    text = capsys.readouterr().out
    assert "--hypernet hypernet.pth" in text
    assert all(name in text for name in (*WRITERS, *DTYPES))


def test_help_comes_without_torch() -> None:
    code = "import sys; from lorarar.cli import app; app(['merge', '--help'], standalone_mode=False); "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True, capture_output=True)


def test_mistakes_end_with_one_line_and_write_nothing(files, monkeypatch, capsys, tmp_path: Path) -> None:
    content, style, out = files

    def refused(*words: object) -> str:
        error = fails(monkeypatch, capsys, *words)
        assert not out.exists()
        return error

    assert "needs a trained hypernetwork" in refused("merge", content, style, "-o", out, "-m", "lorarar")
    assert "choose one of direct" in refused("merge", content, style, "-o", out, "-m", "magic")
    assert "has no option density" in refused("merge", content, style, "-o", out, "-m", "direct", "-s", "density=1")
    assert "NAME=VALUE" in refused("merge", content, style, "-o", out, "-m", "ties", "-s", "density")
    assert "density" in refused("merge", content, style, "-o", out, "-m", "ties", "-s", "density=7")
    assert "no such file" in refused("merge", tmp_path / "none.safetensors", style, "-o", out, "-m", "direct")

    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(content.read_bytes()[:-100])
    assert "damaged.safetensors" in refused("merge", damaged, style, "-o", out, "-m", "direct")
    damaged.write_bytes(pickle.dumps({"weights": [1, 2]}))
    assert "pickle" in refused("merge", damaged, style, "-o", out, "-m", "direct")
    tensors = load_file(content)
    tensors[f"unet.{LAYERS[1]}.lora.up.weight"][3, 1] = float("nan")
    save_file(tensors, damaged)
    for words in (["merge", damaged, style, "-m", "direct"], ["merge", damaged, style, "-m", "ties"]):
        error = refused(*words, "-o", out)
        assert f"layer unet.{LAYERS[1]} holds NaN" in error and "damaged.safetensors" in error
    heavy = ("merge", content, style, "-o", out, "-m", "direct", "-s", "weights=(1e6, 1)", "--dtype", "fp16")
    assert "would hold NaN or infinity in float16" in refused(*heavy)
    assert "give two numbers" in refused("merge", content, style, "-o", out, "-m", "direct", "-s", "weights={1, 2}")
    assert "hypernet 5: give the file" in refused("merge", content, style, "-o", out, "-s", "hypernet=5")
    assert "--format does not apply" in refused("merge", content, style, "-o", out, "-m", "klora", "-f", "kohya")
    assert "choose one of diffusers, peft" in refused("merge", content, style, "-o", out, "-f", "kohia")
    assert "choose one of fp32, fp16" in refused("merge", content, style, "-o", out, "-d", "float16")
    assert "is a folder" in refused("merge", content, style, "-o", tmp_path, "-m", "direct", "--force")
    assert "cannot be written" in refused("merge", content, style, "-o", content / "out.safetensors", "-m", "direct")
    network = tmp_path / "network.safetensors"
    HyperNetwork([1280]).save(network)
    assert "640 wide" in refused("merge", content, style, "-o", out, "--hypernet", network)
    adapter(1, 4, width=320).save(damaged)
    error = refused("merge", damaged, style, "-o", out, "-m", "direct")
    assert "damaged.safetensors is for" in error and "watercolor.safetensors for SDXL" in error
    for word in ("dtype", "method", "force"):
        assert f"no option {word}" in refused("merge", content, style, "-o", out, "-m", "ties", "-s", f"{word}=1")


def test_files_that_exist_stay(files, monkeypatch, capsys) -> None:
    content, style, out = files
    out.write_bytes(b"precious")
    assert "--force" in fails(monkeypatch, capsys, "merge", content, style, "-o", out, "-m", "direct")
    assert out.read_bytes() == b"precious"
    assert "inputs" in fails(monkeypatch, capsys, "merge", content, style, "-o", style, "-m", "direct", "--force")
    assert run(monkeypatch, "merge", content, style, "-o", out, "-m", "direct", "--force") == 0
    assert Adapter.load(out).layers and capsys.readouterr().out
    other = out.with_name("adapter_config.json")
    other.write_text("precious")
    for words in (["merge", content, style, "-m", "direct"], ["convert", content]):
        error = fails(monkeypatch, capsys, *words, "-f", "peft", "-o", out.with_name("peft.safetensors"))
        assert "adapter_config.json: exists" in error and other.read_text() == "precious"


def test_the_configuration_of_an_input_stays(files, monkeypatch, capsys) -> None:
    content, style, out = files
    theirs = out.parent / "peft" / "adapter_model.safetensors"
    assert run(monkeypatch, "convert", content, "-f", "peft", "-o", theirs) == 0
    merged = theirs.with_name("merged.safetensors")
    for words in (["merge", theirs, style, "-m", "direct"], ["convert", theirs]):
        error = fails(monkeypatch, capsys, *words, "-f", "peft", "-o", merged, "--force")
        assert "adapter_config.json: is one of the inputs" in error and not merged.exists()
    assert Adapter.load(theirs).ranks == Adapter.load(content).ranks
