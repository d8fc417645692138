"""Raters and their votes in SQLite: a vote is one transaction, and votes are never overwritten."""

from __future__ import annotations

import re
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from lorarar.errors import UserError
from lorarar.study.manifest import Slot, Study, playlist
from lorarar.study.votes import Choice, Vote

SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS raters (
    name TEXT PRIMARY KEY, token TEXT NOT NULL UNIQUE, expires REAL NOT NULL, finished REAL, simulated TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS slots (
    rater TEXT NOT NULL REFERENCES raters, position INTEGER NOT NULL, item INTEGER NOT NULL, swapped INTEGER NOT NULL,
    repeat INTEGER NOT NULL, PRIMARY KEY (rater, position)
) STRICT;
-- What a panel such as Prolific calls a rater.
CREATE TABLE IF NOT EXISTS panel (
    rater TEXT NOT NULL REFERENCES raters, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (rater, name)
) STRICT;
-- A changed answer is a further revision; the last one counts.
CREATE TABLE IF NOT EXISTS votes (
    rater TEXT NOT NULL, position INTEGER NOT NULL, revision INTEGER NOT NULL, choice TEXT NOT NULL,
    seconds REAL NOT NULL, time REAL NOT NULL, request TEXT NOT NULL,
    PRIMARY KEY (rater, position, revision), UNIQUE (rater, request),
    FOREIGN KEY (rater, position) REFERENCES slots
) STRICT;
"""


PANEL = ("PROLIFIC_PID", "STUDY_ID", "SESSION_ID", "workerId", "assignmentId", "hitId")
"""Names under which Prolific and MTurk put their identifiers into a rater's address."""
PERSONS = ("PROLIFIC_PID", "workerId")
"""Those that name a person."""
PREVIEW = "ASSIGNMENT_ID_NOT_AVAILABLE"
"""MTurk's assignmentId while a worker only looks at a task."""
IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,80}")
ENDS = ("completion_code", "completion_link")
"""Facts that a rater is shown at the end, where the study has them."""


class Refusal(Exception):
    """A refused request of a rater: the message is for the rater, the status is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Ballot(BaseModel):
    """A vote as the page sends it.

    Attributes
    ----------
    id : random number of the page; a ballot that is sent again changes nothing.
    revision : number of answers to this position that the page knows, so that no tab overrules another one unseen.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    position: Annotated[int, Field(ge=0, lt=1 << 31)]
    revision: Annotated[int, Field(ge=0, lt=1 << 31)]
    choice: Choice
    seconds: Annotated[float, Field(ge=0, le=86400)]


@dataclass(frozen=True)
class Rater:
    """A person with a link; times are seconds since 1970, in UTC."""

    name: str
    token: str
    expires: float
    finished: float | None
    simulated: str


@dataclass(frozen=True)
class Answer:
    """The last answer to a position, and the number of answers."""

    choice: Choice
    seconds: float
    time: float
    revisions: int


