"""Stage base: train a drawn world's base and its judges from artwork alone; shipped, and so frozen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lorarar.errors import UserError
from lorarar.files import atomic, sha256
from slurm.local import call_all
from stages.shared.context import Context
from stages.shared.entry_point import run

TEACHER = Path("data/pocket/base")


def main(context: Context) -> None:
    """Train; an interrupted run continues from its checkpoints."""
    from lorarar.pocket.train import base, distilled, judges

    knobs = context.params.bases[context.base].base
    if knobs is None:
        raise UserError(f"base {context.base}: is trained elsewhere; `lorarar doctor --base {context.base}` fetches it")
    work = context.work / "base"
    common = {"pictures": knobs.pictures, "unet_steps": knobs.unet_steps, "workers": context.workers}
    if knobs.vae_steps and knobs.judge_steps:
        made = base.make(Path(), work, vae_steps=knobs.vae_steps, **common)
        shutil.copytree(made, context.data / "base", dirs_exist_ok=True)
        calls: dict[str, dict[str, Any]] = {
            name: {"arguments": [name, "--work", str(work / "judges"), "--steps", str(steps)]}
            for name, steps in knobs.judge_steps.items()
        }
        call_all(calls, judges.main, context.workers, "judges")
    else:  # a lighter UNet; links in the folder stand for what is the teacher's
        made = distilled.make(Path(), TEACHER, work, **common)
        shutil.copytree(made, context.data / "base", dirs_exist_ok=True)
    write_checksums(context.data)


def write_checksums(data: Path) -> None:
    """List every shipped file under base/ and judges/ with its SHA-256, as `sha256sum -c` reads it."""
    files = sorted(path for folder in ("base", "judges") for path in (data / folder).rglob("*") if path.is_file())
    with atomic(data / "SHA256SUMS") as temporary:
        temporary.write_text("".join(f"{sha256(path)}  {path.relative_to(data)}\n" for path in files))


if __name__ == "__main__":
    run(main)
