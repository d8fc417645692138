"""Stage bank: train one DreamBooth LoRA for every subject and every style."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarar.data.catalog import Subject
from slurm.job import asked_to_stop
from slurm.task import Task, state
from stages.shared.bank_members import Member, bank_member
from stages.shared.base_model import Setting, training_setting
from stages.shared.context import Context, Group, collect
from stages.shared.entry_point import run
from stages.shared.tracking import of_task, tracked


@dataclass(frozen=True)
class TrainAdapter:
    """Trains one adapter on the pictures of one member."""

    setting: Setting
    member: Member
    knobs: dict[str, Any]
    seed: int

    def run(self, folder: Path) -> None:
        from lorarar.training.checkpoint import Checkpoint
        from lorarar.training.dreambooth import train_adapter

        with tracked(*of_task(folder, self.member.name)) as log:
            adapter = train_adapter(
                self.setting.model.load(),
                self.member.pixels(self.setting.resolution),
                [self.member.prompt] * len(self.member.images),
                **self.knobs,
                rank=self.setting.rank,
                gradient_checkpointing=self.setting.gradient_checkpointing,
                eight_bit_adam=self.setting.eight_bit_adam,
                seed=self.seed,
                checkpoint=Checkpoint(state(folder), stop=asked_to_stop),
                progress=lambda step, loss: log(step, {"loss": loss}),
            )
        adapter.metadata["prompt"] = self.member.prompt
        adapter.save(folder / "adapter.safetensors")


def main(context: Context) -> None:
    """Train the adapters that are not there yet."""
    knobs = context.knobs.bank
    tasks = []
    for entry in context.members:
        section = knobs.subject if isinstance(entry, Subject) else knobs.style
        member, seed = bank_member(context, entry, adapter=False), context.seed("bank", entry.name)
        work = TrainAdapter(training_setting(context), member, section.model_dump(), seed)
        tasks.append(Task(entry.name, work, context.pictures(entry)))
    (done,) = context.fan_out(Group(context.store("bank", context.data / "base"), tasks, "bank"))
    collect(
        context.artifacts / "bank",
        {f"{name}.safetensors": folder / "adapter.safetensors" for name, folder in done.items()},
    )


if __name__ == "__main__":
    run(main)
