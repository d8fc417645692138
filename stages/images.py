"""Stage images: the reference pictures of every subject and style of the bank."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from lorarar import pictures
from lorarar.errors import UserError
from lorarar.files import sha256
from slurm.local import cores
from slurm.task import WORK
from stages.shared.context import Context, collect, present
from stages.shared.entry_point import run


def main(context: Context) -> None:
    """Draw the pictures of the miniature world, or fetch the photographs that world.yaml names."""
    world = yaml.safe_load(present(context.data / "world.yaml").read_text(encoding="utf-8"))
    out = context.work / "images"
    if not context.plan:
        shutil.rmtree(out, ignore_errors=True)
    if "photographs" in world:
        photograph(context, Path(world["photographs"]), out)
    else:
        draw(context, out)
    refuse_twins(out)
    collect(context.artifacts / "images", {path.name: path for path in out.iterdir()})
    shutil.rmtree(out)


def draw(context: Context, out: Path) -> None:
    """Pictures of the miniature world."""
    from lorarar.pocket.world.world import World

    if context.plan:
        print(f"{sum(subject.images for subject in context.subjects) + len(context.styles)} pictures to draw")
        raise SystemExit(0)
    world = World.load(scheme=context.params.evaluate.scheme)
    for subject in context.subjects:
        for index in range(subject.images):
            pictures.write(out / f"subjects/{subject.name}/{index:02}.png", world.picture(subject.name, index))
    for style in context.styles:
        pictures.write(out / f"styles/{style.name}/00.png", world.style_picture(style.name))


def photograph(context: Context, folder: Path, out: Path) -> None:
    """Photographs and their attribution. Downloads are kept and serve every base."""
    from lorarar.data.photographs import MIRROR, Photographs, develop

    photographs = Photographs.load(folder, WORK / "photographs")
    wanted = photographs.wanted(context.subjects, context.styles)
    if context.plan:
        print(photographs.plan(wanted))
        raise SystemExit(0)
    try:
        files = photographs.fetch(wanted, os.environ.get(MIRROR, ""))
    except UserError as error:
        raise UserError(
            f"{error}\nparams.yaml: recipes.{context.params.recipe}.bank can leave out missing ones"
        ) from None

    def write(name: str) -> None:
        pictures.write(out / f"{name}.png", develop(files[name], photographs.sources.picture))

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(write, files))
    attribution = photographs.attribution(context.subjects, context.styles)
    (out / "ATTRIBUTION.md").write_text(attribution, encoding="utf-8")


def refuse_twins(folder: Path) -> None:
    """Raise `UserError` if two subjects or styles have a picture in common: one may be trained on, the other tested."""
    seen: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.png")):
        twin = seen.setdefault(sha256(path), path)
        if twin.parent != path.parent:
            raise UserError(f"{path}: the same picture as {twin}; no picture may belong to two subjects or styles")


if __name__ == "__main__":
    run(main)
