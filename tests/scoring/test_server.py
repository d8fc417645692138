"""The judge behind an API, against a server on this machine that speaks it: well, haltingly, and not at all."""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from lorarar.errors import UserError
from lorarar.scoring.judges import JudgePrompts, Question, Verdict, load_judge, server
from lorarar.scoring.judges.cache import CachedJudge
from lorarar.scoring.judges.server import ServerJudge, yes_probability

ROOT = Path(__file__).parents[2]
SECRET = "sk-not-for-any-eye"
PAUSE = "openai._base_client.INITIAL_RETRY_DELAY"
"""The client's first pause in seconds; it has no public setting."""


class Api:
    """Answers what `replies` hold, one by one and the last one for ever: (status, headers, body), or seconds of
    silence. It remembers what it was asked.
    """

    def __init__(self):
        self.replies = [said("Yes")]
        self.models = ok({"data": [{"id": "critic"}]})
        self.asked, self.keys, self.times = [], [], []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                api.keys.append(self.headers["Authorization"])
                self.reply(*(api.models if self.path == "/v1/models" else (404, {}, b"nothing here")))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with api._lock:
                    api.keys.append(self.headers["Authorization"])
                    api.asked.append(body)
                    api.times.append(time.monotonic())
                    api._at_once += 1
                    api.most_at_once = max(api.most_at_once, api._at_once)
                    reply = api.replies.pop(0) if len(api.replies) > 1 else api.replies[0]
                if callable(reply):
                    reply = reply(body)
                if isinstance(reply, float):
                    time.sleep(reply)
                    reply = said("Yes")
                with api._lock:
                    api._at_once -= 1
                self.reply(*reply)

            def reply(self, status, headers, body):
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # the judge has hung up

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


def ok(content):
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def said(text, likely=None, **message):
    """A reply with a text, and where wanted the chances of the tokens that could have begun it."""
    choice = {"message": {"role": "assistant", "content": text, **message}}
    if likely:
        top = [{"token": token, "logprob": log(chance)} for token, chance in likely.items()]
        choice["logprobs"] = {"content": [{"token": top[0]["token"], "top_logprobs": top}]}
    return ok({"choices": [choice]})


