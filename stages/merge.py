"""Stage merge: for every method, control and evaluated pair, the adapter to apply and the prompt."""

from __future__ import annotations

import shutil
from typing import Any

from lorarar.data.catalog import Pair, pair_name
from lorarar.data.controls import CONTROLS
from lorarar.files import write_json
from lorarar.lora.adapter import Adapter
from lorarar.merging.klora import Schedule
from lorarar.merging.registry import METHODS
from stages.shared.context import Context, collect
from stages.shared.entry_point import run
from stages.shared.trained import TRAINED


def main(context: Context) -> None:
    """Merge everything."""
    hidden, splits = context.work / "merge", context.params.evaluate.splits
    shutil.rmtree(hidden, ignore_errors=True)
    for name in context.params.evaluate.methods:
        # Every method that is named has a plan; it is empty where the method is impossible.
        pairs = {split: context.pairs(split) if name in context.methods else [] for split in splits}
        plan = {split: {pair_name(*pair): _plan(context, name, pair) for pair in pairs[split]} for split in splits}
        write_json(hidden / name / "plan.json", plan)
        for pair in (pair for split in splits for pair in pairs[split]):
            adapter = _adapter(context, name, pair)
            if isinstance(adapter, Adapter):
                adapter = adapter.computed()
                adapter.check(f"{name} of {pair_name(*pair)}")  # NaN would be sampled as black
            if adapter:
                adapter.save(hidden / name / f"{pair_name(*pair)}.safetensors")
    collect(context.artifacts / "merge", {name: hidden / name for name in context.params.evaluate.methods})
    shutil.rmtree(hidden)  # a hundred gigabytes for SDXL


def _plan(context: Context, name: str, pair: Pair) -> dict[str, Any]:
    """The plan of stage generate for a pair; where the prompt is None, nothing is sampled."""
    if name in METHODS:
        schedule = METHODS[name].schedule
        return {"prompt": context.catalog.pair_prompt(*pair), "adapter": True, "schedule": schedule, "vae": True}
    control = CONTROLS[name]
    prompts = {
        "pair": context.catalog.pair_prompt(*pair),
        "class": context.catalog.class_prompt(*pair),
        None: None,
    }
    return {
        "prompt": prompts[control.prompt],
        "adapter": control.adapter is not None,
        "schedule": False,
        "vae": control.vae,
    }


def _adapter(context: Context, name: str, pair: Pair) -> Adapter | Schedule | None:
    content, style = (Adapter.load(context.adapter(member)) for member in pair)
    if name in CONTROLS:
        return {"content": content, "style": style, None: None}[CONTROLS[name].adapter]
    options: dict[str, Any] = dict(context.knobs.merge.get(name, {}))
    for row in TRAINED.values():
        if row.method == name:
            file = pair_name(*pair) if row.per_pair else row.name
            options[row.option] = row.load(context.artifacts / row.name / f"{file}.safetensors")
    return METHODS[name].merge(content, style, **options)


if __name__ == "__main__":
    run(main)
