"""What is particular to one cluster: slurm/sites/<ClusterName>.yaml."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError

from slurm import commands

FOLDER = Path("slurm/sites")


class PipelineJob(BaseModel):
    """The job that `python -m slurm driver` submits."""

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
        """The settings of the cluster one is on; Slurm's defaults where there is no file for it.

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

    def options(self) -> dict[str, Any]:
        """Parameters of submitit's executor."""
        named = {name: getattr(self, name) for name in ("partition", "account", "qos", "constraint", "wckey")}
        extra: dict[str, Any] = {"requeue": True, "reservation": self.reservation, **self.sbatch}
        chosen = {name: value for name, value in extra.items() if value is not None}
        return {**named, "additional_parameters": chosen}

    def lines(self) -> list[str]:
        """Shell lines that a job begins with."""
        return [*(f"module load {shlex.quote(name)}" for name in self.modules), *self.setup]

    @property
    def interpreter(self) -> str:
        """Shell command that replaces the shell by Python, so that Slurm's signals reach it."""
        return f"exec {self.python or shlex.quote(sys.executable)}"

    @property
    def array_size(self) -> int:
        """Elements an array may have: indices below MaxArraySize."""
        allowed = max(1, int(commands.configuration()["MaxArraySize"]))
        return min(allowed, self.max_array or allowed)


def without_job() -> dict[str, str]:
    """This process's environment, less what Slurm tells of its own job: what is submitted from here is another."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "SBATCH_", "SLURMD_")) or name in ("SLURM_CONF",)
    }