def trouble(status, message="", **headers):
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, message.encode()


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(PAUSE, 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    api = Api()
    yield api
    api.close()


@pytest.fixture(scope="module")
def prompts():
    return JudgePrompts.load(ROOT / "data/prompts.yaml")


def questions(number=1, side=8):
    pictures = np.random.default_rng(0).integers(0, 256, size=(number + 1, side, 2 * side, 3), dtype=np.uint8)
    return [Question("style", pictures[0], test, "oil painting") for test in pictures[1:]]


def sent(part):
    """The picture inside a part of a message."""
    head, data = part["image_url"]["url"].split(",")
    assert head == "data:image/png;base64"
    return PilImage.open(io.BytesIO(base64.b64decode(data)))


def test_both_pictures_stand_where_the_prompt_has_them(api, prompts):
    [question] = questions()
    assert load_judge(api.address, prompts).answer([question]) == [Verdict(True)]
    [body] = api.asked
    assert body["model"] == "critic" and body["temperature"] == 0 and body["max_tokens"] <= 16
    system, user = body["messages"]
    assert system == {"role": "system", "content": "You are a helpful assistant."}
    assert [part["type"] for part in user["content"]] == ["text", "image_url", "text", "image_url", "text"]
    before, reference, between, test, after = user["content"]
    written = before["text"] + "{image}" + between["text"] + "{image}" + after["text"]
    assert written == prompts.text(question)
    assert np.array_equal(np.asarray(sent(reference)), question.reference)
    assert np.array_equal(np.asarray(sent(test)), question.test)


def test_larger_pictures_are_reduced_if_asked(api, prompts):
    load_judge(api.address, prompts, longest_side=10).answer(questions(side=20))
    assert [sent(part).size for part in api.asked[0]["messages"][1]["content"][1::2]] == [(10, 5)] * 2


def test_answers_come_back_in_order_several_at_a_time(api, prompts):
    asked = questions(24)
    asked = [Question("style", q.reference, np.full_like(q.test, i), "oil") for i, q in enumerate(asked)]

    def odd_ones(body):
        number = sent(body["messages"][1]["content"][3]).getpixel((0, 0))[0]
        time.sleep(0.02 if number < 4 else 0.001)
        return said("Yes" if number % 2 else "No")

    api.replies = [odd_ones]
    verdicts = load_judge(api.address, prompts, concurrency=4).answer(asked)
    assert [verdict.yes for verdict in verdicts] == [bool(i % 2) for i in range(24)]
    assert 2 <= api.most_at_once <= 4


def test_soft_probability_is_of_yes_among_yes_and_no(api, prompts):
    api.replies = [said("Yes", {"Yes": 0.5, " yes": 0.1, "No": 0.2, "Maybe": 0.1})]
    judge = load_judge(api.address, prompts)
    [verdict] = judge.answer(questions())
    assert verdict.yes is True and verdict.probability == pytest.approx(0.6 / 0.8)
    assert api.asked[0]["logprobs"] is True and api.asked[0]["top_logprobs"] == 20
    swapped = JudgePrompts(prompts.system, prompts.subject, prompts.style, swapped=True)
    [verdict] = load_judge(api.address, swapped).answer(questions())
    assert verdict.yes is False and verdict.probability == pytest.approx(0.2 / 0.8)


def test_probability_is_read_at_the_first_word_and_nowhere_else():
    def token(text, **likely):
        return {"token": text, "top_logprobs": [{"token": t, "logprob": log(p)} for t, p in likely.items()]}

    assert yes_probability({"content": [token("**"), token("No", No=0.75, Yes=0.25)]}) == pytest.approx(0.25)
    assert yes_probability({"content": [token("I"), token("Yes", Yes=0.9)]}) is None
    for useless in (
        None,
        {},
        {"content": None},
        {"content": []},
        {"content": [{"token": "Yes"}]},
        "Yes",
        {"content": 3},
    ):
        assert yes_probability(useless) is None


def test_a_server_without_logprobs_is_asked_without_and_remembered(api, prompts):
    def strict(body):
        if body.get("top_logprobs", 0) > limit:
            return trouble(400, '{"error": {"message": "too many logprobs"}}')
        return said("No", {"No": 0.75, "Yes": 0.25} if body.get("logprobs") else None)

    for limit, tried, probability in ((5, [20, 5, 5], 0.25), (-1, [20, 5, None, None], None)):
        api.asked.clear()
        api.replies = [strict]
        judge = load_judge(api.address, prompts, concurrency=1)
        if limit < 0:
            api.replies = [lambda body: trouble(400, "no logprobs") if "logprobs" in body else said("No")]
        assert judge.answer(questions(2)) == [Verdict(False, probability)] * 2
        assert [body.get("top_logprobs") for body in api.asked] == tried


@pytest.mark.parametrize(
    "reply",
    [
        said("I'm sorry, I can't compare people."),
        said(None, refusal="I can't help with that."),
        said(""),
        trouble(400, '{"error": {"code": "content_filter", "message": "blocked"}}'),
    ],
)
def test_refusals_are_unanswered_and_say_why(api, prompts, reply):
    api.replies = [reply]
    [verdict] = load_judge(api.address, prompts).answer(questions())
    assert verdict == Verdict(None) and len(api.asked) == 1
    assert verdict.why.startswith("HTTP 400" if reply[0] == 400 else "finish_reason None, text ")


STREAM = b'data: {"choices": [{"delta": {"content": "Yes"}}]}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    ("reply", "what"),
    [
        (ok({"choices": []}), "no chat completion"),
        (ok({"choices": [{"message": None}]}), "no chat completion"),
        (ok([1]), "no chat completion"),
        (trouble(200, '{"choices": [{"mess'), "no chat completion"),
        (
            trouble(200, "<html>\nLog in</html>", Content_Type="text/html"),
            "no chat completion ('<html> Log in</html>')",
        ),
        ((200, {}, b"\xff\xfe"), "no chat completion"),
        ((200, {"Content-Type": "text/event-stream"}, STREAM), "a stream, which was not asked for"),
        (ok({"error": {"code": 502, "message": "Provider gone"}}), "Provider gone"),  # OpenRouter's
        (ok({"choices": [{"message": {"content": ""}, "finish_reason": "error", "error": {"code": 429}}]}), "429"),
    ],
)
def test_what_is_no_chat_completion_is_an_error(api, prompts, reply, what):
    api.replies = [reply]
    with pytest.raises(UserError) as caught:
        load_judge(api.address, prompts).answer(questions())
    line = one_line(caught)
    assert line.startswith(f"{api.address}: ") and what in line and "run again" in line


