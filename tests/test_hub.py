"""A base that is only named: where its files are, and each way of not having them in one clear line. No network."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors

from lorarar.diffusion import hub
from lorarar.diffusion.backbone import Backbone
from lorarar.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMED = f"hub: someone/model\nrevision: {COMMIT}\nvariant: fp16\n"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """data/big/base of a base called big."""
    folder = tmp_path / "data/big/base"
    folder.mkdir(parents=True)
    (folder / "model.yaml").write_text(NAMED)
    return folder


@pytest.fixture
def cache(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache that holds the tiny model as someone/model, in files of the variant fp16; its snapshot."""
    repository = tmp_path / "cache/models--someone--model"
    snapshot = shutil.copytree(tiny_folder, repository / "snapshots" / COMMIT)
    for file in snapshot.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return snapshot


def refused(base: Path, download: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        hub.locate(base, download)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_a_name_is_the_model_itself(tiny_folder: Path) -> None:
    assert hub.locate(tiny_folder) == (tiny_folder, None)


def test_a_model_may_be_a_folder_seen_from_its_file(base: Path, tiny_folder: Path, tiny) -> None:
    shutil.copytree(tiny_folder, base.parent / "weights")
    (base / "model.yaml").write_text("folder: ../weights\n")
    loaded = Backbone.load(base, torch.float32)
    assert all(map(torch.equal, loaded.unet.parameters(), tiny.unet.parameters()))


def test_a_model_is_found_in_the_hubs_cache_at_its_commit(base: Path, cache: Path, tiny) -> None:
    folder, variant = hub.locate(base)
    assert (folder.resolve(), variant) == (cache.resolve(), "fp16")
    loaded = Backbone.load(base, torch.float32)
    assert all(map(torch.equal, loaded.unet.parameters(), tiny.unet.parameters()))


def test_another_commit_is_another_model(base: Path, cache: Path) -> None:
    (base / "model.yaml").write_text(NAMED.replace(COMMIT, COMMIT[::-1]))
    assert (
        "not whole in the hub's cache on this machine; fetch it by `lorarar doctor --base big --download`"
        in refused(base)
    )


def test_a_half_downloaded_model_is_told_with_what_completes_it(base: Path, cache: Path) -> None:
    (cache / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"unet/diffusion_pytorch_model\.fp16\.safetensors: no such file; fetch it by"
    ) as e:
        Backbone.load(base)
    assert "`lorarar doctor --base big --download`" in str(e.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("revision: main", "needs either hub or folder"),
        ("hub: a/b\nfolder: c", "needs either hub or folder"),
        ("hub: a/b\nrevison: main", "revison: Extra inputs are not permitted"),
        ("hub: [", "cannot be read"),
        ("", "should be a valid dictionary"),
    ],
)
def test_a_wrong_model_file_is_told(base: Path, text: str, expected: str) -> None:
    (base / "model.yaml").write_text(text)
    message = refused(base)
    assert message.startswith(f"{base / 'model.yaml'}: ") and expected in message


def hub_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "first line\nsecond line")
    error.response = SimpleNamespace()  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            errors.GatedRepoError,
            "wants its terms accepted; do so at https://huggingface.co/someone/model, then `hf auth",
        ),
        (errors.RepositoryNotFoundError, "the hub has no such model, or hides it from you"),
        (errors.RevisionNotFoundError, "the hub has no such revision"),
        (errors.LocalEntryNotFoundError, "the hub cannot be reached; try again"),
        (errors.HfHubHTTPError, "cannot be fetched (first line); try again"),
        (ConnectionResetError, "cannot be fetched (first line); try again"),
    ],
)
def test_what_the_hub_answers_is_one_line(
    base: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], expected: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise hub_error(kind)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    message = refused(base, download=True)
    assert message.startswith(f"someone/model at {COMMIT}: ") and expected in message


def test_offline_is_offline(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "as HF_HUB_OFFLINE is set; unset it" in refused(base, download=True)


def test_only_the_pipelines_own_files_are_fetched(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, object] = {}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **o: asked.update(o) or "/there")
    there = [
        "model_index.json", "unet/config.json", "tokenizer/merges.txt", "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors", "sd_xl_base_1.0.safetensors", "unet/model.onnx",
        "vae_1_0/config.json", "vae_1_0/diffusion_pytorch_model.fp16.safetensors",
    ]  # fmt: skip

    def fetched() -> set[str]:
        hub.locate(base, download=True)
        patterns = {name: asked[name] for name in ("allow_patterns", "ignore_patterns")}
        return {name for name in filter_repo_objects(there, **patterns) if name.endswith(".safetensors")}

    assert fetched() == {"vae/diffusion_pytorch_model.fp16.safetensors"}
    (base / "model.yaml").write_text("hub: someone/model")
    assert fetched() == {"vae/diffusion_pytorch_model.safetensors"} and asked["revision"] == "main"
