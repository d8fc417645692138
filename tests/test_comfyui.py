"""The ComfyUI node, loaded as ComfyUI loads a folder, with stand-ins for the two modules of ComfyUI that it uses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lorarar
from lorarar.lora.adapter import Adapter
from lorarar.recipe import Part, Recipe

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples/pocket"

COMFYUI = '''
"""Stands for ComfyUI: its folders, its patching of models, its import of a folder of nodes."""
import importlib.util, json, os, sys, types
from pathlib import Path

node_folder, home, calls = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
folders = {"loras": [str(home / "loras")]}

paths = types.ModuleType("folder_paths")
paths.models_dir = str(home)
paths.add_model_folder_path = lambda name, folder: folders.setdefault(name, []).append(folder)
paths.get_folder_paths = lambda name: list(folders[name])
def listed(name):
    return sorted(file.name for folder in folders[name] if os.path.isdir(folder) for file in Path(folder).iterdir())
def full_path(name, file):
    found = [path for folder in folders[name] if (path := os.path.join(folder, file)) and os.path.isfile(path)]
    return found[0] if found else None
paths.get_filename_list, paths.get_full_path = listed, full_path
sys.modules["folder_paths"] = paths

def load_lora_for_models(model, clip, lora, strength_model, strength_clip):
    from safetensors.torch import save_file
    save_file(lora, home / "patched.safetensors")
    patch = lambda what, strength: None if what is None else f"{what} patched by {strength}"
    return patch(model, strength_model), patch(clip, strength_clip)
comfy, sd = types.ModuleType("comfy"), types.ModuleType("comfy.sd")
comfy.__path__, comfy.sd, sd.load_lora_for_models = [], sd, load_lora_for_models
sys.modules |= {"comfy": comfy, "comfy.sd": sd}

name = node_folder.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, os.path.join(node_folder, "__init__.py"))
module = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

(key, node), = module.NODE_CLASS_MAPPINGS.items()
inputs = node.INPUT_TYPES()
defaults = {}
for widget, (kind, *more) in inputs["required"].items():
    defaults[widget] = more[0].get("default", kind[0]) if more else kind[0]
print(json.dumps({
    "name": module.NODE_DISPLAY_NAME_MAPPINGS[key], "inputs": inputs, "types": node.RETURN_TYPES,
    "function": node.FUNCTION, "category": node.CATEGORY,
}))
for call in calls:
    try:
        report = {"changed": node.IS_CHANGED(**defaults | call)} | getattr(node(), node.FUNCTION)(**defaults | call)
        patched = home / "patched.safetensors"
        if patched.exists():
            patched.rename(home / f"{report['result'][0]}.safetensors")
    except Exception as error:
        report = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(report))
'''


PAIR = {"content": "dog8.safetensors", "style": "glowing.safetensors"}
SAVE = {"method": "dare", "options": "density=0.4\nseed=3\n", "save_as": "both"}
CALLS = {
    "patch": {"method": "direct", "content_weight": 0.8, "style_weight": 0.5, "strength_model": 0.9, "model": "M"},
    "clip": {"method": "average", "model": "N", "clip": "C"},
    "save": SAVE,
    "again": SAVE,
    "replace": SAVE | {"replace": True, "options": "density=0.4\nseed=4"},
    "scaled": {"method": "nplora", "style_weight": 0.5, "content_blocks": "mid_block=0\nup_blocks=2", "model": "S"},
    "hypernet": {"method": "lorarar", "hypernet": "hypernet.safetensors", "model": "H"},
    "elsewhere": {"save_as": "../elsewhere"},
    "blocks": {"content_blocks": "up_blocks.7=0.5"},
    "factor": {"style_blocks": "mid_block"},
    "value": {"method": "ties", "options": "density=2"},
    "form": {"method": "ties", "options": "nonsense"},
    "no hypernet": {"method": "lorarar"},
    "gone": {"content": "gone.safetensors"},
}


def start(home: Path, calls: list[dict], code: str = COMFYUI) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, str(ROOT / "integrations/comfyui"), str(home), json.dumps(calls)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=home, env=environment)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's folder of models, with two LoRAs and a hypernetwork in it."""
    home = tmp_path_factory.mktemp("models")
    for folder, names in (("loras", ("dog8", "glowing")), ("lorarar", ("hypernet",))):
        (home / folder).mkdir()
        for name in names:
            (home / folder / f"{name}.safetensors").symlink_to(EXAMPLES / f"{name}.safetensors")
    return home


