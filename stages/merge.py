"""Stage merge: keeps the merged LoRAs as files where `keep_merged` asks for them; stage generate merges by itself."""

from __future__ import annotations

from lorarar.merging.registry import METHODS
from stages.shared.context import Context, collect, present
from stages.shared.entry_point import run
from stages.shared.merging import merge_of


def main(context: Context) -> None:
    """Merge every evaluated pair by every method, or nothing."""
    out = context.artifacts / "merge"
    collect(out, {})
    for method in context.methods if context.params.keep_merged else []:
        for pair in context.evaluated if method in METHODS else []:
            merge = merge_of(context, method, pair)
            for path in merge.reads:
                present(path)
            merge.adapter().save(out / method / f"{merge.pair}.safetensors")


if __name__ == "__main__":
    run(main)