class Storage:
    """The database `votes.sqlite` in a study's folder, created if it does not exist.

    Raises
    ------
    UserError : the file belongs to another manifest, or is not such a database.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.path = study.folder / "votes.sqlite"
        try:
            # The server uses one thread; tests call it from another.
            self.database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=10)
            self.path.chmod(0o600)  # it holds the tokens
            self.database.execute("PRAGMA journal_mode = WAL")
            self.database.execute("PRAGMA synchronous = FULL")  # acknowledged votes survive a power cut
            self.database.execute("PRAGMA foreign_keys = ON")
            with self._transaction():
                for statement in SCHEMA.split(";\n"):
                    self.database.execute(statement)
                facts = "INSERT OR IGNORE INTO facts VALUES (?, ?)"
                self.database.execute(facts, ("manifest", study.digest))
                self.database.execute(facts, ("admin", secrets.token_urlsafe(24)))
                self.database.execute(facts, ("join", secrets.token_urlsafe(18)))
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self.path}: cannot be used as a database of votes ({error})") from None
        if self._fact("manifest") != study.digest:
            path = study.folder / "manifest.json"
            raise UserError(f"{path}: not the one that {self.path.name} was collected with; restore it")

    @property
    def admin(self) -> str:
        """Token of the admin page."""
        return self._fact("admin")

    @property
    def key(self) -> str:
        """Token of the link that a whole panel gets."""
        return self._fact("join")

    def close(self) -> None:
        self.database.close()

    def invite(self, number: int, days: float = 30, simulated: bool = False) -> list[Rater]:
        """Add raters, each with a token and an order of the study's items.

        Raises
        ------
        UserError : the study would mix simulated and real raters.
        """
        with self._transaction():
            before = self.raters()
            if any(rater.simulated != str(int(simulated)) for rater in before):
                raise UserError(f"{self.path}: simulated and real raters are not put in one study; build another")
            prefix = "simulated" if simulated else "rater"
            expires = time.time() + days * 86400
            added = [
                Rater(
                    f"{prefix}-{len(before) + n + 1:03}", secrets.token_urlsafe(18), expires, None, str(int(simulated))
                )
                for n in range(number)
            ]
            for rater in added:
                row = (rater.name, rater.token, rater.expires, None, rater.simulated)
                self.database.execute("INSERT INTO raters VALUES (?, ?, ?, ?, ?)", row)
                self.database.executemany(
                    "INSERT INTO slots VALUES (?, ?, ?, ?, ?)",
                    [
                        (rater.name, position, slot.item, slot.swapped, slot.repeat)
                        for position, slot in enumerate(playlist(self.study.manifest, rater.name))
                    ],
                )
        return added

    def raters(self) -> list[Rater]:
        return [Rater(*row) for row in self.database.execute("SELECT * FROM raters ORDER BY name")]

    def rater(self, token: str) -> Rater:
        """The rater who has a link.

        Raises
        ------
        Refusal : the link is unknown or has expired.
        """
        row = self.database.execute("SELECT * FROM raters WHERE token = ?", (token,)).fetchone()
        if row is None:
            raise Refusal(404, "This link is not known. Check that it was copied as a whole, or ask who sent it.")
        rater = Rater(*row)
        if rater.expires < time.time():
            day = datetime.fromtimestamp(rater.expires, UTC).date().isoformat()
            raise Refusal(410, f"This link expired on {day}. Your answers until then are kept.")
        return rater

    def enrol(self, rater: Rater, given: Mapping[str, str]) -> None:
        """Keeps a panel's identifiers of a rater, the first ones that the rater came with.

        Raises
        ------
        Refusal : an identifier has characters that none has, or the link was opened by another member of the panel.
        """
        found = {name: given[name] for name in PANEL if given.get(name, PREVIEW) not in ("", PREVIEW)}
        for name, value in found.items():
            if not IDENTIFIER.fullmatch(value):
                raise Refusal(422, f"{name} in this link is not an identifier. Open the link from the panel's page.")
        known = self.panel(rater)
        for name in PERSONS:
            if known.get(name, found.get(name)) != found.get(name, known.get(name)):
                raise Refusal(403, "This link belongs to another person. Open the one that the panel gave you.")
        new = [(rater.name, name, value) for name, value in found.items() if name not in known]
        if new:
            with self._transaction():
                self.database.executemany("INSERT OR IGNORE INTO panel VALUES (?, ?, ?)", new)

    def join(self, given: Mapping[str, str]) -> Rater:
        """The rater of a panel's member: the one that the member was before, or a free one among those invited.

        Raises
        ------
        Refusal : the member has no identifier, or nobody is free.
        """
        persons = [(name, given[name]) for name in PERSONS if given.get(name)]
        if not persons:
            raise Refusal(422, "This link needs the panel's identifier of you. Open it from the panel's page.")
        known = self._all("SELECT rater FROM panel WHERE name = ? AND value = ?", *persons[0])
        taken = "SELECT rater FROM panel UNION SELECT rater FROM votes"
        free = f"SELECT name FROM raters WHERE expires > ? AND name NOT IN ({taken}) ORDER BY name LIMIT 1"
        row = next(iter(known or self._all(free, time.time())), None)
        if row is None:
            raise Refusal(410, "All places in this study are taken.")
        rater = next(rater for rater in self.raters() if rater.name == row[0])
        self.enrol(rater, given)
        return rater

    def panel(self, rater: Rater) -> dict[str, str]:
        """Identifiers of a rater by their names in `PANEL`."""
        return dict(self._all("SELECT name, value FROM panel WHERE rater = ? ORDER BY rowid", rater.name))

    @property
    def ending(self) -> dict[str, str]:
        """Completion code and link, where the study has them."""
        rows = self._all("SELECT name, value FROM facts WHERE name IN (?, ?)", *ENDS)
        return {name.removeprefix("completion_"): value for name, value in rows}

    def end_with(self, code: str | None, link: str | None) -> None:
        """Sets the code or link that raters get when they have finished; None leaves it as it is.

        Raises
        ------
        UserError : the link is no https address, or the code holds characters that none has.
        """
        if link is not None and not re.fullmatch(r"https://[\w.-]+(?::\d+)?/[^\s\"<>]*", link):
            raise UserError(
                f"--completion-link {link}: not an address; give one as https://app.prolific.com/submissions/..."
            )
        if code is not None and not IDENTIFIER.fullmatch(code):
            raise UserError(f"--completion-code {code}: use letters, digits, - and _, such as C1A2B3C4")
        with self._transaction():
            for name, value in zip(ENDS, (code, link), strict=True):
                if value is not None:
                    self.database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def slots(self, rater: Rater) -> list[Slot]:
        """The rater's sequence, position by position."""
        query = "SELECT item, swapped, repeat FROM slots WHERE rater = ? ORDER BY position"
        return [Slot(item, bool(swapped), bool(repeat)) for item, swapped, repeat in self._all(query, rater.name)]

    def answers(self, rater: Rater) -> dict[int, Answer]:
        """The last answer at each position that has one."""
        query = "SELECT position, choice, seconds, time, revision FROM votes WHERE rater = ? ORDER BY revision"
        return {
            position: Answer(choice, seconds, when, revision + 1)
            for position, choice, seconds, when, revision in self._all(query, rater.name)
        }

    def vote(self, token: str, ballot: Ballot) -> None:
        """Record an answer; it is on disk when this returns.

        Raises
        ------
        Refusal : the link is unknown, expired or finished; the position does not exist or was answered elsewhere.
        """
        with self._transaction():
            rater = self.rater(token)
            query = "SELECT position, revision, choice FROM votes WHERE rater = ? AND request = ?"
            for recorded in self._all(query, rater.name, ballot.id):
                if recorded != (ballot.position, ballot.revision, ballot.choice):
                    raise Refusal(409, "This answer's number was used for another answer. Reload the page.")
                return
            if rater.finished is not None:
                raise Refusal(410, "This link has been used: its study is finished, and all answers are in.")
            place = (rater.name, ballot.position)
            if not self._all("SELECT 1 FROM slots WHERE rater = ? AND position = ?", *place):
                raise Refusal(404, f"Comparison {ballot.position + 1} is not among yours. Reload the page.")
            ((known,),) = self._all("SELECT COUNT(*) FROM votes WHERE rater = ? AND position = ?", *place)
            if known != ballot.revision:
                raise Refusal(409, "This comparison was answered in another tab or window; that answer is kept.")
            row = (*place, known, ballot.choice, ballot.seconds, time.time(), ballot.id)
            self.database.execute("INSERT INTO votes VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def finish(self, token: str) -> None:
        """Close a link whose comparisons are all answered.

        Raises
        ------
        Refusal : some comparisons are not answered.
        """
        with self._transaction():
            rater = self.rater(token)
            missing = len(self.slots(rater)) - len(self.answers(rater))
            if missing:
                raise Refusal(409, f"{missing} comparisons are not answered yet.")
            self.database.execute(
                "UPDATE raters SET finished = ? WHERE name = ? AND finished IS NULL", (time.time(), rater.name)
            )

    def votes(self) -> list[Vote]:
        """The last answers, by rater and position."""
        return [
            self._vote(rater, slot, answers[position])
            for rater in self.raters()
            for answers in [self.answers(rater)]
            for position, slot in enumerate(self.slots(rater))
            if position in answers
        ]

    def _vote(self, rater: Rater, slot: Slot, answer: Answer) -> Vote:
        item = self.study.manifest.items[slot.item]
        first, second = reversed(item.options) if slot.swapped else item.options
        check = item.kind == "check"
        return Vote(
            rater=rater.name,
            subject=item.subject,
            style=item.style,
            method_1=first.method,
            method_2=second.method,
            choice=answer.choice,
            # A check shows an image of another pair, whose number would mislead.
            image_1=None if check else first.index,
            image_2=None if check else second.index,
            scenario=self.study.manifest.scenario,
            kind="check" if check else "repeat" if slot.repeat else "pair",
            expected=("2" if slot.swapped else "1") if check else None,
            seconds=round(answer.seconds, 3),
            time=datetime.fromtimestamp(answer.time, UTC).isoformat(timespec="milliseconds"),
            simulated="1" if rater.simulated == "1" else "0",
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.database.execute("COMMIT")
        except BaseException:
            self.database.execute("ROLLBACK")
            raise

    def _fact(self, name: str) -> str:
        return self._all("SELECT value FROM facts WHERE name = ?", name)[0][0]

    def _all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.database.execute(query, values).fetchall()
