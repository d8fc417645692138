"""A judge behind an OpenAI-compatible chat endpoint, such as vLLM's: both pictures and the prompt go to
`POST <address>/chat/completions`.
"""

from __future__ import annotations

import asyncio
import json
import os
from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from math import exp
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, OpenAI, omit
from pydantic import PositiveFloat, PositiveInt

from lorarar.errors import UserError, first_line
from lorarar.scoring.images import as_pil
from lorarar.scoring.judges import FIRST_WORD, JudgePrompts, Question, Verdict, conversation, read_answer

if TYPE_CHECKING:
    from PIL import Image as PilImage

ATTEMPTS = 7
"""Requests sent for one question. The client's pauses between them add up to about 20 s, or to what the server asks."""
TOP_LOGPROBS = (20, 5, 0)
"""Likely tokens asked for with an answer. Servers limit them differently, and some give none at all."""
REFUSALS = ("content_filter", "content_policy_violation")


class ServerJudge:
    """Asks a served model, several questions at a time, and reads the probabilities of yes and no where it sends them.

    A refusal or an unreadable reply is an unanswered question. A busy, broken or silent server is asked again after
    growing pauses.

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
    UserError : the address is not valid, or the key holds characters that no key has.
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
        self.longest_side = longest_side
        self.top_logprobs = TOP_LOGPROBS[0]
        self._key = os.environ.get(key_variable, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"{key_variable}: holds characters that no key has; set it again")
        # The client insists on a key: without one, no header carries it.
        self._headers = {} if self._key else {"Authorization": omit}
        self._options: dict[str, Any] = {"base_url": self.address, "api_key": self._key or "none", "timeout": timeout}

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
        """Checks that the server answers (`GET <address>/models`), and takes its model if it serves just one.

        Parameters
        ----------
        device : not used; the server decides where the model runs.

        Raises
        ------
        UserError : the server cannot be reached, rejects the key, or serves several models and none was named.
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
        """Address, model and size of pictures; the server does not tell the checksum of its weights."""
        return f"{self.name} longest side {self.longest_side}"

    def answer(self, questions: Sequence[Question]) -> list[Verdict]:
        """Gives one verdict per question, in order.

        Raises
        ------
        UserError : the server does not answer, or rejects a question as malformed.
        """
        # A failure or an interrupt ends `run`, and that cancels all other questions and their pauses.
        return asyncio.run(self._answer(questions))

    async def _answer(self, questions: Sequence[Question]) -> list[Verdict]:
        limit = asyncio.Semaphore(self.concurrency)
        async with AsyncOpenAI(**self._options, max_retries=ATTEMPTS - 1) as client:
            return await asyncio.gather(*(self._ask(client, limit, question) for question in questions))

    async def _ask(self, client: AsyncOpenAI, limit: asyncio.Semaphore, question: Question) -> Verdict:
        async with limit:
            messages = await asyncio.to_thread(self._messages, question)  # pictures take long to compress
            for top in (number for number in TOP_LOGPROBS if number <= self.top_logprobs):
                wish: dict[str, Any] = {"logprobs": True, "top_logprobs": top} if top else {}
                try:
                    reply = await client.chat.completions.with_raw_response.create(
                        model=self.model,
                        messages=messages,
                        temperature=0,
                        max_tokens=8,
                        extra_headers=self._headers,
                        **wish,
                    )
                except APIStatusError as error:
                    if any(refusal in error.response.text for refusal in REFUSALS):
                        break
                    if top and error.status_code in (400, 422):
                        continue
                    raise self._failure(error) from None
                except APIConnectionError as error:
                    raise self._failure(error) from None
                self.top_logprobs = top
                return self._read(reply.content)
        return Verdict(None)

    def _failure(self, error: APIStatusError | APIConnectionError) -> UserError:
        reason = self._reason(error)
        if isinstance(error, APIStatusError):
            if error.status_code not in (408, 409, 429) and error.status_code < 500:
                return UserError(f"{self.address}: {reason}")
            if wait := error.response.headers.get("Retry-After"):
                return UserError(f"{self.address}: asks to wait ({reason}, Retry-After: {wait}); run again after that")
        return UserError(f"{self.address}: no answer in {ATTEMPTS} attempts ({reason}); run again when it is back")

    def _messages(self, question: Question) -> list[Any]:
        system, user = conversation(self.prompts, question)
        pictures = iter(as_pil([question.reference, question.test], self.longest_side))
        parts = [
            part if part["type"] == "text" else {"type": "image_url", "image_url": {"url": data_url(next(pictures))}}
            for part in user["content"]
        ]
        # Some servers understand only plain text in a system turn.
        return [{"role": "system", "content": system["content"][0]["text"]}, {"role": "user", "content": parts}]

    def _models(self) -> list[str]:
        try:
            with OpenAI(**self._options, max_retries=0) as client:
                reply = client.models.with_raw_response.list(extra_headers=self._headers)
            return [str(entry["id"]) for entry in json.loads(reply.content)["data"]]
        except APIStatusError as error:
            hint = {401: "; set the key's variable", 403: "; set the key's variable", 404: "; does it end in /v1?"}
            message = f"{self.address}/models: {self._reason(error)}{hint.get(error.status_code, '')}"
            raise UserError(message) from None
        except APIConnectionError as error:
            reason = self._reason(error)
            raise UserError(
                f"{self.address}: cannot be reached ({reason}); start the server or mend the address"
            ) from None
        except (ValueError, LookupError, TypeError):
            raise UserError(f"{self.address}/models: not the reply of an OpenAI-compatible server") from None

    def _reason(self, error: APIStatusError | APIConnectionError) -> str:
        """The server's or the network's complaint on one line; servers like to quote the key."""
        if not isinstance(error, APIStatusError):
            return first_line(error if isinstance(error, APITimeoutError) else error.__cause__ or error)
        text = error.response.text
        text = text.replace(self._key, "***") if self._key else text
        return f"HTTP {error.status_code} {' '.join(text.split())[:300]}"

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
    """Probability of yes among yes and no, at the first token with a word in it; None if it cannot be read.

    Parameters
    ----------
    logprobs : `logprobs` of a choice of the API's reply; anything else gives None.
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
    """Encodes a picture as a PNG in a data URL."""
    file = BytesIO()
    picture.save(file, format="PNG")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def _checked(address: str) -> str:
    """Checks that an address is valid and holds no secrets, and removes the slash at its end."""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        raise UserError("the judge's address: not an address; write it as http://localhost:8000/v1") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{address}: not an address; write it as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        # The key would be written next to every score.
        plain = f"{parts.scheme}://{parts.hostname}"
        raise UserError(f"{plain}: give the address without a key, and the key in an environment variable")
    return address.rstrip("/")
