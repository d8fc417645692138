"""Merges two LoRAs and draws pictures with the results, as the command `lorarar generate` does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorarar import pictures, shipped
from lorarar.api import merge
from lorarar.data.catalog import Catalog
from lorarar.diffusion.backbone import Backbone, LongPrompts
from lorarar.diffusion.sampling import generate
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from lorarar.merging.klora import Schedule
from lorarar.merging.registry import methods as known_methods
from lorarar.pictures import Picture
from lorarar.shipped import examples

GUIDANCE = {True: 1.5, False: 7.5}
"""Guidance scale of pocket, and of other bases."""


def show(
    content: str,
    style: str,
    out: Path,
    *,
    methods: Sequence[str] = ("lorarar",),
    base: Path | None = None,
    hypernet: Path | None = None,
    prompt: str | None = None,
    number: int = 4,
    seed: int = 0,
    steps: int = 25,
    guidance: float | None = None,
    long_prompts: LongPrompts = "cut",
    force: bool = False,
) -> list[str]:
    """Merges by each method, and writes its pictures to `<out>/<method>/00.png` and so on, and all to one overview.

    Parameters
    ----------
    content, style
        Files, or names of `examples`.
    base
        Folder of the base model that the LoRAs were made for; None is pocket.
    hypernet
        File for the method lorarar; the one among the examples is only for pocket.
    prompt
        Words that the LoRAs were trained on, subject and style together; filled in for examples.
    seed
        Seed of the first picture; the others count up from it.
    long_prompts
        See `Backbone.encode_prompts`.

    Returns
    -------
    list of str
        Lines that tell how long each method's merging and sampling took, and the prompt.

    Raises
    ------
    UserError
        A name or file is unknown, or made for another base; then nothing is written.
    """
    from tqdm import tqdm

    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder for the pictures")
    if out.exists() and any(out.iterdir()) and not force:
        raise UserError(f"{out}: exists; give another folder, or --force to replace pictures in it")
    files = [_find(name) for name in (content, style)]
    pocket = base is None
    if base is None:
        base = shipped.root() / "data/pocket/base"
    prompt = prompt or prompt_of(content, style)
    if "lorarar" in methods and hypernet is None:
        if not pocket:
            raise UserError("method lorarar: needs a hypernetwork for this base; give --hypernet, or --method direct")
        hypernet = shipped.root() / "examples/pocket/hypernet.safetensors"
    merged: dict[str, tuple[Adapter | Schedule, float]] = {}
    for method in methods:
        begun = time.monotonic()
        options: dict[str, Any] = {"hypernet": hypernet} if method == "lorarar" else {}
        merged[method] = merge(*files, method=method, **options), time.monotonic() - begun
    backbone = Backbone.load(base)
    titles = {name: row.title for name, row in known_methods().items()}
    rows, notes, weight = [], [], GUIDANCE[pocket] if guidance is None else guidance
    with tqdm(total=len(merged) * number, unit="picture") as bar:
        for method, (adapter, seconds) in merged.items():
            begun, made = time.monotonic(), list[Picture]()
            bar.set_description(titles[method])
            for start in range(0, number, 4):
                seeds = [seed + index for index in range(start, min(start + 4, number))]
                made += generate(
                    backbone, adapter, prompt, seeds=seeds, steps=steps, guidance=weight, long_prompts=long_prompts
                )
                bar.update(len(seeds))
            for index, picture in enumerate(made):
                pictures.write(out / method / f"{index:02}.png", picture)
            rows.append((titles[method], made))
            made_in = f"merged in {seconds:.2f} s, {number} pictures in {time.monotonic() - begun:.1f} s"
            notes.append(f"{titles[method]}: {made_in}")
    notes.append(f"prompt: {prompt}")
    _overview(out / "overview.webp", content, style, rows, seed)
    return notes


def find_base(name: str) -> Path | None:
    """Folder of a base model: `data/<name>/base` if there is one, else `name` is the folder itself; None is pocket."""
    return None if name == "pocket" else shipped.base(name)


def _find(name: str) -> Path:
    """Path of a LoRA: the example of that name, or else the file."""
    known = examples()
    if name in known:
        return known[name]
    if not Path(name).exists():
        install = "and the examples are not here: run this in a clone of the repository, or install 'lorarar[pocket]'"
        raise UserError(
            f"{name}: no such file, " + (f"nor one of the examples ({', '.join(known)})" if known else install)
        )
    return Path(name)


def prompt_of(content: str, style: str) -> str:
    """The prompt of a subject and a style of the examples.

    Raises
    ------
    UserError : one of them is no example.
    """
    try:
        catalog = Catalog.load(shipped.root())
        return catalog.pair_prompt(catalog.subjects[content], catalog.styles[style])
    except (KeyError, UserError):
        raise UserError(
            f"{content} and {style}: give --prompt, the words they were trained on, such as 'a sks cat in oil style'"
        ) from None


def _overview(path: Path, content: str, style: str, rows: list[tuple[str, list[Picture]]], seed: int) -> None:
    """Writes all pictures on one sheet; for examples with the references and the known truth."""
    from lorarar.report.figures import grid

    columns = [f"seed {seed + index}" for index in range(len(rows[0][1]))]
    if {content, style} <= examples().keys():
        from lorarar.pocket.world.world import World

        world = World.load(shipped.root())
        before = [world.picture(content, 0), world.style_picture(style)]
        after = [world.truth(content, style, seed)]
        columns = [content, style, *columns, "known truth"]
        rows = [(label, [*before, *made, *after]) for label, made in rows]
    grid(path, columns, rows)
