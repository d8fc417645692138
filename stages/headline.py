"""Stage headline: put a few figures of one method into a fixed file, for `dvc metrics show` and `dvc metrics diff`."""

from __future__ import annotations

import json

from lorarar.files import write_json
from stages.shared.context import Context, present
from stages.shared.entry_point import run

FIGURES = ("clip_i", "clip_t", "dino", "mars2_average", "mars2_best", "style", "subject")
"""As many as a line of 120 characters holds."""


def main(context: Context) -> None:
    """Copy the figures; a base of photographs lacks those that only a drawn world has."""
    name = f"{context.params.headline_method}-{context.params.evaluate.splits[0]}.json"
    figures = json.loads(present(context.results / "metrics" / name).read_text(encoding="utf-8"))
    write_json(context.results / "headline.json", {key: figures[key] for key in FIGURES if key in figures})


if __name__ == "__main__":
    run(main)
