"""Cache of verdicts: no question is asked twice, because each may cost a second or a cent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from copy import copy
from pathlib import Path

from tqdm import tqdm

from lorarar.errors import UserError
from lorarar.files import atomic
from lorarar.pictures import Picture
from lorarar.scoring.images import batches
from lorarar.scoring.judges import MAX_UNANSWERED, Judge, JudgePrompts, Question, Verdict

FIRST = 8
"""Questions of the first batch: few, so that a judge that gives no answer is found out soon."""


class CachedJudge:
    """Asks another judge only the questions that it has not answered yet.

    The key of a verdict is the judge's identity, the two pictures and the prompt as the judge reads it. Each verdict is
    a small file that appears whole or not at all: a kill costs one batch at most, and several processes may share the
    folder, also on a network file system.

    Unanswered questions are not cached, because some judges answer them the next time. Asking stops with an error when
    their share is above the judge's `max_unanswered`, half by default.

    Parameters
    ----------
    judge : the judge that is asked.
    folder : cache of any number of judges. It may be deleted: then the questions are asked again.
    batch_size : questions asked before their verdicts are stored.
    quiet : show no progress bar; otherwise a terminal shows one if there is something to ask.

    Raises
    ------
    UserError : the folder cannot be made.
    """

    def __init__(self, judge: Judge, folder: Path | str, batch_size: int = 32, quiet: bool = False) -> None:
        self.judge = judge
        self.name = judge.name
        self.identity = judge.identity
        self.prompts = judge.prompts
        self.folder = Path(folder)
        self.batch_size = batch_size
        self.quiet = quiet
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot keep verdicts there ({error.strerror}); name another folder") from error

    def reworded(self, prompts: JudgePrompts) -> CachedJudge:
        """Returns the same judge with another wording; both share weights and folder."""
        other, other.judge = copy(self), copy(self.judge)
        other.prompts = other.judge.prompts = prompts  # type: ignore[misc]
        return other

    def answer(self, questions: Sequence[Question]) -> list[Verdict]:
        """Gives one verdict per question, in order; if the judge fails midway, its earlier answers are kept.

        Raises
        ------
        UserError : the judge answers too few questions; the message quotes what it said instead.
        """
        keys = [self._key(question) for question in questions]
        verdicts: dict[str, Verdict] = {}
        new: dict[str, Question] = {}
        for key, question in zip(keys, questions, strict=True):
            if key in verdicts or key in new:
                continue
            if known := self._recall(key):
                verdicts[key] = known
            else:
                new[key] = question
        # None tells tqdm to show it only on a terminal.
        hidden = True if self.quiet or not new else None
        with tqdm(total=len(new), desc=self.name, unit="question", disable=hidden) as progress:
            asked, first = list(new), min(FIRST, self.batch_size)
            for batch in (asked[:first], *batches(asked[first:], self.batch_size)):
                for key, verdict in zip(batch, self.judge.answer([new[key] for key in batch]), strict=True):
                    verdicts[key] = verdict
                    self._keep(key, verdict)
                progress.update(len(batch))
                self._check(list(verdicts.values()))
        return [verdicts[key] for key in keys]

    def _check(self, verdicts: Sequence[Verdict]) -> None:
        """Stops at a judge that does not answer: all its scores would be 0."""
        unanswered = [verdict for verdict in verdicts if verdict.yes is None]
        limit = getattr(self.judge, "max_unanswered", MAX_UNANSWERED)
        if len(unanswered) > limit * len(verdicts):
            said = f" ({unanswered[-1].why})" if unanswered[-1].why else ""
            number = f"{len(unanswered)} of the first {len(verdicts)} questions"
            raise UserError(
                f"{self.name}: neither yes nor no to {number}{said}; change its options, or take another judge"
            )

    def _key(self, question: Question) -> str:
        wording = self.prompts and (self.prompts.system, self.prompts.text(question), self.prompts.swapped)
        facts = [self.identity, question.kind, wording, _digest(question.reference), _digest(question.test)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def _recall(self, key: str) -> Verdict | None:
        try:
            return Verdict(**json.loads(self._file(key).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            # Not there, or damaged by a disk: the question is asked and stored again.
            return None

    def _keep(self, key: str, verdict: Verdict) -> None:
        if verdict.yes is not None:
            # Hundreds of small files a minute: waiting for the disk would cost more than a quick judge's answers.
            with atomic(self._file(key), durable=False) as temporary:
                answer = {"yes": verdict.yes, "probability": verdict.probability}
                temporary.write_text(json.dumps(answer), encoding="utf-8")


def _digest(image: Picture) -> str:
    """SHA-256 of a picture's pixels: the same picture in another file is the same question."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
