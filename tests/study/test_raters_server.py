"""The server's answers: what a rater gets, what is recorded, and what is refused without loss."""

from __future__ import annotations

import csv
import io
import json

import pytest
from fastapi.testclient import TestClient

from lorarar.errors import UserError
from lorarar.study.manifest import Study
from lorarar.study.server import LARGEST, create_app
from lorarar.study.storage import Storage


@pytest.fixture
def client(study: Study, storage: Storage) -> TestClient:
    return TestClient(create_app(study, storage), raise_server_exceptions=False)


@pytest.fixture
def token(storage: Storage) -> str:
    return storage.invite(1)[0].token


def ballot(position: int, number: int = 0, **changes):
    return {"id": f"{number:032x}", "position": position, "revision": 0, "choice": "1", "seconds": 2.5} | changes


def refused(answer, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]


def test_a_vote_is_recorded_as_it_was_shown(client, token, study, storage) -> None:
    slots = client.get(f"/api/{token}").json()["slots"]
    assert len(slots) == 10
    methods = {option.image: option.method for item in study.manifest.items for option in item.options}
    for position, choice in enumerate(["1", "2", "similar"]):
        answer = client.post(f"/api/{token}/vote", json=ballot(position, position, choice=choice))
        assert answer.json() == {"position": position, "revision": 1, "choice": choice}
    for vote, slot, choice in zip(storage.votes(), slots, ["1", "2", "similar"], strict=False):
        assert (vote.method_1, vote.method_2) == tuple(methods[image] for image in slot["options"])
        assert (vote.choice, vote.seconds, vote.rater) == (choice, 2.5, "rater-001")
    seen = client.get(f"/api/{token}").json()["slots"]
    assert [slot["choice"] for slot in seen[:4]] == ["1", "2", "similar", None]


def test_nothing_the_page_gets_tells_a_method_or_a_check(client, token, study) -> None:
    text = client.get(f"/r/{token}").text + client.get(f"/api/{token}").text
    for word in (*study.manifest.methods, "check", "expected", "repeat", "swapped"):
        assert word not in text
    slots = client.get(f"/api/{token}").json()["slots"]
    assert len({frozenset(slot) for slot in slots}) == 1
    image = client.get(f"/image/{slots[0]['options'][0]}")
    assert image.headers["content-type"] == "image/png"
    assert not {"last-modified", "etag", "content-disposition"} & set(image.headers)


def test_the_same_vote_again_changes_nothing(client, token, storage) -> None:
    answers = [client.post(f"/api/{token}/vote", json=ballot(0)) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3 and len({answer.text for answer in answers}) == 1
    assert storage.database.execute("SELECT COUNT(*) FROM votes").fetchone() == (1,)
    refused(client.post(f"/api/{token}/vote", json=ballot(0, choice="2")), 409, "was used for another answer")


def test_a_changed_answer_is_a_revision(client, token, storage) -> None:
    client.post(f"/api/{token}/vote", json=ballot(0, 1, choice="1"))
    assert client.post(f"/api/{token}/vote", json=ballot(0, 2, choice="2", revision=1)).json()["revision"] == 2
    assert [vote.choice for vote in storage.votes()] == ["2"]
    kept = storage.database.execute("SELECT choice FROM votes ORDER BY revision").fetchall()
    assert kept == [("1",), ("2",)]


def test_two_tabs_cannot_overrule_each_other(client, token, storage) -> None:
    client.post(f"/api/{token}/vote", json=ballot(0, 1, choice="1"))
    refused(client.post(f"/api/{token}/vote", json=ballot(0, 2, choice="2")), 409, "another tab")
    assert [vote.choice for vote in storage.votes()] == ["1"]


def test_links_unknown_expired_or_used_are_refused(client, token, storage) -> None:
    (late,) = storage.invite(1, days=-1)
    for path, status, words in (("nonsense", 404, "not known"), (late.token, 410, "expired on")):
        refused(client.get(f"/api/{path}"), status, words)
        refused(client.post(f"/api/{path}/vote", json=ballot(0)), status, words)
        page = client.get(f"/r/{path}")
        assert page.status_code == status and words in page.text
    refused(client.post(f"/api/{token}/finish"), 409, "10 comparisons are not answered")
    for position in range(10):
        client.post(f"/api/{token}/vote", json=ballot(position, position))
    assert (
        client.post(f"/api/{token}/finish").json() == client.post(f"/api/{token}/finish").json() == {"finished": True}
    )
    refused(client.post(f"/api/{token}/vote", json=ballot(0, 99, revision=1)), 410, "has been used")
    assert client.post(f"/api/{token}/vote", json=ballot(3, 3)).status_code == 200, "an old one, sent again"
    assert len(storage.votes()) == 10 and client.get(f"/api/{token}").json()["finished"]


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"position": 10}, 404, "Comparison 11 is not among yours"),
        ({"position": -1}, 422, "position"),
        ({"choice": "ziplora"}, 422, "choice"),
        ({"method": "lorarar"}, 422, "method"),
        ({"rater": "rater-002"}, 422, "rater"),
        ({"seconds": -1}, 422, "seconds"),
        ({"seconds": 1e9}, 422, "seconds"),
        ({"id": "1; DROP TABLE votes"}, 422, "id"),
        ({"revision": 7}, 409, "another tab"),
    ],
)
def test_forged_votes_are_refused(client, token, storage, change, status, words) -> None:
    refused(client.post(f"/api/{token}/vote", json=ballot(0) | change), status, words)
    assert not storage.votes()


