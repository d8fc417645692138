"""Resources of jobs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt


class Resources(BaseModel):
    """Resources of one job of a stage.

    Parameters
    ----------
    minutes : time limit. A training that reaches it continues from its checkpoint in another job.
    memory_gb : doubled for a task that ran out of it.
    cpus, gpus : number of cores and of GPUs.
    parallel : largest number of jobs that run at a time.
    retries : number of further attempts after a task was killed or its node failed.
    tasks_per_job : number of tasks that one job does one after the other, in one process.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    minutes: PositiveInt
    memory_gb: PositiveFloat
    cpus: PositiveInt
    gpus: NonNegativeInt
    parallel: PositiveInt
    retries: NonNegativeInt
    tasks_per_job: PositiveInt

    def job(self, memory_gb: float | None = None) -> dict[str, Any]:
        """The limits of one job, perhaps with other memory."""
        return {**self.model_dump(include={"minutes", "cpus", "gpus"}), "memory_gb": memory_gb or self.memory_gb}
