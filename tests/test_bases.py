"""The data of each base against diffusers' own classes, built without weights."""

from __future__ import annotations

import diffusers
import pytest
import torch
from typer.testing import CliRunner

from lorarar import describe
from lorarar.cli import app
from lorarar.lora import base_models
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.bases import Base, bases, expand, named
from lorarar.lora.formats import FORMATS

# Billions of parameters of the transformers, as their model cards give them.
SIZES = {
    "FLUX.1": 12,
    "FLUX.2 dev": 32,
    "FLUX.2 klein 9B": 9,
    "FLUX.2 klein 4B": 4,
    "Chroma": 9,
    "Qwen-Image": 20,
    "Z-Image": 6,
    "Stable Diffusion 3 medium": 2,
    "Stable Diffusion 3.5 large": 8,
    "Wan 14B": 14,
    "Wan 5B": 5,
    "Wan 1.3B": 1.4,
}
NAMES = [base.name for base in bases()]


def model_of(base: Base) -> torch.nn.Module:
    with torch.device("meta"):
        return getattr(diffusers, base.model)(**base.configuration)


def blank(base: Base, part: str = "") -> Adapter:
    """An adapter of all linear layers whose paths have `part`, without numbers."""
    return Adapter(
        {
            path: Factors(torch.empty(4, columns, device="meta"), torch.empty(rows, 4, device="meta"))
            for path, (rows, columns) in base.shapes.items()
            if part in path
        }
    )


@pytest.mark.parametrize("name", NAMES)
def test_layers_and_shapes_are_those_of_the_class(name: str) -> None:
    base = named(name)
    model = model_of(base)
    # Attention of Stable Diffusion 1.5 begins and ends with convolutions of one pixel, which are matrices.
    found = {
        path: tuple(module.weight.shape[:2])
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        or (isinstance(module, torch.nn.Conv2d) and path.endswith((".proj_in", ".proj_out")))
    }
    assert base.shapes == found
    if name in SIZES:
        assert sum(one.numel() for one in model.parameters()) / 1e9 == pytest.approx(SIZES[name], rel=0.07)
    assert base.pipeline in dir(diffusers)


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_adapter_tells_its_base(name: str) -> None:
    base = named(name)
    part_of = {"pocket_light": "pocket or pocket_light", "Chroma": "FLUX.1 or Chroma"}
    part_of["Wan 14B"] = "Wan 14B or Wan 14B image-to-video"
    assert base_models.guess(blank(base).layers) == part_of.get(name, name)
    assert {base_models.component(path) for path in base.shapes} == {base.component}


def test_embeddings_alone_tell_nothing() -> None:
    assert base_models.possible(blank(named("FLUX.1"), "embedder").layers) == []


@pytest.mark.parametrize("name", NAMES)
def test_each_naming_scheme_names_each_layer_once(name: str) -> None:
    base = named(name)
    assert set(base.writes.values()) <= base.names.keys() | {"original"} and set(base.formats) <= set(FORMATS)
    for scheme, names in base.names.items():
        paths = [path for stacked in names.values() for path in stacked]
        assert len(paths) == len(set(paths)) and set(paths) <= base.shapes.keys()
        assert scheme == "xlabs" or set(paths) == base.shapes.keys(), scheme
        assert len({one.replace(".", "_") for one in names}) == len(names), "flattened names are told apart"
    assert {format for formats in base.programs.values() for format in formats} <= set(base.formats)


def test_patterns_stand_for_strings_in_order() -> None:
    assert list(expand("a.{2}.{x,y.{b,c}}")) == ["a.0.x", "a.0.y.b", "a.0.y.c", "a.1.x", "a.1.y.b", "a.1.y.c"]
    assert list(expand("{n}{m}", {"n": 2, "m": [7]})) == ["07", "17"]
    assert list(expand("{n}", {"n": 0})) == []


def test_metadata_names_the_base_that_it_was_made_for() -> None:
    for base in describe.BASES:
        entries = describe.of_base(base)
        if "ss_base_model_version" in entries or "modelspec.architecture" in entries:
            assert describe.claimed(entries) == base
    assert describe.claimed({"modelspec.architecture": "flux-1-schnell/lora"}) == "FLUX.1"
    assert describe.claimed({"ss_v2": "True"}) == "Stable Diffusion 2"


def test_the_command_lists_every_base() -> None:
    done = CliRunner().invoke(app, ["bases"])
    lines = done.stdout.splitlines()
    assert done.exit_code == 0 and len(lines) == 1 + len(NAMES)
    for base, line in zip(bases(), lines[1:], strict=True):
        assert line.startswith(base.name) and base.model in line and f" {len(base.shapes)} " in line
        assert line.endswith(", ".join(base.formats))