@pytest.fixture(scope="module")
def reports(home: Path) -> dict[str, dict]:
    """The node's description of itself, and its answer to each call, from one process: torch is slow to import."""
    done = start(home, [PAIR | call for call in CALLS.values()])
    assert done.returncode == 0, done.stderr
    return dict(zip(["node", *CALLS], map(json.loads, done.stdout.splitlines()), strict=True))


def assert_same(file: Path, method: str, parts: tuple = (), **options: object) -> None:
    """The file holds the very factors of `lorarar.merge` in its own precision, under names that ComfyUI reads whole."""
    found = Adapter.load(file)
    (dtype,) = {factors.down.dtype for factors in found.matrices.values()}
    files = EXAMPLES / "dog8.safetensors", EXAMPLES / "glowing.safetensors"
    wanted = lorarar.merge(*(parts or files), method=None if parts else method, dtype=dtype, **options)
    assert isinstance(wanted, Adapter) and found.format == "kohya" and dtype == torch.float16
    assert found.matrices.keys() == wanted.matrices.keys()
    for name, factors in wanted.matrices.items():
        assert all(map(torch.equal, found.matrices[name], factors)), name


def test_the_node_is_as_comfyui_wants_it(reports: dict[str, dict]) -> None:
    node = reports["node"]
    assert node["name"] == "Merge LoRAs (lorarar)" and node["types"] == ["MODEL", "CLIP", "STRING"]
    assert node["function"] == "merge" and node["category"].startswith("loaders/")
    required = node["inputs"]["required"]
    assert required["content"][0] == ["dog8.safetensors", "glowing.safetensors"]
    wanted = [m.name for m in lorarar.methods().values() if not m.schedule and m.needs != "base+images"]
    assert required["method"][0] == wanted
    assert node["inputs"]["optional"]["hypernet"][0] == ["(none)", "hypernet.safetensors"]


def test_it_patches_a_model_with_the_merge(reports: dict[str, dict], home: Path) -> None:
    report = reports["patch"]
    assert report["result"][:2] == ["M patched by 0.9", None] and len(report["changed"]) == 2
    assert "kohya format" in report["result"][2] and report["ui"]["text"] == [report["result"][2]]
    assert_same(home / "M patched by 0.9.safetensors", "direct", weights=(0.8, 0.5))
    assert reports["clip"]["result"][:2] == ["N patched by 1.0", "C patched by 1.0"]
    assert_same(home / "N patched by 1.0.safetensors", "average")
    parts = (
        Part("content", EXAMPLES / "dog8.safetensors", blocks={"mid_block": 0, "up_blocks": 2}),
        Part("style", EXAMPLES / "glowing.safetensors", 0.5),
    )
    assert_same(home / "S patched by 1.0.safetensors", "nplora", parts=(Recipe(parts, "nplora"),))
    assert len(reports["hypernet"]["changed"]) == 3
    assert_same(home / "H patched by 1.0.safetensors", "lorarar", hypernet=EXAMPLES / "hypernet.safetensors")


def test_it_saves_without_a_model_and_replaces_only_when_told(reports: dict[str, dict], home: Path) -> None:
    assert reports["save"]["result"][:2] == [None, None]
    error = reports["again"]["error"]
    assert error.startswith("UserError:") and "both.safetensors: exists" in error and "\n" not in error
    assert "error" not in reports["replace"]
    assert_same(home / "loras/both.safetensors", "dare", density=0.4, seed=4)


@pytest.mark.parametrize(
    "call, message",
    [
        ("elsewhere", "save_as ../elsewhere: give a plain name"),
        ("blocks", "content.blocks.up_blocks.7: fits no layer"),
        ("factor", "style_blocks mid_block: write it as BLOCK=FACTOR"),
        ("value", "density 2"),
        ("form", "NAME=VALUE"),
        ("no hypernet", "needs a trained hypernetwork"),
        ("gone", "gone.safetensors: not in ComfyUI's folder loras"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    reports: dict[str, dict], home: Path, call: str, message: str
) -> None:
    error = reports[call]["error"]
    assert error.startswith("UserError: ") and message in error and "\n" not in error
    assert {path.stem for path in (home / "loras").iterdir()} == {"dog8", "glowing", "both"}
    assert not (home / "elsewhere.safetensors").exists()


def test_it_says_what_to_do_where_lorarar_is_not_installed(home: Path) -> None:
    done = start(home, [], "import sys; sys.modules['lorarar'] = None\n" + COMFYUI)
    assert "ImportError: lorarar is not installed in ComfyUI's Python: see README.md" in done.stderr
