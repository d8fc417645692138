"""Stage followed: one method's figures under a name of their own, for `dvc metrics diff` of two methods."""

from __future__ import annotations

import shutil

from lorarar.files import atomic
from stages.shared.context import Context, present
from stages.shared.entry_point import run


def main(context: Context) -> None:
    """Copy them."""
    name = f"{context.params.follow}-{context.params.evaluate.splits[0]}.json"
    with atomic(context.results / "followed.json") as temporary:
        shutil.copyfile(present(context.results / "metrics" / name), temporary)


if __name__ == "__main__":
    run(main)
