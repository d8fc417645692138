"""A ComfyUI node that merges two LoRAs with lorarar. ComfyUI imports this folder from its `custom_nodes`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import folder_paths

try:
    from lorarar import describe
    from lorarar.api import merge_recipe
    from lorarar.cli.options import parse_settings
    from lorarar.errors import UserError
    from lorarar.lora import base_models, formats
    from lorarar.lora.adapter import Adapter
    from lorarar.merging.registry import methods
    from lorarar.recipe import Part, Recipe
except ModuleNotFoundError as error:
    raise ImportError(f"{error.name} is not installed in ComfyUI's Python: see README.md in {__file__}") from None

NONE = "(none)"
HYPERNETS = "lorarar"
"""The folder of trained hypernetworks among ComfyUI's models."""

folder_paths.add_model_folder_path(HYPERNETS, str(Path(folder_paths.models_dir, HYPERNETS)))


class MergeLoRAs:
    """Merges two LoRA files, patches a model with the result as ComfyUI's own loader does, and saves it if asked."""

    CATEGORY = "loaders/lorarar"
    DESCRIPTION = "Merges two LoRAs into one by any method of lorarar that makes one LoRA."
    FUNCTION = "merge"
    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("MODEL", "CLIP", "notes")
    OUTPUT_NODE = True  # it may stand alone, to save a file

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:
        """Inputs and widgets; the lists of files are read again when the page is refreshed."""
        files = folder_paths.get_filename_list("loras")
        names = [row.name for row in methods().values() if not row.schedule and row.needs != "base+images"]
        weight = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05}
        blocks = {"default": "", "multiline": True, "tooltip": "Factors of blocks, one a line: up_blocks.0-1=0.5"}
        strength = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}
        return {
            "required": {
                "content": (files, {"tooltip": "LoRA of the subject."}),
                "style": (files, {"tooltip": "LoRA of the style."}),
                "method": (names, {"default": "direct", "tooltip": "`lorarar methods` describes them."}),
                "content_weight": ("FLOAT", weight),
                "style_weight": ("FLOAT", weight),
                "options": (
                    "STRING",
                    {"default": "", "multiline": True, "tooltip": "Options of the method, one a line: density=0.3"},
                ),
                "strength_model": ("FLOAT", strength),
                "strength_clip": ("FLOAT", strength),
                "save_as": ("STRING", {"default": "", "tooltip": "Name in the loras folder; empty saves nothing."}),
                "replace": ("BOOLEAN", {"default": False, "tooltip": "Replace a saved file of this name."}),
            },
            "optional": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "hypernet": (
                    [NONE, *folder_paths.get_filename_list(HYPERNETS)],
                    {"tooltip": f"For method lorarar: a trained hypernetwork in models/{HYPERNETS}."},
                ),
                "content_blocks": ("STRING", blocks),
                "style_blocks": ("STRING", blocks),
            },
        }

    @classmethod
    def IS_CHANGED(cls, content: str, style: str, hypernet: str = NONE, **_: Any) -> list[tuple[int, int]]:
        """Sizes and times of the files: ComfyUI repeats the merge when one was replaced under its name."""
        found = [_path("loras", content), _path("loras", style)]
        found += [_path(HYPERNETS, hypernet)] if hypernet != NONE else []
        return [(stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in found)]

    def merge(
        self,
        content: str,
        style: str,
        method: str,
        content_weight: float,
        style_weight: float,
        options: str,
        strength_model: float,
        strength_clip: float,
        save_as: str,
        replace: bool,
        model: Any = None,
        clip: Any = None,
        hypernet: str = NONE,
        content_blocks: str = "",
        style_blocks: str = "",
    ) -> dict[str, Any]:
        """Merges the files and patches `model` and `clip`.

        Returns
        -------
        dict
            "result": model, clip and lorarar's notes; "ui": the notes, for the page.

        Raises
        ------
        UserError : as `lorarar merge`; or the name is no plain one.
        """
        given = parse_settings(_lines(options))
        if hypernet != NONE:
            given["hypernet"] = _path(HYPERNETS, hypernet)
        parts = tuple(
            Part(side, _path("loras", file), weight, blocks=_factors(f"{side}_blocks", blocks), where=side)
            for side, file, weight, blocks in (
                ("content", content, content_weight, content_blocks),
                ("style", style, style_weight, style_blocks),
            )
        )
        with tempfile.TemporaryDirectory() as folder:
            out = _saved(save_as) if save_as.strip() else Path(folder, "merged.safetensors")
            notes = merge_recipe(Recipe(parts, method, given, _format(parts[0].source)), out, force=replace)
            if model is not None or clip is not None:
                model, clip = _patched(model, clip, out, strength_model, strength_clip)
        text = "\n".join(notes)
        return {"ui": {"text": [text]}, "result": (model, clip, text)}


def _patched(model: Any, clip: Any, file: Path, strength_model: float, strength_clip: float) -> tuple[Any, Any]:
    from comfy.sd import load_lora_for_models
    from safetensors.torch import load

    # In memory, not mapped: Windows deletes no file that is mapped.
    return load_lora_for_models(model, clip, load(file.read_bytes()), strength_model, strength_clip)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _factors(widget: str, text: str) -> dict[str, float]:
    """Factors of blocks from lines such as `up_blocks.0-1=0.5`."""
    found = {}
    for line in _lines(text):
        name, _, value = line.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise UserError(f"{widget} {line}: write it as BLOCK=FACTOR, such as up_blocks.0-1=0.5") from None
    return found


def _format(file: Path) -> str:
    """The format that ComfyUI reads whole; of diffusers' files, for example, it drops the attention layers."""
    adapter = Adapter.load(file)
    known = (name for name in base_models.possible(adapter.layers) if name in describe.BASES)
    return formats.format_for("comfyui", describe.claimed(adapter.metadata) or next(known, None))


def _path(folder: str, name: str) -> Path:
    found = folder_paths.get_full_path(folder, name)
    if found is None:
        raise UserError(f"{name}: not in ComfyUI's folder {folder}; refresh the page and choose again")
    return Path(found)


def _saved(name: str) -> Path:
    """The file in the first loras folder; a workflow, which may come from anywhere, names no other folder."""
    name = name.strip().removesuffix(".safetensors")
    if not name or name.startswith(".") or any(mark in name for mark in '/\\:*?"<>|\0'):
        raise UserError(f"save_as {name}: give a plain name, such as cat_watercolor")
    return Path(folder_paths.get_folder_paths("loras")[0], f"{name}.safetensors")


NODE_CLASS_MAPPINGS = {"lorarar.MergeLoRAs": MergeLoRAs}
NODE_DISPLAY_NAME_MAPPINGS = {"lorarar.MergeLoRAs": "Merge LoRAs (lorarar)"}
