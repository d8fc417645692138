"""The server's answers: what a rater gets, what is recorded, and what is refused without loss."""

from __future__ import annotations

import csv
import io
import json
import re

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


PROLIFIC = {"PROLIFIC_PID": "5f0c", "STUDY_ID": "60aa", "SESSION_ID": "70bb"}


def test_a_panels_identifiers_are_kept_with_the_rater(client, token, storage) -> None:
    assert client.get(f"/r/{token}", params={**PROLIFIC, "other": "x"}).status_code == 200
    assert client.get(f"/r/{token}").status_code == 200, "the same link without them, later"
    assert storage.panel(storage.rater(token)) == PROLIFIC
    url = f"/admin/{storage.admin}"
    (row,) = csv.DictReader(io.StringIO(client.get(f"{url}/raters.csv").text))
    assert {name: row[name] for name in PROLIFIC} == PROLIFIC and (row["rater"], row["workerId"]) == ("rater-001", "")
    assert "PROLIFIC_PID=5f0c" in client.get(url).text
    assert client.get(f"/admin/{token}/raters.csv").status_code == 404
    page = client.get(f"/r/{token}", params={"PROLIFIC_PID": "other"})
    assert page.status_code == 403 and "belongs to another person" in page.text
    for forged in ("<b>", "x" * 81, "a b"):
        page = client.get(f"/r/{token}", params={"hitId": forged})
        assert page.status_code == 422 and "not an identifier" in page.text
    assert storage.panel(storage.rater(token)) == PROLIFIC


def test_one_link_gives_each_member_of_a_panel_a_place_and_the_same_one_again(client, storage) -> None:
    first, second = storage.invite(2)

    def led(key=storage.key, **given):
        return client.get(f"/join/{key}", params=given, follow_redirects=False)

    mturk = {"workerId": "W1", "assignmentId": "A1", "hitId": "H1"}
    preview = led(**mturk | {"assignmentId": "ASSIGNMENT_ID_NOT_AVAILABLE"})
    assert preview.headers["location"] == f"../r/{first.token}"
    assert led(**mturk).headers["location"] == f"../r/{first.token}"
    assert storage.panel(first) == mturk
    assert led(PROLIFIC_PID="P2").headers["location"] == f"../r/{second.token}"
    for answer, status, words in (
        (led(PROLIFIC_PID="P3"), 410, "places in this study are taken"),
        (led(), 422, "from the panel"),
        (led(key="x", PROLIFIC_PID="P2"), 404, "not known"),
    ):
        assert answer.status_code == status and words in answer.text


def test_the_code_and_link_of_a_panel_come_when_all_is_answered(client, token, storage) -> None:
    for code, link, words in (("a b", None, "--completion-code"), (None, "javascript:alert(1)", "--completion-link")):
        with pytest.raises(UserError, match=words):
            storage.end_with(code, link)
    ends = {"code": "C1A2", "link": "https://app.prolific.com/submissions/complete?cc=C1A2"}
    storage.end_with(**ends)
    storage.end_with(None, None)
    assert not {"code", "link"} & set(client.get(f"/api/{token}").json())
    for position in range(10):
        client.post(f"/api/{token}/vote", json=ballot(position, position))
    assert client.post(f"/api/{token}/finish").json() == {"finished": True, **ends}
    seen = client.get(f"/api/{token}").json()
    assert {name: seen[name] for name in ends} == ends


def test_a_slash_too_many_is_taken_away_by_a_relative_redirect(client, token, storage) -> None:
    for path in (f"r/{token}", f"admin/{storage.admin}"):
        answer = client.get(f"/{path}/?PROLIFIC_PID=1", follow_redirects=False)
        assert answer.status_code == 307
        assert answer.headers["location"] == f"../{path.rpartition('/')[2]}?PROLIFIC_PID=1"


def test_a_study_lives_under_the_path_of_a_proxy(study, storage) -> None:
    """The proxy takes `/lab/study` away, as nginx does; all that pages name is resolved as a browser would."""
    inner = create_app(study, storage)

    async def proxy(scope, receive, send):
        if scope["type"] == "http":
            path = scope["path"]
            inside = path.startswith("/lab/study/")
            scope = scope | {"path": path.removeprefix("/lab/study") if inside else "/outside" + path}
            scope["raw_path"] = scope["path"].encode()
        await inner(scope, receive, send)

    outer = TestClient(proxy, base_url="http://lab.example")
    (rater,) = storage.invite(1)
    at = f"/lab/study/join/{storage.key}?PROLIFIC_PID=P1"
    page = outer.get(at, follow_redirects=True)
    assert page.status_code == 200 and page.url.path == f"/lab/study/r/{rater.token}"
    admin = outer.get(f"/lab/study/admin/{storage.admin}/", follow_redirects=True)
    refused_page = outer.get("/lab/study/r/nonsense")
    for shown in (page, admin, refused_page, outer.get("/lab/study/")):
        named = re.findall(r'(?:href|src)="([^"]+)"', shown.text)
        assert named
        for address in named:
            found = outer.get(str(shown.url.join(address)))
            assert found.status_code == 200, (shown.url, address)
    script = outer.get("/lab/study/static/rater.js").text
    addresses = re.findall(r"`([^`]*(?:api|image)/)\$\{", script)
    assert len(addresses) == 3 and set(addresses) == {"../api/", "../image/"}
    state = outer.get(str(page.url.join(f"../api/{rater.token}"))).json()
    assert outer.get(str(page.url.join(f"../image/{state['slots'][0]['options'][0]}"))).status_code == 200


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
