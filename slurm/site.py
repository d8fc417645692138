"""Settings of one cluster: slurm/sites/<ClusterName>.yaml."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    PositiveFloat,
    PositiveInt,
    StrictFloat,
    StrictInt,
    ValidationError,
    field_validator,
)

from slurm import commands
from slurm.job import TIME_IS_UP

if TYPE_CHECKING:
    from slurm.sbatch import Sbatch

FOLDER = Path("slurm/sites")
NAME = "LORARAR_SITE"
"""Environment variable that names the site's file instead of the cluster where this process runs."""

Options = dict[str, Literal[True] | StrictInt | StrictFloat | str | None]
"""Options of sbatch: `True` for one without a value, None to leave out what would be asked otherwise."""

NUMBERS = ("minutes", "cpus", "gpus", "memory_mb", "memory_mb_per_cpu")
"""What `{...}` in the value of an option may stand for: what one job asks for."""


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
    clusters: str | None = None
    sbatch: Options = {}
    sbatch_gpu: Options = {}
    driver: PipelineJob = PipelineJob()

    @field_validator("sbatch", "sbatch_gpu")
    @classmethod
    def _known_numbers(cls, given: Options) -> Options:
        for option, value in given.items():
            for name in re.findall(r"\{(\w+)\}", str(value)):
                if name not in NUMBERS:
                    raise ValueError(f"{option}: no number is called {{{name}}}; known: {', '.join(NUMBERS)}")
        return given

    @field_validator("clusters")
    @classmethod
    def _one(cls, given: str | None) -> str | None:
        try:
            return commands.one_cluster("clusters", given) if given else None
        except commands.ClusterError as error:
            raise ValueError(str(error)) from None

    @classmethod
    def here(cls) -> Site:
        """The settings of this cluster; Slurm's defaults if there is no file for it.

        Raises
        ------
        ClusterError : the file has a mistake.
        """
        # An experiment of DVC runs in a folder inside the repository, to which only tracked files are copied.
        here = Path.cwd()
        paths = [folder / FOLDER / f"{name_here()}.yaml" for folder in (here, *here.parents)]
        path = next((path for path in paths if path.exists()), None)
        return cls.load(path) if path else cls()

    @classmethod
    def load(cls, path: Path) -> Site:
        """Read one file. Raises `ClusterError` if it has a mistake."""
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls.model_validate({} if content is None else content)
        except (OSError, UnicodeDecodeError) as error:
            raise commands.ClusterError(f"{path}: cannot be read ({error})") from None
        except yaml.YAMLError as error:
            raise commands.ClusterError(f"{path}: not YAML: {getattr(error, 'problem', error)}") from None
        except ValidationError as error:
            raise commands.ClusterError(f"{path}: {_explain(error)}") from None

    @property
    def cluster(self) -> str:
        """The cluster that takes the jobs; empty for the local one. The environment comes first, as in sbatch."""
        return commands.chosen_cluster() or self.clusters or ""

    def executor(
        self,
        folder: Path,
        asked: Mapping[str, Any],
        notice: int,
        setup: Sequence[str] = (),
        parallel: int = 1,
        **options: Any,
    ) -> Sbatch:
        """submitit's executor for jobs on this cluster.

        Parameters
        ----------
        folder : for scripts, pickles and logs.
        asked : minutes, memory_gb, cpus and perhaps gpus of one job.
        notice : seconds between the signal `TIME_IS_UP` and the end of the time; at most a quarter of the time.
        setup : shell lines after those of the site.
        parallel : number of elements of an array running at a time.
        options : of sbatch; they override the site's keys, but not its sections `sbatch` and `sbatch_gpu`.
        """
        from slurm.sbatch import Sbatch

        minutes, cpus, gpus = asked["minutes"], asked["cpus"], asked.get("gpus", 0)
        memory = round(asked["memory_gb"] * 1024)
        numbers = dict(zip(NUMBERS, (minutes, cpus, gpus, memory, -(-memory // cpus)), strict=True))
        keys = ("partition", "account", "qos", "constraint", "wckey", "exclude", "reservation", "clusters")
        wanted: dict[str, Any] = {name: getattr(self, name) for name in keys}
        wanted |= {"nodes": 1, "requeue": True, "time": minutes, "mem": f"{memory}M", "cpus-per-task": cpus}
        wanted |= {"gpus-per-node": gpus or None}
        wanted |= {name.replace("_", "-"): value for name, value in options.items()}
        # The shell is replaced by Python (`exec`) and Slurm signals it (`B:`). srun could not be nested.
        wanted["signal"] = f"B:{TIME_IS_UP.name.removeprefix('SIG')}@{min(notice, minutes * 15)}"
        wanted |= {
            name.replace("_", "-"): _filled(value, numbers) if isinstance(value, str) else value
            for name, value in (self.sbatch | (self.sbatch_gpu if gpus else {})).items()
        }
        executor = Sbatch(folder, max_num_timeout=0, python=f"exec {self.python or shlex.quote(sys.executable)}")
        executor.update_parameters(
            **dict.fromkeys(("job_name", "nodes", "time", "wckey")),  # submitit's defaults
            array_parallelism=parallel,
            additional_parameters={name: value for name, value in wanted.items() if value is not None},
            setup=[*(f"module load {shlex.quote(name)}" for name in self.modules), *self.setup, *setup],
            stderr_to_stdout=True,
            use_srun=False,
        )
        return executor

    @property
    def array_size(self) -> int:
        """Largest number of elements in an array; indices are below MaxArraySize."""
        allowed = max(1, int(commands.configuration(self.cluster)["MaxArraySize"]))
        return min(allowed, self.max_array or allowed)


def name_here() -> str:
    """Name of the file with the settings of this cluster."""
    return os.environ.get(NAME) or commands.configuration(commands.chosen_cluster()).get("ClusterName", "")


def without_job() -> dict[str, str]:
    """This process's environment without Slurm's variables of its job, which jobs submitted from here would inherit.

    What users set stays: the options of sbatch (`SBATCH_...`), the configuration and the clusters.
    """
    kept, jobs = {"SLURM_CONF", "SLURM_CLUSTERS"}, ("SLURM_", "SLURMD_", "SBATCH_CPU_BIND", "SBATCH_MEM_BIND")
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(jobs)}


def _filled(value: str, numbers: Mapping[str, int]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: str(numbers[found[1]]), value)


def _explain(error: ValidationError) -> str:
    """The first mistake in one line."""
    first = error.errors()[0]
    place = first["loc"]
    if not place:
        return "should be keys with values"
    key = ".".join(map(str, place[:2]))
    if first["type"] == "extra_forbidden":
        known = PipelineJob if place[0] == "driver" and len(place) > 1 else Site
        return f"{key}: no such key; known: {', '.join(known.model_fields)}"
    if place[0] in ("sbatch", "sbatch_gpu") and len(place) > 1:
        return f"{key}: should be `true`, a number, text, or `null`, which drops the option; not {first['input']!r}"
    return f"{key}: {first['msg'].removeprefix('Value error, ')}"
