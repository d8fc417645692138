"""`lorarar doctor`: everything that is missing by name, costs by count, and an exit status to go by. No network."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants

from bench.full_size import BASES, KOALA
from lorarar.cli import main
from stages.shared import doctor
from stages.shared.context import Context
from stages.shared.doctor import examine
from stages.shared.forecast import costs, gpu_gigabytes

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path))


def context(base: str, **evaluate: object) -> Context:
    loaded = Context.load()
    changed = loaded.params.evaluate.model_copy(update=evaluate)
    return replace(loaded, params=loaded.params.with_base(base).model_copy(update={"evaluate": changed}))


def test_what_is_shipped_is_ready() -> None:
    found = {finding.about: finding for finding in examine(context("pocket"))}
    assert all(found[about].ready for about in ("world", "base model", "judge", "clip", "dino", "GPU"))


def test_each_thing_that_is_missing_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "choose", lambda _: "local")
    found = {finding.about: finding for finding in examine(context("sdxl"))}
    missing = {
        "base model": "stabilityai/stable-diffusion-xl-base-1.0",
        "judge": "FuryMartin/llava-critic-7b-hf",
        "clip": "timm/vit_base_patch32_clip_224.openai",
        "dino": "facebook/dino-vits16",
    }
    for about, name in missing.items():
        assert not found[about].ready and found[about].says.startswith(name) and "\n" not in found[about].says
        assert "`lorarar doctor --base sdxl --download`" in found[about].says
    assert not found["GPU"].ready and "13 GB of GPU memory needed" in found["GPU"].says


def test_a_cluster_has_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "choose", lambda _: "slurm")
    (found,) = (finding for finding in examine(context("koala")) if finding.about == "GPU")
    assert found.ready and "jobs ask Slurm" in found.says


def test_eight_bit_adam_wants_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    given = context("koala")
    knobs = given.knobs.backbone.model_copy(update={"eight_bit_adam": True})
    monkeypatch.setattr(Context, "knobs", given.knobs.model_copy(update={"backbone": knobs}))
    (found,) = (finding for finding in examine(given) if finding.about == "bitsandbytes")
    assert not found.ready and "pip install bitsandbytes" in found.says


def test_costs_are_the_papers_settings_times_counts() -> None:
    given = context("sdxl", methods=["lorarar", "ziplora", "base_only", "content_only", "truth"])
    rows = {cost.stage: cost for cost in costs(given)}
    assert (rows["bank"].tasks, rows["ziplora"].tasks, rows["joint"].tasks) == (56, 25, 0)
    step = 6.761 / 34 / 3600  # hours of one forward pass
    # Two forward passes, as activations are computed again, and one backward; encoding the pictures is little.
    assert rows["bank"].hours == pytest.approx(56 * 1000 * 3 * step, rel=0.01)
    # Each adapter's prediction, and the merged model's on both: 2 x (1 + 3).
    assert rows["hypernet"].hours == pytest.approx(5000 * 8 * step)
    assert rows["ziplora"].hours == pytest.approx(25 * 158 / 3600, rel=0.02), "the paper's 158 s"
    assert rows["generate"].tasks == 4 * 25, "all but the truth, which no one knows"
    assert rows["generate"].hours == pytest.approx(4 * 25 * 10 * (100 * 6.761 + 10.47) / 34 / 3600)
    lora = 92_897_280 * 4 / 1e9
    assert rows["bank"].gigabytes == pytest.approx(3 * 56 * lora)
    assert rows["merge"].gigabytes == 0, "images need no merged file"
    kept = replace(given, params=given.params.model_copy(update={"keep_merged": True}))
    assert {c.stage: c.gigabytes for c in costs(kept)}["merge"] == pytest.approx(2 * 25 * (2 + 2) * lora)


def test_pockets_hours_are_measured_ones_and_its_sizes_those_of_its_loras() -> None:
    rows = {cost.stage: cost for cost in costs(context("pocket", methods=["lorarar", "joint"]))}
    assert rows["bank"].hours == pytest.approx(56 * 16.3 / 3600)
    unmeasured = {cost.stage: cost for cost in costs(context("pocket_light", methods=["lorarar", "joint"]))}
    assert unmeasured["bank"].hours == pytest.approx(56 * 11.6 / 3600) and unmeasured["joint"].hours is None
    assert rows["bank"].gigabytes == pytest.approx(3 * 56 * 16576 * 16 * 4 / 1e9)


def test_counts_are_those_of_the_unet() -> None:
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    counted = yaml.safe_load((ROOT / "data/costs.yaml").read_text(encoding="utf-8"))["counted"]
    with torch.device("meta"), torch.no_grad():
        unet = UNet2DConditionModel(**KOALA)
        told = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        given = torch.zeros(1, 4, 128, 128), torch.zeros(1), torch.zeros(1, 77, 2048)
        with FlopCounterMode(display=False) as counter:
            unet(*given, added_cond_kwargs=told)
    assert counter.get_total_flops() / 1e12 == pytest.approx(counted["koala"]["forward"], rel=1e-3)
    assert sum(p.numel() for p in unet.parameters()) == counted["koala"]["parameters"]
    for base, (_, shapes) in BASES.items():
        assert sum((m + n) * count for (m, n), count in shapes.items()) == counted[base]["lora_per_rank"]


def test_memory_follows_the_knobs() -> None:
    needed = gpu_gigabytes(context("sdxl"))
    assert needed == pytest.approx((2_567_463_684 * 2 + 92_897_280 * 16) / 1e9 + 6)


def test_the_command_prints_findings_and_costs_and_tells_by_its_status(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["lorarar", "doctor", "--base", "koala"])
    with pytest.raises(SystemExit) as caught:
        main()
    out, _ = capfd.readouterr()
    assert caught.value.code == 1
    assert re.search(r"^MISSING +base model +etri-vilab/koala-700m at main: ", out, re.M)
    assert "hours, estimated" in out and "bank" in out and "of which none was measured" in out


def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["lorarar doctor", "--base", "sdlx"])
    with pytest.raises(SystemExit) as caught:
        doctor.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: --base sdlx: no such base; known: pocket, pocket_light, sdxl, koala\n"
    monkeypatch.chdir(ROOT / "tests")
    monkeypatch.setattr("sys.argv", ["lorarar", "doctor", "--base", "sdxl"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        "error: stages/shared/doctor.py: no such file; --base and --download need a clone of the repository\n"
    )


def test_away_from_the_repository_the_installation_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lorarar", "doctor"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    first, *extras = capsys.readouterr().out.splitlines()
    assert first.startswith("lorarar ") and "torch" in first
    assert len(extras) == 7 and all(line.endswith("installed") or "pip install 'lorarar[" in line for line in extras)
