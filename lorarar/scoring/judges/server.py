"""A judge behind an OpenAI-compatible chat endpoint, such as vLLM's: both pictures and the prompt go to
`POST <address>/chat/completions`.
"""

from __future__ import annotations

import json
import os
import random
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from io import BytesIO
from math import exp
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from pydantic import PositiveFloat, PositiveInt

from lorarar.errors import UserError
from lorarar.scoring.images import as_pil
from lorarar.scoring.judges import FIRST_WORD, JudgePrompts, Question, Verdict, conversation, read_answer

if TYPE_CHECKING:
    from email.message import Message

    from PIL import Image as PilImage

ATTEMPTS = 6
PAUSE = 1.0
"""Seconds before the second attempt; they double with every further one."""
LONGEST_PAUSE = 300.0
"""Seconds. A server that asks for a longer pause, such as until its daily quota is renewed, ends the run."""
TOP_LOGPROBS = (20, 5, 0)
"""Likely tokens asked for with an answer. Servers limit them differently, and some give none at all."""
REFUSALS = ("content_filter", "content_policy_violation")


class ServerJudge:
    """Answers of a served model, several questions at a time, with the probabilities of its two answers where the
    server gives them.

    A refusal or a reply that cannot be read is an unanswered question. A busy, broken or silent server is asked again
    after growing pauses.

    Parameters
    ----------
    address : base address of the API, such as `http://localhost:8000/v1`.
    prompts : wording of the questions.
    model : the served model's name.
    key_variable : environment variable that holds the key; it may be unset, as local servers need none.
    concurrency : questions asked at a time.
    timeout : seconds of silence after which an attempt has failed.
    longest_side : larger pictures are reduced to this many pixels before they are sent.

    Raises
    ------
    UserError : the address is none, or the key holds characters that no key has.
    """

    def __init__(
        self,
        address: str,
        prompts: JudgePrompts,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        timeout: float = 120.0,
        longest_side: int | None = None,
    ) -> None:
        self.address = _checked(address)
        self.prompts = prompts
        self.model = str(model)
        self.name = f"{self.model} at {self.address}"
        self.concurrency = concurrency
        self.timeout = timeout
        self.longest_side = longest_side
        self.top_logprobs = TOP_LOGPROBS[0]
        self._key = os.environ.get(key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"{key_variable}: holds characters that no key has; set it again")

    @classmethod
    def load(
        cls,
        address: str,
        prompts: JudgePrompts,
        device: str = "cpu",
        *,
        model: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: PositiveInt = 8,
        timeout: PositiveFloat = 120.0,
        longest_side: PositiveInt | None = None,
    ) -> ServerJudge:
        """See that the server answers (`GET <address>/models`), and take its model if it serves just one.

        Parameters
        ----------
        device : not used; where the model runs is the server's business.

        Raises
        ------
        UserError : the server cannot be reached, turns the key down, or serves several models and none was named.
        """
        judge = cls(
            address,
            prompts,
            model or "",
            key_variable=key_variable,
            concurrency=concurrency,
            timeout=timeout,
            longest_side=longest_side,
        )
        served = judge._models()
        if not model:
            if len(served) != 1:
                listed = ", ".join(served[:10]) or "none"
                raise UserError(f"{judge.address}: name the model to ask (option model); it serves {listed}")
            judge.model, judge.name = served[0], f"{served[0]} at {judge.address}"
        return judge

    @property
    def identity(self) -> str:
        """Address, model and size of pictures; what weights the server has, only the server knows."""
        return f"{self.name} longest side {self.longest_side}"

    def answer(self, questions: Sequence[Question]) -> list[Verdict]:
        """One verdict per question, in order.

        Raises
        ------
        UserError : the server fails for good, or turns a question down as malformed.
        """
        stop = Event()
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(self._ask, question, stop) for question in questions]
            try:
                for future in as_completed(futures):
                    future.result()
            finally:
                # After a failure or an interrupt the others shall neither begin nor sit out their pauses.
                stop.set()
                pool.shutdown(cancel_futures=True)
        return [future.result() for future in futures]

    def _ask(self, question: Question, stop: Event) -> Verdict:
        body = {"model": self.model, "messages": self._messages(question), "temperature": 0, "max_tokens": 8}
        for top in (number for number in TOP_LOGPROBS if number <= self.top_logprobs):
            wish = {"logprobs": True, "top_logprobs": top} if top else {}
            try:
                reply = self._insist(body | wish, stop)
            except HTTPError as error:
                complaint = self._complaint(error)
                if any(refusal in complaint for refusal in REFUSALS):
                    break
                if top and error.code in (400, 422):
                    continue
                raise UserError(f"{self.address}: HTTP {error.code} {complaint}") from None
            self.top_logprobs = top
            return self._read(reply)
        return Verdict(None)

    def _messages(self, question: Question) -> list[dict]:
        system, user = conversation(self.prompts, question)
        pictures = iter(as_pil([question.reference, question.test], self.longest_side))
        parts = [
            part if part["type"] == "text" else {"type": "image_url", "image_url": {"url": data_url(next(pictures))}}
            for part in user["content"]
        ]
        # A system turn of parts is not understood everywhere, one of plain text is.
        return [{"role": "system", "content": system["content"][0]["text"]}, {"role": "user", "content": parts}]

    def _insist(self, body: dict, stop: Event) -> bytes:
        """The reply, after further attempts if need be; an `HTTPError` says that asking again is of no use."""
        for attempt in range(ATTEMPTS):
            # A random share keeps several questions from coming back all at once.
            pause = PAUSE * 2**attempt * (1 + random.random()) / 2
            try:
                return self._send("/chat/completions", body)
            except HTTPError as error:
                if error.code not in (408, 429) and error.code < 500:
                    raise
                reason = f"HTTP {error.code} {self._complaint(error)}"
                pause = max(pause, retry_after(error.headers))
            except (OSError, HTTPException) as error:
                reason = _reason(error)
            if pause > LONGEST_PAUSE:
                raise UserError(f"{self.address}: asks to wait {pause:.0f} s ({reason}); run again after that")
            if attempt + 1 == ATTEMPTS or stop.wait(pause):
                break
        raise UserError(f"{self.address}: no answer in {attempt + 1} attempts ({reason}); run again when it is back")

    def _send(self, path: str, body: dict | None = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self.address + path, data, {"Content-Type": "application/json"})
        if self._key:
            # Unredirected: an address that sends us on to another one does not get the key passed on.
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        with urlopen(request, timeout=self.timeout) as response:
            return response.read()

    def _models(self) -> list[str]:
        try:
            return [str(entry["id"]) for entry in json.loads(self._send("/models"))["data"]]
        except HTTPError as error:
            hint = {401: "; set the key's variable", 403: "; set the key's variable", 404: "; does it end in /v1?"}
            message = f"{self.address}/models: HTTP {error.code} {self._complaint(error)}{hint.get(error.code, '')}"
            raise UserError(message) from None
        except (OSError, HTTPException) as error:
            reason = _reason(error)
            raise UserError(
                f"{self.address}: cannot be reached ({reason}); start the server or mend the address"
            ) from None
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{self.address}/models: not the reply of an OpenAI-compatible server") from None

    def _complaint(self, error: HTTPError) -> str:
        """The server's message about an error, on one line, without the key, which servers like to quote."""
        try:
            text = error.read(2000).decode(errors="replace")
        except (OSError, HTTPException):
            return ""
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(text.split())[:300]

    def _read(self, reply: bytes) -> Verdict:
        try:
            choice = json.loads(reply)["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, LookupError, TypeError):
            return Verdict(None)
        if not isinstance(text, str):
            return Verdict(None)
        return self.prompts.verdict(read_answer(text), yes_probability(choice.get("logprobs")))


def yes_probability(logprobs: Any) -> float | None:
    """Chance of yes among yes and no, at the first token that has a word in it; None where that cannot be told.

    Parameters
    ----------
    logprobs : of a choice, as the API gives them; anything else is as good as none.
    """
    chances = {"yes": 0.0, "no": 0.0}
    try:
        first = next(token for token in logprobs["content"] if FIRST_WORD.match(token["token"]))
        for likely in first["top_logprobs"]:
            word = likely["token"].strip().lower()
            if word in chances:
                chances[word] += exp(likely["logprob"])
        return chances["yes"] / sum(chances.values())
    except (LookupError, TypeError, AttributeError, StopIteration, ArithmeticError):
        return None


def data_url(picture: PilImage.Image) -> str:
    """A picture as PNG inside an address."""
    file = BytesIO()
    picture.save(file, format="PNG")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def retry_after(headers: Message) -> float:
    """Seconds that a server asks to wait, given as a number or a date; 0 if it does not say."""
    value = headers.get("Retry-After", "")
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return 0.0


def _reason(error: Exception) -> str:
    return (
        " ".join(str(getattr(error, "reason", None) or error or type(error).__name__).split()) or type(error).__name__
    )


def _checked(address: str) -> str:
    """The address without a slash at its end, if it is one of a server and holds no secrets."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        raise UserError("the judge's address: not an address; write it as http://localhost:8000/v1") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{address}: not an address; write it as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        # It would be written with every score.
        plain = f"{parts.scheme}://{parts.hostname}"
        raise UserError(f"{plain}: give the address without a key, and the key in an environment variable")
    return address.rstrip("/")
