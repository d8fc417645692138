"""A judge behind an OpenAI-compatible chat endpoint, such as vLLM's: both pictures and the prompt go to
`POST <address>/chat/completions`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import accumulate
from math import exp
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI, OpenAI, omit
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from lorarar.errors import UserError, first_line
from lorarar.scoring.images import as_pil
from lorarar.scoring.judges import (
    FIRST_WORD,
    MAX_UNANSWERED,
    JudgePrompts,
    Question,
    Verdict,
    conversation,
    read_answer,
)

if TYPE_CHECKING:
    from PIL import Image as PilImage

ATTEMPTS = 7
"""Requests sent for one question. The client's pauses between them add up to about 20 s, or to what the server asks."""
TOP_LOGPROBS = (20, 5, 0)
"""Likely tokens asked for with an answer. Servers limit them differently, and some give none at all."""
REFUSALS = ("content_filter", "content_policy_violation")
NO_SYSTEM = re.compile(
    r"system.{0,20}\brole|role\W.{0,40}\bsystem|only user and assistant roles|roles must alternate"
    r"|developer instruction",
    re.IGNORECASE,
)
"""Complaints of servers and chat templates whose model takes no system turn."""
THINKS, THOUGHT = re.compile(r"<think(?:ing)?>|\[THINK\]"), re.compile(r"</think(?:ing)?>|\[/THINK\]")
"""Marks around a model's thoughts. Some templates write the first themselves, so that only the second is sent."""


@dataclass(frozen=True)
class Manner:
    """How a server likes to be asked; it is found out by the server's refusals.

    Attributes
    ----------
    limit : the API's name for the largest number of tokens of an answer.
    system : the system text has a turn of its own; otherwise it stands in front of the user's.
    top_logprobs : number of likely tokens asked for with an answer.
    """

    limit: str = "max_tokens"
    system: bool = True
    top_logprobs: int = TOP_LOGPROBS[0]

    def milder(self, status: int, complaint: str) -> Manner | None:
        """Returns what to try after a refusal; None if nothing is left."""
        if status in (400, 422) and self.limit == "max_tokens" and "max_completion_tokens" in complaint:
            return replace(self, limit="max_completion_tokens")
        # llama.cpp reports what its chat template refuses as HTTP 500.
        if status in (400, 422, 500) and self.system and NO_SYSTEM.search(complaint):
            return replace(self, system=False)
        if status in (400, 422) and self.top_logprobs:
            return replace(self, top_logprobs=max(n for n in TOP_LOGPROBS if n < self.top_logprobs))
        return None