def thinking(text, thoughts=None, end="stop", field="reasoning"):
    """A reply as vLLM, llama.cpp (field reasoning_content), Ollama and OpenRouter give it."""
    return ok({"choices": [{"message": {"content": text, field: thoughts}, "finish_reason": end}]})


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (thinking("<think>No matter.</think>\nYes."), True),
        (thinking("Yes, both are dogs, but the ears ...\n</think>\n\nNo"), False),  # the template opens the thoughts
        (thinking("<thinking>yes?</thinking>No"), False),
        (thinking("[THINK]yes?[/THINK]No"), False),
        (thinking("\nYes", "No matter."), True),
        (thinking("No", "Yes?", field="reasoning_content"), False),
        (ok({"choices": [{"message": {"content": [
            {"type": "thinking", "thinking": [{"type": "text", "text": "No?"}]}, {"type": "text", "text": "Yes"},
        ]}}]}), True),
    ],
)  # fmt: skip
def test_an_answer_is_read_after_the_thoughts(api, prompts, reply, answer):
    api.replies = [reply]
    assert load_judge(api.address, prompts).answer(questions()) == [Verdict(answer)]


@pytest.mark.parametrize(
    "reply",
    [
        thinking("<think>Yes, the first picture shows", end="length"),
        thinking(None, "Yes, the first picture shows", end="length"),
        thinking("", "Yes, the first picture shows", end="length", field="reasoning_content"),
    ],
)
def test_thoughts_that_were_cut_are_no_answer_and_name_the_option(api, prompts, tmp_path, reply):
    api.replies = [reply]
    with pytest.raises(UserError) as caught:
        CachedJudge(load_judge(api.address, prompts, max_tokens=20), tmp_path).answer(questions(2))
    line = one_line(caught)
    assert line.startswith(f"critic at {api.address}: neither yes nor no to 2 of the first 2 questions")
    assert "finish_reason 'length'" in line and "Yes, the first picture shows'" in line
    assert "max_tokens, which is 20" in line
    assert api.asked[0]["max_tokens"] == 20


def test_the_probability_is_read_after_the_thoughts():
    def tokens(*texts):
        return {"content": [{"token": text, "top_logprobs": [{"token": text, "logprob": 0.0}]} for text in texts]}

    assert yes_probability(tokens("<think>", "No", "</", "think", ">\n", "Yes"), thought=True) == 1
    assert yes_probability(tokens("<think>", "No"), thought=True) is None
    assert yes_probability({"content": []}, thought=True) is None


REFUSED = {
    "vLLM": (400, {"object": "error", "message": "System role not supported", "type": "BadRequestError"}),
    "OpenAI": (400, {"error": {"message": "'messages[0].role' does not support 'system' with this model."}}),
    "llama.cpp": (500, {"error": {"code": 500, "message": "Jinja Exception: System role not supported"}}),
    "LM Studio": (400, {"error": 'Error rendering prompt: "Only user and assistant roles are supported!"'}),
    "Google": (400, {"error": {"code": 400, "message": "Developer instruction is not enabled for gemma-3"}}),
}


@pytest.mark.parametrize("server", REFUSED)
def test_the_system_text_goes_to_the_user_where_its_role_is_refused(api, prompts, server):
    status, body = REFUSED[server]

    def strict(asked):
        refused = asked["messages"][0]["role"] == "system"
        return (status, {"Content-Type": "application/json"}, json.dumps(body).encode()) if refused else said("Yes")

    api.replies = [strict]
    judge = load_judge(api.address, prompts, concurrency=1)
    assert judge.answer(questions(2)) == [Verdict(True)] * 2
    assert [body["messages"][0]["role"] for body in api.asked[-2:]] == ["user", "user"]
    [user] = api.asked[-1]["messages"]
    assert user["content"][0]["text"] == "You are a helpful assistant.\n\n" and len(user["content"]) == 6
    assert api.asked[-1]["top_logprobs"] == 20, "nothing else was given up"


