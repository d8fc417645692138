"""Submits calls with sbatch, through submitit, and says which of sbatch's refusals pass."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError, JobPaths

from slurm.commands import Limited, Refused, Unanswered

FULL = re.compile(r"submit\w*limit|max\w*submit|maxjobcount|temporarily", re.IGNORECASE)
"""Refusals that end when jobs end: the user, the account or the controller has as many jobs as are allowed."""

AWAY = re.compile(
    r"unable to contact|timed out|connection (refused|reset|timed)|transport endpoint|zero bytes|communication"
    r"|not responding|standby|unexpected message|try again",
    re.IGNORECASE,
)
"""Messages of an absent or busy controller, which may have taken the job before its answer was lost."""


class Sbatch(SlurmExecutor):
    """submitit's executor; job ids may be all that sbatch prints, and calls are found before the id is known."""

    @classmethod
    def affinity(cls) -> int:
        return 2  # srun is not used, so it may be missing

    @staticmethod
    def _get_job_id_from_submission_command(string: bytes | str) -> str:
        """The id in `Submitted batch job 12 on cluster x`, or in a last line `12` or `12;x` as of `--parsable`."""
        text = string if isinstance(string, str) else string.decode(errors="replace")
        found = re.search(r"job (\d+)", text) or re.search(r"^\s*(\d+)(;\S*)?\s*\Z", text, re.MULTILINE)
        if found is None:
            raise FailedSubmissionError(text)
        return found[1]

    def _num_tasks(self) -> int:
        return 1

    def script(self, number: int) -> str:
        """The script that would be submitted for some calls."""
        self._number(number)
        return self._make_submission_file_text(self._submitit_command_str, "")

    def send(self, calls: Sequence[Callable[[], Any]]) -> str:
        """Submit calls as one array, or a single one as a job; return its id.

        Raises
        ------
        Limited : there is no room for more jobs now.
        Unanswered : the controller is away, or sbatch printed no id: Slurm may have the job, see `adopt`.
        Refused : sbatch refuses for good. Each message has all of sbatch's lines.
        """
        self._number(len(calls))
        self.folder.mkdir(parents=True, exist_ok=True)
        for index, call in enumerate(calls):
            submission = DelayedSubmission(call)
            submission.set_timeout(0, 0)
            submission.dump(self.folder / f"{index}.pkl")
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # submitit also raises the message that it prints
                job = str(self._submit_command(self._submitit_command_str).job_id)
        except FailedSubmissionError as error:
            raise Unanswered(f"sbatch printed no job id, but {str(error)!r}", printed=True) from None
        except (FailedJobError, OSError) as error:
            lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in str(error).splitlines()]
            text = "; ".join(filter(None, map(str.strip, lines))) or "no reason given"
            raise (Limited if FULL.search(text) else Unanswered if AWAY.search(text) else Refused)(text) from None
        adopt(self.folder, job, len(calls))
        return job

    def _number(self, calls: int) -> None:
        if calls > 1:
            self.parameters["map_count"] = calls


def adopt(folder: Path, job: str, calls: int) -> None:
    """Name the pickled calls in a folder after the job that is to run them; its elements wait a minute for that."""
    for index in range(calls):
        path = folder / f"{index}.pkl"
        if path.exists():
            path.rename(JobPaths(folder, f"{job}_{index}" if calls > 1 else job).submitted_pickle)