def test_bodies_that_are_no_votes_are_refused(client, token, storage) -> None:
    url, kind = f"/api/{token}/vote", {"content-type": "application/json"}
    refused(client.post(url, content=b" " * (LARGEST + 1), headers=kind), 413, "larger than")
    refused(client.post(url, content=iter([b"{}"]), headers=kind), 411, "length")
    for body in (b"", b"{", b"[]", b'"x"', b'{"seconds": NaN}'):
        refused(client.post(url, content=body, headers=kind), 422, "Not a vote")
    refused(client.post(url, content=b"\xff", headers=kind), 400, "parsing the body")
    assert not storage.votes()


@pytest.mark.parametrize(
    "path",
    [
        "/image/../manifest.json", "/image/..%2fmanifest.json", "/image/%2e%2e/votes.sqlite", "/image//etc/passwd",
        "/static/..%2f..%2fserver.py", "/static/rater.html", "/votes.sqlite", "/docs", "/openapi.json", "/admin/", "/",
    ],
)  # fmt: skip
def test_nothing_else_is_served(client, path) -> None:
    assert client.get(path).status_code == 404


def test_an_image_that_changed_is_not_shown(client, study, capsys) -> None:
    name = min(study.manifest.images)
    (study.folder / "images" / f"{name}.png").write_bytes(b"another")
    refused(client.get(f"/image/{name}"), 500, "has changed")
    assert f"{name}.png: has changed" in capsys.readouterr().out


def test_every_answer_has_the_security_headers_and_asks_nothing_of_others(client, token, storage) -> None:
    paths = [f"/r/{token}", f"/api/{token}", "/nothing", "/static/rater.js", f"/admin/{storage.admin}"]
    for answer in [*(client.get(path) for path in paths), client.post("/api/x/vote", content=b" " * 9999)]:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-frame-options"] == "DENY"
    for path in (f"/r/{token}", "/static/rater.js", "/static/style.css", f"/admin/{storage.admin}"):
        assert "//" not in client.get(path).text.replace("// ", "").replace("http://www.w3.org", "")
    assert client.get(f"/api/{token}").headers["cache-control"] == "no-store", "it changes with every vote"


def test_the_admin_page_shows_progress_and_exports(client, token, storage) -> None:
    client.post(f"/api/{token}/vote", json=ballot(0))
    url = f"/admin/{storage.admin}"
    page = client.get(url).text
    assert "<td>rater-001</td><td>1</td><td>10</td><td>under way</td>" in page and token not in page
    (row,) = csv.DictReader(io.StringIO(client.get(f"{url}/votes.csv").text))
    assert [row] == [
        {name: "" if value is None else str(value) for name, value in vote.items()}
        for vote in json.loads(client.get(f"{url}/votes.json").text)
    ]
    for path in ("", "/votes.csv", "/votes.json"):
        assert client.get(f"/admin/{token}{path}").status_code == 404, "a rater's link opens nothing here"


def test_simulated_raters_are_called_so(study, tmp_path) -> None:
    storage = Storage(study)
    storage.invite(1, simulated=True)
    assert "These raters are simulated" in TestClient(create_app(study, storage)).get(f"/admin/{storage.admin}").text
    with pytest.raises(UserError, match="simulated and real raters are not put in one study"):
        storage.invite(1)
    storage.close()


def test_votes_belong_to_their_manifest(study, storage, make) -> None:
    make(name="other", seed=1)
    (study.folder / "manifest.json").write_bytes((study.folder.parent / "other/manifest.json").read_bytes())
    other = Study(study.folder, study.manifest, "0" * 64)
    with pytest.raises(UserError, match=r"manifest\.json: not the one that votes\.sqlite was collected with"):
        Storage(other)
    third = make(name="third")
    (third.folder / "votes.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(UserError, match="cannot be used as a database"):
        Storage(third)
