"""Stage images: the reference pictures of every subject and style of the bank."""

from __future__ import annotations

import shutil
from pathlib import Path

from lorarar import pictures
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
    collect(context.artifacts / "images", {kind: drawn / kind for kind in ("subjects", "styles")})


if __name__ == "__main__":
    run(main)