class ServerJudge:
    """Asks a served model, several questions at a time, and reads the probabilities of yes and no where it sends them.

    A refusal, an empty text and thoughts without an answer are unanswered questions, and a reply that is no chat
    completion is an error. A busy, broken or silent server is asked again after growing pauses.

    Parameters
    ----------
    address : base address of the API, such as `http://localhost:8000/v1`.
    prompts : wording of the questions.
    model : the served model's name.
    key_variable : environment variable that holds the key; it may be unset, as local servers need none.
    concurrency : questions asked at a time.
    timeout : seconds of silence after which an attempt has failed.
    longest_side : larger pictures are reduced to this many pixels before they are sent.
    max_tokens : largest number of tokens of an answer. A model that thinks needs thousands.
    temperature : of sampling; None leaves it to the server.
    max_unanswered : larger shares of unanswered questions are an error, see `CachedJudge`.

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
        max_tokens: int = 8,
        temperature: float | None = 0,
        max_unanswered: float = MAX_UNANSWERED,
    ) -> None:
        self.address = _checked(address)
        self.prompts = prompts
        self.model = str(model)
        self.name = f"{self.model} at {self.address}"
        self.concurrency = concurrency
        self.longest_side = longest_side
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.max_unanswered = max_unanswered
        self.manner = Manner()
        self._key_variable = key_variable
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
        max_tokens: PositiveInt = 8,
        temperature: NonNegativeFloat | None = 0,
        max_unanswered: Annotated[float, Field(ge=0, le=1)] = MAX_UNANSWERED,
    ) -> ServerJudge:
        """Checks that the server can be reached, and takes its model if none is named and it serves just one.

        Both are done by `GET <address>/models`. Where a model is named, any reply to that will do.

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
            max_tokens=max_tokens,
            temperature=temperature,
            max_unanswered=max_unanswered,
        )
        try:
            served = judge._models()
        except Unlisted as error:
            if not model:
                raise UserError(str(error)) from None
        if not model:
            if len(served) != 1:
                listed = ", ".join(served[:10]) or "none"
                raise UserError(f"{judge.address}: name the model to ask (option model); it serves {listed}")
            judge.model, judge.name = served[0], f"{served[0]} at {judge.address}"
        return judge

    @property
    def identity(self) -> str:
        """Address, model, size of pictures, and a temperature above 0; the server tells no checksum of its weights."""
        warm = "" if self.temperature == 0 else f" temperature {self.temperature}"
        return f"{self.name} longest side {self.longest_side}{warm}"

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
            turns = await asyncio.to_thread(self._turns, question)  # pictures take long to compress
            manner = self.manner
            while True:
                top = manner.top_logprobs
                wish: dict[str, Any] = {"logprobs": True, "top_logprobs": top} if top else {}
                if self.temperature is not None:
                    wish["temperature"] = self.temperature
                try:
                    reply = await client.chat.completions.with_raw_response.create(
                        model=self.model,
                        messages=_messages(*turns, manner.system),
                        extra_headers=self._headers,
                        extra_body={manner.limit: self.max_tokens},
                        **wish,
                    )
                except APIStatusError as error:
                    complaint = error.response.text
                    if any(refusal in complaint for refusal in REFUSALS):
                        return Verdict(None, why=self._reason(error))
                    milder = manner.milder(error.status_code, complaint)
                    if milder is None:
                        raise self._failure(error) from None
                    manner = milder
                except APIConnectionError as error:
                    raise self._failure(error) from None
                else:
                    self.manner = manner
                    return self._read(reply.content)

    def _failure(self, error: APIStatusError | APIConnectionError) -> UserError:
        reason = self._reason(error)
        if isinstance(error, APIStatusError):
            if error.status_code not in (408, 409, 429) and error.status_code < 500:
                return UserError(f"{self.address}: {reason}{self._advice(error.status_code, error.response.text)}")
            if wait := error.response.headers.get("Retry-After"):
                return UserError(f"{self.address}: asks to wait ({reason}, Retry-After: {wait}); run again after that")
        return UserError(f"{self.address}: no answer in {ATTEMPTS} attempts ({reason}); run again when it is back")

    def _advice(self, status: int, complaint: str) -> str:
        """What to do about a server's refusal, as the end of a sentence."""
        if status in (401, 403):
            return f"; set the key in the environment variable {self._key_variable}, or name another by key_variable"
        if status == 402:
            return "; pay for more credits, then run again"
        if status in (404, 405):
            named = "model" in complaint.lower()
            return "; name a model that it serves (option model)" if named else "; does the address end in /v1?"
        if status == 413:
            return "; send smaller pictures (option longest_side)"
        if status in (400, 422) and "temperature" in complaint:
            return "; set the option temperature to what it takes, or to None"
        return ""

    def _turns(self, question: Question) -> tuple[str, list[dict[str, Any]]]:
        """Text of the system and parts of the user."""
        system, user = conversation(self.prompts, question)
        pictures = iter(as_pil([question.reference, question.test], self.longest_side))
        parts = [
            part if part["type"] == "text" else {"type": "image_url", "image_url": {"url": data_url(next(pictures))}}
            for part in user["content"]
        ]
        return system["content"][0]["text"], parts

    def _models(self) -> list[str]:
        try:
            with OpenAI(**self._options, max_retries=0) as client:
                reply = client.models.with_raw_response.list(extra_headers=self._headers)
            return [str(entry["id"]) for entry in json.loads(reply.content)["data"]]
        except APIStatusError as error:
            hint = self._advice(error.status_code, "") or "; name the model to ask (option model)"
            raise Unlisted(f"{self.address}/models: {self._reason(error)}{hint}") from None
        except APIConnectionError as error:
            reason = self._reason(error)
            raise UserError(
                f"{self.address}: cannot be reached ({reason}); start the server or mend the address"
            ) from None
        except (ValueError, LookupError, TypeError):
            message = "not the reply of an OpenAI-compatible server; mend the address, or name the model (option model)"
            raise Unlisted(f"{self.address}/models: {message}") from None

    def _reason(self, error: APIStatusError | APIConnectionError) -> str:
        """The server's or the network's complaint on one line; servers like to quote the key."""
        if not isinstance(error, APIStatusError):
            return first_line(error if isinstance(error, APITimeoutError) else error.__cause__ or error)
        return f"HTTP {error.status_code} {self._quoted(error.response.text)}"

    def _quoted(self, text: str, length: int = 300) -> str:
        """The beginning of a text on one line, without the key."""
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(text.split())[:length]

    def _read(self, reply: bytes) -> Verdict:
        """Reads a verdict from the body of a reply.

        Raises
        ------
        UserError : the body is no chat completion, or the server's error.
        """
        body = reply.decode("utf-8", errors="replace")
        try:
            choice = json.loads(reply)["choices"][0]
            message, end = choice["message"], choice.get("finish_reason")
            content = message.get("content")
        except (ValueError, LookupError, TypeError, AttributeError):
            what = "a stream, which was not asked for" if body.lstrip().startswith("data:") else "no chat completion"
            advice = "mend the address, or run again when the server is well"
            raise UserError(f"{self.address}: sends {what} ({self._quoted(body, 120)!r}); {advice}") from None
        if end == "error":
            raise UserError(f"{self.address}: {self._quoted(json.dumps(choice.get('error')))}; run again")
        text = _text(content)
        answer = THINKS.split(THOUGHT.split(text)[-1])[0]
        thoughts = next((message[key] for key in ("reasoning", "reasoning_content") if message.get(key)), "")
        yes = read_answer(answer)
        if yes is None:
            said = text or message.get("refusal") or thoughts
            why = f"finish_reason {end!r}, text {self._quoted(str(said), 120)!r}"
            if end == "length":
                why += f"; raise the option max_tokens, which is {self.max_tokens}"
            return Verdict(None, why=why)
        return self.prompts.verdict(yes, yes_probability(choice.get("logprobs"), bool(thoughts) or answer != text))


