"""Stage generate draws the truth as it is, or as the VAE decodes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lorarar import pictures
from lorarar.pocket.world.world import World
from stages.generate import DrawTruth
from stages.shared.base_model import Model


class Darkening:
    """Stands for a VAE: what it decodes is the encoded picture at half its brightness."""

    def encode_images(self, images):
        return (images + 1) / 2

    def decode(self, latents):
        return latents - 1


def test_truth_is_the_rendering_with_and_without_the_vae(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(Model, "load", lambda _: Darkening())
    seeds, found = [3, 4], {}
    for vae in (False, True):
        DrawTruth(Model(""), "dog8", "glowing", seeds, vae, "paper").run(tmp_path / str(vae))
        found[vae] = np.stack(pictures.read_all(tmp_path / str(vae)))
    world = World.load()
    assert np.array_equal(found[False], np.stack([world.truth("dog8", "glowing", seed) for seed in seeds]))
    assert np.abs(found[True] - found[False] / 2.0).max() <= 1
