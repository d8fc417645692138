"""Stage headline: copy one method's figures to a fixed file, so that `dvc metrics diff` compares two methods."""

from __future__ import annotations

import shutil

from lorarar.files import atomic
from stages.shared.context import Context, present
from stages.shared.entry_point import run


def main(context: Context) -> None:
    """Copy the figures."""
    name = f"{context.params.headline_method}-{context.params.evaluate.splits[0]}.json"
    with atomic(context.results / "headline.json") as temporary:
        shutil.copyfile(present(context.results / "metrics" / name), temporary)


if __name__ == "__main__":
    run(main)
