"""Stage images: the reference pictures of every subject and style of the bank."""

from __future__ import annotations

import shutil
from pathlib import Path

from lorarar import pictures
from lorarar.errors import UserError
from lorarar.files import sha256
from stages.context import Context, collect
from stages.run import run


def main(context: Context) -> None:
    """Draw the pictures of the world."""
    from lorarar.pocket.world import World

    world = World.load()
    drawn = Path(".work") / context.base / "images"
    shutil.rmtree(drawn, ignore_errors=True)
    for subject in context.subjects:
        for index in range(subject.images):
            pictures.write(drawn / f"subjects/{subject.name}/{index:02}.png", world.picture(subject.name, index))
    for style in context.styles:
        pictures.write(drawn / f"styles/{style.name}/00.png", world.style_picture(style.name))
    refuse_twins(drawn)
    collect(context.artifacts / "images", {kind: drawn / kind for kind in ("subjects", "styles")})


def refuse_twins(folder: Path) -> None:
    """Raise `UserError` if two subjects or styles have a picture in common: one may be trained on, the other tested."""
    seen: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.png")):
        twin = seen.setdefault(sha256(path), path)
        if twin.parent != path.parent:
            raise UserError(f"{path}: the same picture as {twin}; no picture may belong to two subjects or styles")


if __name__ == "__main__":
    run(main)