def test_the_limit_of_tokens_gets_the_name_that_the_server_asks_for(api, prompts):
    message = (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    )

    def strict(body):
        return trouble(400, json.dumps({"error": {"message": message}})) if "max_tokens" in body else said("No")

    api.replies = [strict]
    judge = load_judge(api.address, prompts, concurrency=1, max_tokens=4096)
    assert judge.answer(questions(2)) == [Verdict(False)] * 2
    assert [body.get("max_completion_tokens") for body in api.asked] == [None, 4096, 4096]


def test_temperature_is_an_option_and_a_server_that_refuses_it_tells_to_set_it(api, prompts):
    message = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported."

    def strict(body):
        return trouble(400, message) if body.get("temperature") == 0 else said("No")

    api.replies = [strict]
    with pytest.raises(UserError, match="set the option temperature"):
        load_judge(api.address, prompts).answer(questions())
    for temperature, sent_one in ((None, None), (1, 1)):
        judge = load_judge(api.address, prompts, temperature=temperature)
        assert judge.answer(questions()) == [Verdict(False)]
        assert api.asked[-1].get("temperature") == sent_one
        assert judge.identity != load_judge(api.address, prompts).identity


@pytest.mark.parametrize(
    ("reply", "advice"),
    [
        (trouble(401, '{"error": {"message": "No auth credentials found"}}'), "; set the key in the environment"),
        (trouble(403, "forbidden"), "variable OPENAI_API_KEY, or name another by key_variable"),
        (trouble(402, '{"error": {"message": "Insufficient credits"}}'), "; pay for more credits"),
        (trouble(404, '{"error": {"message": "model \'m\' not found"}}'), "; name a model that it serves"),  # Ollama's
        (trouble(404, '{"detail": "Not Found"}'), "; does the address end in /v1?"),  # vLLM's
        (trouble(405, "Method Not Allowed"), "; does the address end in /v1?"),
        (trouble(413, "too large"), "; send smaller pictures (option longest_side)"),
    ],
)
def test_what_a_server_refuses_is_one_line_with_what_to_do(api, prompts, reply, advice):
    api.replies = [reply]
    with pytest.raises(UserError) as caught:
        load_judge(api.address, prompts, model="m").answer(questions())
    line = one_line(caught)
    assert line.startswith(f"{api.address}: HTTP {reply[0]} ") and advice in line


@pytest.mark.parametrize("models", [trouble(404, "nothing"), trouble(403, "not this key"), trouble(200, "<html>")])
def test_a_server_need_not_list_its_models_where_one_is_named(api, prompts, models):
    api.models = models
    assert load_judge(api.address, prompts, model="m").answer(questions()) == [Verdict(True)]
    assert api.asked[0]["model"] == "m"


def test_a_busy_server_is_asked_again_when_it_says(api, prompts):
    api.replies = [trouble(429, Retry_After="1"), trouble(429), trouble(503), trouble(500), said("Yes")]
    judge = load_judge(api.address, prompts)
    assert judge.answer(questions()) == [Verdict(True)]
    gaps = np.diff(api.times)
    assert gaps[0] >= 0.99 and gaps[1:].max() < 0.5
    assert api.asked[0] == api.asked[-1]


def test_pauses_grow(api, prompts, monkeypatch):
    monkeypatch.setattr(PAUSE, 0.04)
    api.replies = [trouble(500), trouble(500), trouble(500), said("Yes")]
    load_judge(api.address, prompts).answer(questions())
    for attempt, gap in enumerate(np.diff(api.times)):
        assert gap >= 0.02 * 2**attempt


def test_timeouts_and_broken_connections_are_tried_again(api, prompts):
    api.replies = [0.5, (200, {"Content-Length": "1000"}, b"cut off"), said("Yes")]
    assert load_judge(api.address, prompts, timeout=0.2).answer(questions()) == [Verdict(True)]
    assert len(api.asked) == 3


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("reply", "why"), [(trouble(503, "overloaded"), "HTTP 503 overloaded"), (0.4, "timed out")])
def test_a_server_that_stays_broken_ends_with_one_line(api, prompts, monkeypatch, reply, why):
    monkeypatch.setattr(server, "ATTEMPTS", 3)
    api.replies = [reply]
    judge = load_judge(api.address, prompts, timeout=0.1)
    with pytest.raises(UserError) as caught:
        judge.answer(questions())
    line = one_line(caught)
    assert api.address in line and why in line and "3 attempts" in line
    assert len(api.asked) == 3


