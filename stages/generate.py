"""Stage generate: the images of one method on one split, from the same seeds as every other method's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorarar import pictures
from lorarar.errors import UserError
from stages.shared.context import Context, backbone, collect
from stages.shared.entry_point import run

CODE = [
    "lorarar/lora/adapter.py",
    "lorarar/diffusion/backbone.py",
    "lorarar/device.py",
    "lorarar/lora",
    "lorarar/diffusion/sampling.py",
    "lorarar/diffusion/hub.py",
    "lorarar/merge/columns.py",
    "lorarar/merge/klora.py",
    "lorarar/parallel.py",
    "lorarar/diffusion/vae.py",
    "stages/generate.py",
]
TRUTH_CODE = ["lorarar/pocket/world/artwork.py", "lorarar/pocket/world/styles.py", "lorarar/pocket/world/world.py"]


def sample(
    folder: Path,
    base: dict[str, Any],
    adapter: str | None,
    prompt: str,
    seeds: list[int],
    settings: dict[str, Any],
    schedule: bool = False,
) -> None:
    """Task: sample the images of one prompt with an adapter, a schedule of two, or the base alone."""
    from lorarar.diffusion.sampling import generate
    from lorarar.lora.adapter import Adapter
    from lorarar.merge.klora import Schedule

    loaded = (Schedule if schedule else Adapter).load(adapter) if adapter else None
    images = generate(backbone(**base), loaded, prompt, seeds=seeds, **settings)
    for index, image in enumerate(images):
        pictures.write(folder / f"{index:02}.png", image)


def draw(folder: Path, base: dict[str, Any], subject: str, style: str, seeds: list[int], vae: bool) -> None:
    """Task: render the truth about one pair, and with `vae` let that encode and decode it."""
    from lorarar.diffusion.backbone import to_images, to_tensor
    from lorarar.pocket.world.world import World

    world = World.load(new=True)
    truth = [world.truth(subject, style, seed) for seed in seeds]
    if vae:
        model = backbone(**base)
        truth = to_images(model.decode(model.encode_images(to_tensor(truth))))
    for index, image in enumerate(truth):
        pictures.write(folder / f"{index:02}.png", image)


def main(context: Context) -> None:
    """Sample those pairs that are not there yet."""
    method, split = context.arguments
    settings = context.knobs.generate.model_dump()
    number = settings.pop("images_per_pair")
    base = context.model()
    merged = context.artifacts / "merge" / method
    plan = _plan(merged / "plan.json", split)
    if method not in context.methods:
        print(f"generate {method} {split}: no images: nobody knows the truth about {context.base}'s photographs")
    function = draw if any(entry["prompt"] is None for entry in plan.values()) else sample
    tasks: dict[str, tuple[dict[str, Any], list[Path]]] = {}
    for name, entry in plan.items():
        subject, style = name.split("+")
        # The same for every method, whatever the others are.
        seeds = [context.seed("generate", name, index) for index in range(number)]
        if function is draw:
            arguments: dict[str, Any] = {
                "base": base,
                "subject": subject,
                "style": style,
                "seeds": seeds,
                "vae": entry["vae"],
            }
            tasks[name] = (arguments, [context.data / "world.yaml"])
            continue
        adapter = merged / f"{name}.safetensors" if entry["adapter"] else None
        arguments = {
            "base": base,
            "adapter": str(adapter) if adapter else None,
            "prompt": entry["prompt"],
            "seeds": seeds,
            "settings": settings,
        }
        if entry["schedule"]:
            arguments["schedule"] = True
        tasks[name] = (arguments, [adapter] if adapter else [])
    code = CODE + TRUTH_CODE if function is draw else CODE
    store = context.store("generate", code, context.data / "base")
    done = context.fan_out(store, function, tasks, f"generate {method} {split}")
    collect(context.artifacts / "generate" / method / split, done)


def _plan(path: Path, split: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[split]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: no plan for {split} there ({error!r}); run `dvc repro merge`") from None


if __name__ == "__main__":
    run(main, "method", "split")
