"""Downloads from a server on this machine that does what servers do: well, haltingly, and not at all."""

from __future__ import annotations

import email.utils
import io
import re
import time
from collections import Counter
from pathlib import Path

import pytest
import requests
from mirror import Mirror, Reply, cut, drip, endless, redirect, silent, status, whole

from lorarar.data.download import Downloader, Manners, Refused

BODY = bytes(range(256)) * 40
MANNERS = Manners(
    user_agent="tests/1.0", per_host=2, attempts=3, pause=0.01, silence=0.5, seconds=5, megabytes=0.02
)  # fmt: skip


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "file.part"


def get(address: str, part: Path, hosts: tuple[str, ...] = (), **manners: float) -> None:
    Downloader(MANNERS.model_copy(update=manners), frozenset(hosts)).get(address, part)


def refusal(address: str, part: Path, **manners: float) -> str:
    with pytest.raises(Refused) as error:
        get(address, part, **manners)
    return str(error.value)


# --- what comes in the end --------------------------------------------------------------------------------------


def test_a_file_comes_whole_and_the_server_learns_who_asks(mirror: Mirror, part: Path) -> None:
    get(mirror.serve("/a.jpg", whole(BODY)), part)
    assert part.read_bytes() == BODY
    (headers,) = mirror.asked["/a.jpg"]
    assert headers["User-Agent"] == "tests/1.0" and "Range" not in headers


@pytest.mark.parametrize(
    "fault",
    [status(503), status(500), status(408), status(429), silent(0.8), cut(BODY, 100), cut(BODY, 0)],
    ids=["503", "500", "408", "429", "silence", "cut", "cut at once"],
)
def test_after_a_fault_it_is_asked_again(mirror: Mirror, part: Path, fault: Reply) -> None:
    address = mirror.serve("/a.jpg", fault, whole(BODY))
    get(address, part)
    assert part.read_bytes() == BODY
    assert len(mirror.asked["/a.jpg"]) == 2


def test_after_a_cut_the_whole_file_is_asked_for_again(mirror: Mirror, part: Path) -> None:
    get(mirror.serve("/a.jpg", cut(BODY, 7000), whole(BODY[::-1])), part)
    assert part.read_bytes() == BODY[::-1]
    assert not any("Range" in headers for headers in mirror.asked["/a.jpg"])


def test_a_cut_at_the_last_attempt_is_one_bare_reason(mirror: Mirror, part: Path) -> None:
    assert refusal(mirror.serve("/a.jpg", cut(BODY, 7000)), part, attempts=1) == "cut off (attempt 1 of 1)"


# --- how long it waits ------------------------------------------------------------------------------------------


def test_pauses_double(mirror: Mirror, part: Path) -> None:
    assert refusal(mirror.serve("/a.jpg", status(503)), part, attempts=4, pause=0.08) == "HTTP 503 (attempt 4 of 4)"
    pauses = [later - sooner for sooner, later in zip(mirror.times, mirror.times[1:], strict=False)]
    assert all(pause >= least for pause, least in zip(pauses, (0.04, 0.08, 0.16), strict=True))


@pytest.mark.parametrize("date", [False, True])
def test_it_waits_as_long_as_the_server_asks(mirror: Mirror, part: Path, date: bool) -> None:
    # A date has whole seconds: one that lies two ahead is at least one away.
    value = email.utils.formatdate(time.time() + 2, usegmt=True) if date else "1"
    get(mirror.serve("/a.jpg", status(429, Retry_After=value), whole(BODY)), part)
    assert mirror.times[1] - mirror.times[0] > 0.9


def test_a_pause_beyond_the_time_of_a_file_ends_it_and_the_other_files_of_its_host(mirror: Mirror, part: Path) -> None:
    downloader = Downloader(MANNERS, frozenset())
    started = time.monotonic()
    with pytest.raises(Refused, match="HTTP 429; the next attempt is due in 3600 s, run again after that"):
        downloader.get(mirror.serve("/a.jpg", status(429, Retry_After=3600)), part)
    with pytest.raises(Refused, match="due in 3600 s"):
        downloader.get(mirror.serve("/b.jpg", whole(BODY)), part)
    assert time.monotonic() - started < 3 and not mirror.asked["/b.jpg"]


def test_dripping_ends_with_the_time_of_a_file(mirror: Mirror, part: Path) -> None:
    started = time.monotonic()
    assert "not whole after 0.3 s" in refusal(mirror.serve("/a.jpg", drip(BODY, 0.02)), part, seconds=0.3)
    assert time.monotonic() - started < 3


