"""A Slurm that lives in the test's own process: its commands are functions, and its clock moves when someone waits."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from submitit.core import utils

from slurm.task import write_json


@dataclass
class Job:
    """One job or element of an array."""

    id: str
    name: str
    folder: Path
    index: int
    state: str = "PENDING"
    node: str = ""
    reason: str = "None"


@dataclass
class FakeSlurm:
    """What it did is in `scripts` and `asked`; `fates` are what becomes of the next jobs that would run."""

    max_array: int = 5
    fates: list[str] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    taken_without_answer: int = 0  # how many submissions more are taken, while sbatch hears nothing
    answer: str = "Submitted batch job {}"
    clusters: list[str] = field(default_factory=list)  # which were asked, by all commands with -M
    away: int = 0  # how many questions more the controller leaves without an answer
    accounting: dict[str, str] = field(default_factory=dict)
    at_once: int = 100
    on_wait: Callable[[], None] = lambda: None
    clock: float = 0.0

    def command(self, words: list[str]) -> str:
        """sbatch, as submitit calls it."""
        if self.refusals and not self.taken_without_answer:
            raise utils.FailedJobError(f"sbatch: error: {self.refusals.pop(0)}")
        text = Path(words[1]).read_text()
        found = re.search(r"--array=0-(\d+)", text)
        number = int(found[1]) + 1 if found else 1
        if number > self.max_array:
            raise utils.FailedJobError("sbatch: error: Batch job submission failed: Invalid job array specification")
        self.scripts.append(text)
        job, folder = str(100 + len(self.scripts)), Path(words[1]).parent
        (name,) = re.findall(r"--job-name=(\S+)", text)
        for index in range(number):
            identity = f"{job}_{index}" if found else job
            self.jobs[identity] = Job(identity, name, folder, index)
        if self.taken_without_answer:
            self.taken_without_answer -= 1
            raise utils.FailedJobError("sbatch: error: Batch job submission failed: Socket timed out on send/recv")
        return self.answer.format(job)

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """All other commands."""
        self.asked.append(words)
        if words[1:2] == ("-M",):
            self.clusters.append(words[2])
        if words[0] == "sbatch":
            return subprocess.CompletedProcess(words, 0, "slurm 22.05", "")
        if self.away:
            self.away -= 1
            return subprocess.CompletedProcess(words, 1, "", "Unable to contact slurm controller (connect failure)")
        out = ""
        match words[0]:
            case "scontrol":
                kept = "accounting_storage/slurmdbd" if self.accounting else "accounting_storage/none"
                out = f"MaxArraySize = {self.max_array}\nClusterName = lab\nAccountingStorageType = {kept}\n"
            case "squeue":
                out = "CLUSTER: x\n" * ("-M" in words)
                for job in self.jobs.values():
                    number, _, index = job.id.partition("_")
                    out += f"{number}|{index or 'N/A'}|{job.state}|{job.node}|{job.name}|{job.reason}\n"
            case "scancel":
                for job in self.jobs.values():
                    if job.state != "COMPLETED" and {job.id, job.id.partition("_")[0]} & set(words):
                        job.state = "CANCELLED"
            case "sacct":
                out = "".join(f"{job}|{state}|n1\n" for job, state in self.accounting.items())
        return subprocess.CompletedProcess(words, 0, out, "")

    def sleep(self, seconds: float) -> None:
        """Time passes: some of the jobs that wait are run."""
        self.waits.append(seconds)
        self.clock += seconds
        assert len(self.waits) < 300, "it waits for ever"
        self.on_wait()
        pending = [job for job in self.jobs.values() if job.state == "PENDING" and job.reason == "None"]
        # The real elements wait a minute for their calls, too.
        ready = [job for job in pending if (job.folder / f"{job.id}_submitted.pkl").exists()]
        for job in ready[: self.at_once]:
            self._run(job, self.fates.pop(0) if self.fates else "COMPLETED")

    def _run(self, job: Job, fate: str) -> None:
        submission = utils.DelayedSubmission.load(job.folder / f"{job.id}_submitted.pkl")
        job.node = "n1"
        match fate:
            case "COMPLETED":
                submission.result()
                job.state = fate
            case "LOST":  # done, and forgotten at once
                submission.result()
                del self.jobs[job.id]
            case "LAUNCH":
                job.reason = "launch_failed_requeued_held"
            case _:
                first = submission.function.tasks[0]
                write_json(job.folder / f"{job.index}.now", {"key": first.key, "node": "n1"})
                (job.folder / f"{job.id}_0_log.out").write_text(f"the log of {first.name}\n")
                if fate == "FORGOTTEN":
                    del self.jobs[job.id]
                else:
                    job.state = fate

    def told(self, option: str) -> list[str | None]:
        """Values of an option in all submitted scripts."""
        found = [re.search(rf"#SBATCH --{option}=(\S+)", script) for script in self.scripts]
        return [match[1] if match else None for match in found]

    def count(self, command: str) -> int:
        return sum(words[0] == command for words in self.asked)
