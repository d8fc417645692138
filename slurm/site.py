"""Settings of one cluster: slurm/sites/<ClusterName>.yaml."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from slurm import commands
from slurm.job import TIME_IS_UP

if TYPE_CHECKING:
    from submitit import SlurmExecutor

FOLDER = Path("slurm/sites")


class PipelineJob(BaseModel):
    """Resources of the job that `python -m slurm driver` submits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    minutes: PositiveInt = 2880
    memory_gb: PositiveFloat = 4
    cpus: PositiveInt = 2
    partition: str | None = None


class Site(BaseModel):
    """Settings of one cluster; slurm/sites/example.yaml says what each is for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    wckey: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    exclude: str | None = None
    modules: list[str] = []
    setup: list[str] = []
    python: str | None = None
    max_array: PositiveInt | None = None
    sbatch: dict[str, str | int] = {}
    driver: PipelineJob = PipelineJob()

    @classmethod
    def here(cls) -> Site:
        """The settings of this cluster; Slurm's defaults if there is no file for it.

        Raises
        ------
        ClusterError : the file has a mistake.
        """
        path = FOLDER / f"{commands.configuration().get('ClusterName', '')}.yaml"
        return cls.load(path) if path.exists() else cls()

    @classmethod
    def load(cls, path: Path) -> Site:
        """Read one file. Raises `ClusterError` if it has a mistake."""
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        except yaml.YAMLError as error:
            raise commands.ClusterError(f"{path}: not YAML: {getattr(error, 'problem', error)}") from None
        except ValidationError as error:
            first = error.errors()[0]
            key, known = ".".join(map(str, first["loc"])), ", ".join(cls.model_fields)
            reason = f"no such key; known: {known}" if first["type"] == "extra_forbidden" else first["msg"]
            raise commands.ClusterError(f"{path}: {key}: {reason}") from None

    def executor(
        self, folder: Path, asked: Mapping[str, Any], notice: int, setup: Sequence[str] = (), **options: Any
    ) -> SlurmExecutor:
        """submitit's executor for jobs on this cluster.

        Parameters
        ----------
        folder : for scripts, pickles and logs.
        asked : minutes, memory_gb, cpus and perhaps gpus of one job.
        notice : seconds between the signal `TIME_IS_UP` and the end of the time; at most a quarter of the time.
        setup : shell lines after those of the site.
        options : further parameters of submitit; they override the site's.
        """
        from submitit import SlurmExecutor

        # The shell is replaced by Python (`exec`) and Slurm signals it (`B:`). srun could not be nested.
        executor = SlurmExecutor(folder, max_num_timeout=0, python=f"exec {self.python or shlex.quote(sys.executable)}")
        own = {name: getattr(self, name) for name in ("partition", "account", "qos", "constraint", "wckey", "exclude")}
        further: dict[str, Any] = {"requeue": True, "reservation": self.reservation, **self.sbatch}
        further["signal"] = f"B:{TIME_IS_UP.name.removeprefix('SIG')}@{min(notice, asked['minutes'] * 15)}"
        executor.update_parameters(
            **own | options,
            additional_parameters={name: value for name, value in further.items() if value is not None},
            time=asked["minutes"],
            mem=f"{round(asked['memory_gb'] * 1024)}M",
            cpus_per_task=asked["cpus"],
            gpus_per_node=asked.get("gpus") or None,
            setup=[*(f"module load {shlex.quote(name)}" for name in self.modules), *self.setup, *setup],
            stderr_to_stdout=True,
            use_srun=False,
        )
        return executor

    @property
    def array_size(self) -> int:
        """Largest number of elements in an array; indices are below MaxArraySize."""
        allowed = max(1, int(commands.configuration()["MaxArraySize"]))
        return min(allowed, self.max_array or allowed)


def without_job() -> dict[str, str]:
    """This process's environment without Slurm's variables of its job, which jobs submitted from here would inherit."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "SBATCH_", "SLURMD_")) or name == "SLURM_CONF"
    }