# --- what does not come -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (status(404), "HTTP 404"),
        (status(403), "HTTP 403"),
        (status(206, BODY), "HTTP 206"),
        (status(200, b"<html>Sign in</html>", Content_Type="text/html; charset=utf-8"), "sends text/html, no picture"),
        (whole(bytes(20001)), "is larger than 0.02 MB"),
        (endless, "is larger than 0.02 MB"),
        (cut(bytes(20001), 0), "is larger than 0.02 MB"),  # told by its head alone
        (redirect("https://elsewhere.example/a.jpg"), "leads to https://elsewhere.example/a.jpg, whose host is none"),
        (redirect("http://user@127.0.0.1/a.jpg"), "whose host is none that it may lead to"),
        (redirect("file:///etc/passwd"), "whose host is none that it may lead to"),
        (redirect("http://[1/"), "no address, or leads to none"),
        (redirect("/a.jpg"), "still leads on after 5 redirects"),
    ],
)
def test_what_will_not_come_is_not_asked_for_again(mirror: Mirror, part: Path, reply: Reply, reason: str) -> None:
    assert reason in refusal(mirror.serve("/a.jpg", reply), part)
    assert len(mirror.asked["/a.jpg"]) == (5 if "leads on" in reason else 1)


def test_a_server_that_is_not_there_is_one_bare_reason(mirror: Mirror, part: Path) -> None:
    mirror.close()
    assert refusal(f"{mirror.url}/a.jpg", part) == "[Errno 111] Connection refused (attempt 3 of 3)"


def test_redirects_lead_on_to_allowed_hosts(mirror: Mirror, part: Path) -> None:
    other = Mirror()
    address = mirror.serve("/photos/1/download?force=true", redirect(other.serve("/photo-1", whole(BODY))))
    with pytest.raises(Refused, match="whose host is none"):
        get(address, part)
    get(address, part, hosts=(other.host,))
    other.close()
    assert part.read_bytes() == BODY


def test_an_encrypted_address_does_not_lead_to_one_that_is_not(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    response = requests.Response()
    response.raw = io.BytesIO()
    response.status_code, response.headers["Location"] = 302, "http://a.example/b.jpg"
    monkeypatch.setattr(requests.Session, "get", lambda *_, **__: response)
    assert refusal("https://a.example/b.jpg", part) == "leads to http://a.example/b.jpg, which is not encrypted"


# --- many -------------------------------------------------------------------------------------------------------


def test_a_host_is_asked_for_some_at_a_time_and_refusals_are_told(mirror: Mirror, tmp_path: Path) -> None:
    addresses = {f"{i}": mirror.serve(f"/{i}", whole(BODY, pause=0.03)) for i in range(8)}
    mirror.serve("/3", status(404))
    downloader = Downloader(MANNERS, frozenset())
    ended = dict(downloader.each(addresses, lambda name: downloader.get(addresses[name], tmp_path / name)))
    assert ended == {f"{i}": "HTTP 404" if i == 3 else "" for i in range(8)}
    assert mirror.most_at_once == 2


def test_a_host_that_fails_file_after_file_is_given_up(mirror: Mirror, tmp_path: Path) -> None:
    addresses = {f"{i}": mirror.serve(f"/{i}", status(404 if i == 0 else 503)) for i in range(8)}
    downloader = Downloader(MANNERS, frozenset())
    reasons = dict(downloader.each(addresses, lambda name: downloader.get(addresses[name], tmp_path / name)))
    # Two at a time: when the second is given up, a third may be at its last attempt.
    assert re.fullmatch(rf"skipped: the last [23] downloads from {mirror.host} failed \(HTTP 503\)", reasons["7"])
    assert Counter(reasons.values())["HTTP 503 (attempt 3 of 3)"] <= 3 and not mirror.asked["/7"]


def test_a_host_that_fails_now_and_then_is_not(mirror: Mirror, part: Path) -> None:
    broken, good = mirror.serve("/broken", status(503)), mirror.serve("/good", whole(BODY))
    downloader = Downloader(MANNERS, frozenset())
    for _ in range(3):
        with pytest.raises(Refused, match="HTTP 503"):
            downloader.get(broken, part)
        downloader.get(good, part)


def test_a_defect_ends_it_at_once(mirror: Mirror) -> None:
    def work(name: str) -> None:
        if name == "0":
            raise OSError("disk full")
        downloader.get(addresses[name], Path("never"))

    addresses = {f"{i}": mirror.serve(f"/{i}", status(503)) for i in range(8)}
    downloader = Downloader(MANNERS.model_copy(update={"pause": 100, "seconds": 1000}), frozenset())
    started = time.monotonic()
    with pytest.raises(OSError, match="disk full"):
        list(downloader.each(addresses, work))
    assert time.monotonic() - started < 5
    Path("never").unlink(missing_ok=True)


def test_a_mirror_is_asked_in_place_of_every_host(mirror: Mirror, part: Path) -> None:
    mirror.serve("/cache/a.example/b/c.jpg?d=e", whole(BODY))
    Downloader(MANNERS, frozenset(), f"{mirror.url}/cache/").get("https://a.example/b/c.jpg?d=e", part)
    assert part.read_bytes() == BODY