class Unlisted(UserError):
    """The server does not list its models, which matters only where none is named."""


def _messages(system: str, parts: list[dict[str, Any]], apart: bool) -> list[Any]:
    """Messages of a request; the system text is a turn `apart`, or stands in front of the user's."""
    if not apart:
        return [{"role": "user", "content": [{"type": "text", "text": f"{system}\n\n"}, *parts]}]
    # Some servers understand only plain text in a system turn.
    return [{"role": "system", "content": system}, {"role": "user", "content": parts}]


def _text(content: Any) -> str:
    """Text of a message: a string, or a list of parts among which thoughts may be."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    texts = (part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") != "thinking")
    return "".join(text for text in texts if isinstance(text, str))


def yes_probability(logprobs: Any, thought: bool = False) -> float | None:
    """Probability of yes among yes and no, at the first token with a word in it; None if it cannot be read.

    Parameters
    ----------
    logprobs : `logprobs` of a choice of the API's reply; anything else gives None.
    thought : the answer followed thoughts, whose tokens are passed over up to the mark at their end.
    """
    chances = {"yes": 0.0, "no": 0.0}
    try:
        tokens = list(logprobs["content"])
        if thought:
            written = list(accumulate(token["token"] for token in tokens))
            end = list(THOUGHT.finditer(written[-1]))[-1].end()
            tokens = [token for token, text in zip(tokens, written, strict=True) if len(text) > end]
        first = next(token for token in tokens if FIRST_WORD.match(token["token"]))
        for likely in first["top_logprobs"]:
            word = likely["token"].strip().lower()
            if word in chances:
                chances[word] += exp(likely["logprob"])
        return chances["yes"] / sum(chances.values())
    except (LookupError, TypeError, AttributeError, StopIteration, ArithmeticError, ValueError):
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
