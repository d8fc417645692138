"""Metadata that tells other programs what a LoRA file is: its base, its rank, its trigger words.

The keys are those of sd-scripts (`ss_`) and of the ModelSpec standard (`modelspec.`): A1111, Forge, InvokeAI and
ComfyUI read them (docs/compatibility.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple


class Names(NamedTuple):
    """A base model's names in metadata."""

    version: str  # ss_base_model_version
    architecture: str  # modelspec.architecture
    resolution: str
    v2: bool = False  # ss_v2


BASES = {
    "SDXL": Names("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora", "1024x1024"),
    "Stable Diffusion 1.5": Names("sd_v1", "stable-diffusion-v1/lora", "512x512"),
    "Stable Diffusion 2": Names("sd_v2", "stable-diffusion-v2-512/lora", "512x512", v2=True),
}
HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "ss_new_sd_model_hash", "ss_sd_model_hash")
"""Entries that a change of the factors makes untrue (of the file), or that name one parent's checkpoint."""
TRIGGERS = ("modelspec.trigger_phrase", "ss_trigger_words", "trigger_words", "activation text")


def claimed(metadata: Mapping[str, str]) -> str | None:
    """The base that metadata names: a key of `BASES`; None if it names none of them."""
    version = metadata.get("ss_base_model_version", "").lower()
    architecture = metadata.get("modelspec.architecture", "").lower()
    if version.startswith("sdxl") or architecture.startswith("stable-diffusion-xl"):
        return "SDXL"
    if version.startswith("sd_v2") or architecture.startswith("stable-diffusion-v2") or metadata.get("ss_v2") == "True":
        return "Stable Diffusion 2"
    if version.startswith(("sd_v1", "sd_1")) or architecture.startswith("stable-diffusion-v1"):
        return "Stable Diffusion 1.5"
    return None


def triggers(metadata: Mapping[str, str]) -> list[str]:
    """Trigger words of a file, or the frequent tags of its training if it names none."""
    found = [metadata[key].strip() for key in TRIGGERS if metadata.get(key, "").strip()]
    return list(dict.fromkeys(found))


def tags(metadata: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """`ss_tag_frequency`: data set -> tag -> number of pictures; empty if it is not there or no such table."""
    try:
        found = json.loads(metadata.get("ss_tag_frequency", "{}"))
        return {str(name): {str(tag): int(n) for tag, n in table.items()} for name, table in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def merged(*parents: Mapping[str, str], base: str | None, rank: int, title: str, files: list[str]) -> dict[str, str]:
    """Metadata of a merge of several files: what all say, and what other programs read.

    Parameters
    ----------
    parents : metadata of each file; the first is the content's.
    base : a key of `BASES`, or None if none of them is sure.
    rank : the largest rank of its layers; factors carry alpha, so that alpha = rank.
    files : names of the files.
    """
    content = parents[0]
    kept = {key: value for key, value in content.items() if all(one.get(key) == value for one in parents)}
    kept = {key: value for key, value in kept.items() if key not in HASHES and not key.startswith("lorarar.")}
    kept |= {"modelspec.sai_model_spec": "1.0.0", "modelspec.title": title, "modelspec.merged_from": ", ".join(files)}
    kept |= {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(float(rank))}
    if phrases := list(dict.fromkeys(phrase for one in parents for phrase in triggers(one))):
        kept["modelspec.trigger_phrase"] = ", ".join(phrases)
    if table := {name: words for one in parents for name, words in tags(one).items()}:
        kept["ss_tag_frequency"] = json.dumps(table, sort_keys=True, ensure_ascii=False)
    words = [text for one in parents if (text := one.get("modelspec.tags"))]
    if words:
        kept["modelspec.tags"] = ", ".join(dict.fromkeys(", ".join(words).split(", ")))
    if base:
        kept |= of_base(base)
        kept |= {key: content[key] for key in of_base(base) if key in content and claimed(content) == base}
    return kept


def converted(metadata: Mapping[str, str], base: str | None, rank: int) -> dict[str, str]:
    """Metadata of a file in another format: without hashes of the old bytes, with what programs read of its base."""
    kept = {key: value for key, value in metadata.items() if not key.startswith(HASHES[:3])}
    kept |= {"ss_network_dim": str(rank), "ss_network_alpha": str(float(rank))} if "ss_network_dim" in kept else {}
    return (of_base(base) | kept) if base else kept


def of_base(base: str) -> dict[str, str]:
    """The entries by which programs know the base of a LoRA."""
    names = BASES[base]
    return {
        "ss_base_model_version": names.version,
        "ss_v2": str(names.v2),
        "modelspec.architecture": names.architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.resolution": names.resolution,
    }