def test_one_failure_stops_all_others(api, prompts, monkeypatch):
    monkeypatch.setattr(PAUSE, 8.0)
    begun = time.monotonic()
    api.replies = [trouble(503), trouble(503), trouble(404, "no such model")]
    with pytest.raises(UserError, match="404 no such model"):
        load_judge(api.address, prompts, concurrency=3).answer(questions(50))
    assert time.monotonic() - begun < 5 and len(api.asked) < 10


def test_a_quota_of_the_day_is_not_waited_for(api, prompts):
    api.replies = [trouble(429, "quota", Retry_After="86400")]
    with pytest.raises(UserError, match=r"asks to wait \(HTTP 429 quota, Retry-After: 86400\)"):
        load_judge(api.address, prompts).answer(questions())
    assert len(api.asked) == 1


def test_the_key_comes_from_its_variable_and_is_never_shown(api, prompts, monkeypatch):
    load_judge(api.address, prompts).answer(questions())
    assert set(api.keys) == {None}
    monkeypatch.setenv("MY_KEY", SECRET + "\n")
    api.keys.clear()
    judge = load_judge(api.address, prompts, key_variable="MY_KEY")
    judge.answer(questions())
    assert set(api.keys) == {f"Bearer {SECRET}"}
    api.replies = [trouble(401, f"Incorrect key {SECRET}")]
    with pytest.raises(UserError, match=r"HTTP 401 Incorrect key \*\*\*") as caught:
        judge.answer(questions())
    shown = [one_line(caught), repr(judge), judge.name, judge.identity]
    assert not any(SECRET in text for text in shown)
    monkeypatch.setenv("MY_KEY", "two\nlines")
    with pytest.raises(UserError, match="MY_KEY") as caught:
        load_judge(api.address, prompts, key_variable="MY_KEY")
    assert "two" not in one_line(caught)


def test_the_key_does_not_follow_to_another_address(api, prompts, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    other = Api()
    try:
        api.models = trouble(302, Location=f"{other.address}/models")
        load_judge(api.address, prompts)
        assert api.keys == [f"Bearer {SECRET}"] and other.keys == [None]
    finally:
        other.close()


def test_reachability_is_checked_before_anything_is_asked(api, prompts, monkeypatch):
    def refused(address=api.address, **options):
        with pytest.raises(UserError) as caught:
            load_judge(address, prompts, **options)
        return one_line(caught)

    api.models = trouble(401, "who are you?")
    assert "HTTP 401 who are you?; set the key in the environment variable OPENAI_API_KEY" in refused()
    assert "end in /v1?" in refused(api.address.removesuffix("/v1"))
    api.models = trouble(200, "<html>\nWelcome!")
    assert "not the reply of an OpenAI-compatible server" in refused()
    api.models = ok({"data": [{"id": "small"}, {"id": "large"}]})
    assert "it serves small, large" in refused()
    assert load_judge(api.address, prompts, model="large").name == f"large at {api.address}"
    assert "has no option colour; it has model," in refused(colour="red")
    assert "concurrency" in refused(model="large", concurrency=0)
    assert not api.asked
    api.close()
    assert f"{api.address}: cannot be reached" in refused()


@pytest.mark.parametrize("address", ["http://", "http://[", "http://host:port/v1"])
def test_what_is_no_address_is_named(prompts, address):
    with pytest.raises(UserError, match="not an address"):
        ServerJudge(address, prompts, "m")


@pytest.mark.parametrize("address", [f"https://me:{SECRET}@host/v1", f"https://host/v1?key={SECRET}"])
def test_keys_in_an_address_are_refused_and_not_shown(prompts, address):
    with pytest.raises(UserError, match="environment variable") as caught:
        ServerJudge(address, prompts, "m")
    assert SECRET not in str(caught.value)


def test_identity_names_address_model_and_size_of_pictures(prompts):
    base = ServerJudge("http://host/v1/", prompts, "m").identity
    assert base == ServerJudge("http://host/v1", prompts, "m").identity
    others = [
        ServerJudge("http://host/v1", prompts, "n"),
        ServerJudge("http://host:8/v1", prompts, "m"),
        ServerJudge("http://host/v1", prompts, "m", longest_side=512),
    ]
    assert len({base, *(other.identity for other in others)}) == 4
