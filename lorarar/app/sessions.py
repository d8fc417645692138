"""Visitors of the page: each has a folder of files that no other visitor can name, and jobs that wait their turn."""

from __future__ import annotations

import secrets
import shutil
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lorarar.errors import UserError, first_line

Side = Literal["content", "style"]
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
VISITORS = 200
JOBS = 64
"""Jobs of a visitor that are remembered, with the files that they made."""
WAITING = 8
"""Jobs of a visitor that wait at most."""


class Refusal(Exception):
    """A request that is not answered: a status and one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Job:
    """Work that a visitor asked for, and its result."""

    kind: str
    number: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: Literal["waiting", "running", "done", "failed", "dropped"] = "waiting"
    asked: float = field(default_factory=time.monotonic)
    begun: float = 0.0
    ended: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    file: Path | None = None
    future: Future[None] | None = None

    @property
    def seconds(self) -> float:
        """Seconds of work so far, without the wait."""
        return (self.ended or time.monotonic()) - self.begun if self.begun else 0.0


@dataclass
class Session:
    """A visitor's files and jobs.

    Attributes
    ----------
    folder : holds everything that the visitor sent and got; it exists from the first file on.
    files : uploaded files, or examples.
    shown : the figures of each file on the page.
    """

    folder: Path
    seen: float
    files: dict[str, Path] = field(default_factory=dict)
    shown: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)

    def place(self, side: Side, name: str) -> Path:
        """Where an uploaded file goes: under the plain part of its name, which messages will show.

        Raises
        ------
        Refusal : the name has no suffix of a LoRA file.
        """
        plain = "".join(c if c.isalnum() or c in "-_.()+ " else "_" for c in name.replace("\\", "/").rpartition("/")[2])
        path = Path(plain.strip(" .") or "file")
        if path.suffix.lower() not in SUFFIXES:
            raise Refusal(415, f"{plain}: no LoRA by its name; choose a file that ends in {', '.join(SUFFIXES)}")
        return self.folder / side / f"{path.stem[:80]}{path.suffix.lower()}"

    def forget(self, side: Side) -> None:
        """Removes the file of a side; files that were made with it stay."""
        self.files.pop(side, None)
        self.shown.pop(side, None)
        shutil.rmtree(self.folder / side, ignore_errors=True)

    def plain(self, message: str) -> str:
        """A message without the folders of this machine."""
        for side in ("content", "style", "merged"):
            message = message.replace(f"{self.folder / side}/", "")
        return message

    def pair(self) -> tuple[Path, Path]:
        """Both files.

        Raises
        ------
        Refusal : one is missing.
        """
        for side in ("content", "style"):
            if side not in self.files:
                raise Refusal(409, f"the {side} LoRA is missing: choose a file")
        return self.files["content"], self.files["style"]


class Sessions:
    """All visitors, and the one worker that does their jobs in the order in which they asked.

    Parameters
    ----------
    folder : the folder for all files.
    keep : seconds without a request after which a visitor's files go.
    """

    def __init__(self, folder: Path, keep: float) -> None:
        self.folder, self.keep = folder, keep
        self._known: dict[str, Session] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="lorarar")
        self._number = 0

    def open(self) -> str:
        """A new visitor's token, which is in the address of all their requests."""
        self.sweep()
        if len(self._known) >= VISITORS:
            raise Refusal(503, f"{VISITORS} visitors are here already; come back later")
        token = secrets.token_urlsafe(24)
        self._known[token] = Session(self.folder / secrets.token_hex(8), time.monotonic())
        return token

    def __getitem__(self, token: str) -> Session:
        session = self._known.get(token)
        if session is None:
            raise Refusal(404, "your files are gone after a long pause or a restart: reload the page and choose again")
        session.seen = time.monotonic()
        return session

    def close(self, token: str) -> None:
        """Removes a visitor and their files."""
        session = self._known.pop(token, None)
        if session:
            for job in session.jobs.values():
                if job.future:
                    job.future.cancel()
            # After the job that may be writing there now.
            self._worker.submit(shutil.rmtree, session.folder, ignore_errors=True)

    def sweep(self) -> None:
        """Removes the visitors who have not asked for anything for long."""
        old = time.monotonic() - self.keep
        for token in [token for token, session in self._known.items() if session.seen < old]:
            self.close(token)

    def submit(self, session: Session, kind: str, work: Callable[[Job], dict[str, Any]]) -> Job:
        """Queues a job. Of one visitor's waiting jobs of a kind, such as pictures, only the last is done.

        Raises
        ------
        Refusal : too many of the visitor's jobs wait.
        """
        for other in session.jobs.values():
            if other.kind == kind and other.state == "waiting" and other.future and other.future.cancel():
                other.state = "dropped"
        if sum(job.state == "waiting" for job in session.jobs.values()) >= WAITING:
            raise Refusal(429, "too many jobs wait: let one finish")
        ended = [job for job in session.jobs.values() if job.state not in ("waiting", "running")]
        for old in ended[: max(len(session.jobs) - JOBS, 0)]:
            del session.jobs[old.token]
            if old.file:
                old.file.unlink(missing_ok=True)
        self._number += 1
        job = Job(kind, self._number)
        session.jobs[job.token] = job
        job.future = self._worker.submit(self._do, session, job, work)
        return job

    def before(self, job: Job) -> int:
        """Number of jobs of all visitors that come before a waiting one."""
        jobs = [other for session in self._known.values() for other in session.jobs.values()]
        return sum(other.number < job.number and other.state in ("waiting", "running") for other in jobs)

    def end(self) -> None:
        """Lets the running job end, drops the others, and removes every file."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _do(session: Session, job: Job, work: Callable[[Job], dict[str, Any]]) -> None:
        job.begun, job.state = time.monotonic(), "running"
        try:
            job.result = work(job)
        except UserError as error:
            job.error = session.plain(str(error))
        except Refusal as refusal:
            job.error = str(refusal)
        except Exception as error:  # one visitor's file must not end the server, and its owner reads the traceback
            traceback.print_exc()
            job.error = f"{job.kind}: failed ({session.plain(first_line(error))})"
        job.ended = time.monotonic()
        job.state = "failed" if job.error else "done"
