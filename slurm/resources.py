"""The resources that jobs ask for."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveFloat, PositiveInt


class Resources(BaseModel):
    """The resources that one job of a stage asks for.

    Parameters
    ----------
    minutes : time limit. A training that reaches it goes on from its checkpoint.
    memory_gb : doubled for a task that ran out of it.
    cpus, gpus : of one job.
    parallel : jobs running at a time.
    retries : how often a task is begun again after it was killed or its node failed.
    tasks_per_job : tasks that one job does one after the other, in one process.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    minutes: PositiveInt
    memory_gb: PositiveFloat
    cpus: PositiveInt
    gpus: NonNegativeInt
    parallel: PositiveInt
    retries: NonNegativeInt
    tasks_per_job: PositiveInt
