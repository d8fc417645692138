"""The extra of the package that installs a missing library."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

ADDS = {
    "diffusion": "samples pictures with a base model and trains LoRAs of it",
    "scoring": "judges pictures: CLIP-I, CLIP-T, DINO, MARS²",
    "server": "asks a judge behind an OpenAI-compatible server",
    "study": "lets people compare pictures in their browsers",
    "app": "merges in the browser: `lorarar app`",
    "pocket": "has the miniature base model and its example LoRAs",
    "benchmark": "runs the whole pipeline in a clone of the repository",
}
"""Extra -> what it does."""

DISTRIBUTIONS = {
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
    "open_clip": "open_clip_torch",
    "skimage": "scikit-image",
    "yaml": "PyYAML",
    "markupsafe": "Jinja2",
    "starlette": "fastapi",
    "tokenizers": "transformers",
    "huggingface_hub": "transformers",
}
"""Import names that differ from the name of the package that installs them, or come with another."""


def extra_of(module: str, command: str = "") -> str | None:
    """The extra that installs an importable module: the command's own, or the smallest; None if no extra does.

    Parameters
    ----------
    module : a name as in `ModuleNotFoundError.name`, such as "cv2" or "diffusers.utils".
    command : a command of `lorarar`, such as "study".
    """
    top = module.partition(".")[0]
    wanted = _plain(DISTRIBUTIONS.get(top, top))
    holding = [extra for extra, packages in extras().items() if wanted in packages]
    return min(holding, key=lambda extra: (extra != command, len(extras()[extra])), default=None)


def missing() -> dict[str, list[str]]:
    """Extra -> names of its packages that are not installed, in the order of `ADDS`."""
    packages = extras()
    return {extra: sorted(name for name in packages.get(extra, ()) if not _installed(name)) for extra in ADDS}


def extras() -> dict[str, set[str]]:
    """Extra -> names of the packages it adds, in lower case with hyphens; empty if the package is not installed."""
    try:
        lines = requires("lorarar") or []
    except PackageNotFoundError:
        lines = []
    found: dict[str, set[str]] = {extra: set() for extra in ADDS}
    parts: dict[str, list[str]] = {extra: [] for extra in ADDS}  # of an extra that includes others
    for line in lines:
        match = re.fullmatch(r"([\w.-]+)(?:\[([\w,]+)\])?.*extra == [\"'](\w+)[\"'].*", line)
        if not match or match[3] not in ADDS:
            continue
        if match[1] == "lorarar":
            parts[match[3]] += match[2].split(",")
        else:
            found[match[3]].add(_plain(match[1]))

    def whole(extra: str) -> set[str]:
        return found[extra].union(*map(whole, parts[extra]))

    return {extra: whole(extra) for extra in ADDS if whole(extra)}


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
