"""Images are those of diffusers' pipeline, and each depends on its own seed alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorarar.diffusion.backbone import Backbone
from lorarar.diffusion.sampling import generate
from lorarar.errors import UserError
from lorarar.merging.klora import Schedule

PROMPT = "a sks dog in oil painting style"


def close(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    """Equal up to one grey level, which float32 sums in another order can cost."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape == (16, 16, 3) and a.dtype == np.uint8
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1


def by_pipeline(backbone: Backbone, seeds: list[int], guidance: float) -> list[np.ndarray]:
    noise = [torch.randn(backbone.latent_shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    backbone.pipeline.set_progress_bar_config(disable=True)
    images = backbone.pipeline(
        [PROMPT] * len(seeds),
        latents=torch.stack(noise),
        num_inference_steps=4,
        guidance_scale=guidance,
        height=16,
        width=16,
        output_type="np",
    ).images
    return [(image * 255).round().astype(np.uint8) for image in images]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_images_equal_the_pipelines(tiny, guidance):
    ours = generate(tiny, None, PROMPT, seeds=[5, 6], steps=4, guidance=guidance)
    close(ours, by_pipeline(tiny, [5, 6], guidance))


def test_images_with_an_adapter_equal_the_pipelines(tiny, tiny_folder, adapters, tmp_path):
    adapters[0].save(tmp_path / "content.safetensors")
    other = Backbone.load(tiny_folder, torch.float32)
    other.pipeline.load_lora_weights(str(tmp_path), weight_name="content.safetensors")
    ours = generate(tiny, adapters[0], PROMPT, seeds=[5], steps=4, guidance=3.0)
    close(ours, by_pipeline(other, [5], 3.0))
    without = generate(tiny, None, PROMPT, seeds=[5], steps=4, guidance=3.0)
    assert not np.array_equal(ours[0], without[0])


def test_batches_do_not_matter(tiny, adapters):
    options = {"steps": 3, "guidance": 3.0}
    together = generate(tiny, adapters[1], PROMPT, seeds=[1, 2, 3], batch_size=3, **options)
    in_parts = generate(tiny, adapters[1], PROMPT, seeds=[1, 2, 3], batch_size=2, **options)
    backwards = generate(tiny, adapters[1], PROMPT, seeds=[3, 2, 1], batch_size=1, **options)
    close(together, in_parts)
    close(together, backwards[::-1])
    assert not np.array_equal(together[0], together[1])


def test_the_same_call_gives_the_same_pixels(tiny):
    one, two = (generate(tiny, None, PROMPT, seeds=[1, 2], steps=3, guidance=3.0) for _ in range(2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_other_samplers_keep_images_apart_too(tiny_folder, name):
    import diffusers

    pipeline = Backbone.load(tiny_folder, torch.float32).pipeline
    pipeline.scheduler = getattr(diffusers, name)(prediction_type="v_prediction", timestep_spacing="trailing")
    backbone = Backbone(pipeline)
    options = {"steps": 3, "guidance": 2.0}
    close(
        generate(backbone, None, PROMPT, seeds=[1, 2], batch_size=2, **options),
        generate(backbone, None, PROMPT, seeds=[1, 2], batch_size=1, **options),
    )


def test_a_schedule_hands_over_at_its_turns(tiny, adapters):
    content, style = adapters
    settings = {"seeds": [5], "steps": 4, "guidance": 3.0}
    never, always, halfway = (
        generate(tiny, Schedule(content, style, dict.fromkeys(content.layers, turns)), PROMPT, **settings)
        for turns in ((), (0.0,), (0.5,))
    )
    close(never, generate(tiny, content, PROMPT, **settings))
    close(always, generate(tiny, style, PROMPT, **settings))
    assert not np.array_equal(halfway[0], never[0]) and not np.array_equal(halfway[0], always[0])


@pytest.mark.parametrize(("value", "fault"), [(float("nan"), "not of numbers"), (-1.0, "black")])
def test_a_black_image_or_one_of_no_numbers_is_an_error_that_names_it(tiny, monkeypatch, value, fault):
    monkeypatch.setattr(tiny, "decode", lambda latents: torch.full((len(latents), 3, 16, 16), value))
    with pytest.raises(UserError, match=rf"'a red dog', seed 7: the image is {fault}; try dtype float32"):
        generate(tiny, None, "a red dog", seeds=[7], steps=1)
