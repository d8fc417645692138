"""The app's answers: files in, their contents, merges and pictures out; and refusals."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from safetensors.torch import save_file

import lorarar
from lorarar.app.drawing import Artist
from lorarar.app.server import SMALL, create_app
from lorarar.app.sessions import Sessions
from lorarar.contents import compare
from lorarar.diffusion.sampling import generate
from lorarar.errors import UserError
from lorarar.lora.adapter import Adapter
from lorarar.merging.registry import methods
from lorarar.recipe import Part, Recipe

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples/pocket"
BASE = "http://127.0.0.1:8080"
LARGEST = 1_000_000


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    folder = tmp_path / "visitors"
    folder.mkdir()
    return Sessions(folder, keep=3600)


@pytest.fixture
def client(sessions: Sessions, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    app = create_app(sessions, artist=Artist(tiny_folder), hypernet=EXAMPLES / "hypernet.safetensors", largest=LARGEST)
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        yield client


class Visitor:
    """Someone with the page open."""

    def __init__(self, client: TestClient) -> None:
        self.client, self.place = client, f"/api/{client.post('/api').json()['session']}"

    def send(self, side: str, file: Path | bytes, name: str = "") -> object:
        content = file if isinstance(file, bytes) else file.read_bytes()
        name = name or (file.name if isinstance(file, Path) else "file.safetensors")
        return self.client.put(f"{self.place}/files/{side}", params={"name": name}, content=content)

    def example(self, side: str, name: str) -> dict:
        return self.client.post(f"{self.place}/files/{side}", json={"name": name}).json()

    def job(self, path: str, body: dict | None = None) -> dict:
        """Ask for a job and wait for its end."""
        answer = self.client.post(f"{self.place}{path}", json=body)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        for _ in range(1200):
            if told["state"] not in ("waiting", "running"):
                return told
            time.sleep(0.05)
            told = self.client.get(f"{self.place}/jobs/{told['job']}").json()
        raise AssertionError(told)

    def product(self, told: dict) -> bytes:
        answer = self.client.get(f"{self.place}/jobs/{told['job']}/{told['file']}")
        assert answer.status_code == 200, answer.text
        return answer.content


@pytest.fixture
def visitor(client: TestClient) -> Visitor:
    return Visitor(client)


@pytest.fixture
def pair(adapters, tmp_path: Path) -> tuple[Path, Path]:
    """Two files for the tiny base, in different formats."""
    files = tmp_path / "cat.safetensors", tmp_path / "oil paint.safetensors"
    for adapter, file, format in zip(adapters, files, ("diffusers", "kohya"), strict=True):
        adapter.save(file, format=format)
    return files


def refused(answer, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error and "\n" not in error


def test_two_files_are_described_compared_merged_and_downloaded(visitor, pair, adapters, tmp_path) -> None:
    told = visitor.send("content", pair[0]).json()["file"]
    wanted = lorarar.inspect(pair[0])
    assert (told["name"], told["format"], told["base"]) == ("cat.safetensors", "diffusers", wanted.base)
    assert (told["layers"], told["ranks"], told["dtypes"]) == (len(wanted.layers), [4], ["float32"])
    assert told["norm"] == pytest.approx(wanted.norm)
    refused(visitor.client.post(f"{visitor.place}/merge", json={"method": "direct"}), 409, "the style LoRA is missing")
    assert visitor.send("style", pair[1]).json()["file"]["format"] == "kohya"

    found, figures = visitor.job("/compare"), compare(*adapters)
    assert found["shared"] == figures.shared and found["warnings"] == figures.warnings
    assert found["cosine"] == pytest.approx(figures.cosine, abs=1e-6)

    made = visitor.job("/merge", {"method": "direct", "weights": [0.7, -0.2], "format": "kohya"})
    assert made["name"] == "cat+oil paint.direct.safetensors" and any("kohya format" in note for note in made["notes"])
    file = tmp_path / "merged.safetensors"
    file.write_bytes(visitor.product(made))
    assert made["bytes"] == file.stat().st_size
    merged, exact = Adapter.load(file), lorarar.merge(*adapters, method="direct", weights=(0.7, -0.2))
    assert merged.format == "kohya" and isinstance(exact, Adapter)
    for path, factors in exact.layers.items():
        torch.testing.assert_close(merged.layers[path].delta, factors.delta)


def test_every_offered_method_makes_a_file(visitor) -> None:
    visitor.example("content", "dog8")
    assert visitor.example("style", "glowing")["prompt"].endswith("dog in glowing style")
    rows = visitor.client.get("/api").json()["methods"]
    assert [row["name"] for row in rows] == [m.name for m in methods().values() if m.needs != "base+images"]
    # All would take long: one of each kind, and those whose options are of a kind of their own.
    for name in ("lorarar", "ties", "nplora", "switch", "craft_blocks", "balanced"):
        (row,) = [row for row in rows if row["name"] == name]
        told = visitor.job("/merge", {"method": name, "options": {o["name"]: o["default"] for o in row["options"]}})
        assert told["state"] == "done" and len(visitor.product(told)) == told["bytes"] > 1000, told
    options = {row["name"]: {option["name"]: option for option in row["options"]} for row in rows}
    assert options["balanced"]["per"]["choices"] == ["total", "layer"]
    assert options["ties"]["space"]["choices"] == ["factors", "delta"]
    assert options["ties"]["density"]["default"] == 0.5 and not options["direct"]
    assert "hypernet" not in options["lorarar"]


def test_a_picture_is_that_of_the_merge(visitor, pair, adapters, tiny) -> None:
    visitor.send("content", pair[0])
    visitor.send("style", pair[1])
    scene = {"prompt": "a sks dog in oil style", "seed": 3, "steps": 2}

    def picture(of: str, **more: object) -> np.ndarray:
        told = visitor.job("/draw", {"of": of, **scene, **more})
        assert told["state"] == "done", told
        return np.asarray(Image.open(io.BytesIO(visitor.product(told))))

    def drawn(adapter) -> np.ndarray:
        return generate(tiny, adapter, scene["prompt"], seeds=[3], steps=2, guidance=7.5)[0]

    merged = lorarar.merge(*adapters, method="average")
    assert np.abs(picture("merge", method="average").astype(int) - drawn(merged)).max() <= 1
    assert np.abs(picture("content").astype(int) - drawn(adapters[0])).max() <= 1
    assert np.abs(picture("base").astype(int) - drawn(None)).max() <= 1
    visitor.example("style", "glowing")
    told = visitor.job("/draw", {"of": "style", **scene})
    assert told["state"] == "failed" and "use an adapter made for" in told["error"] and "\n" not in told["error"]


def test_visitors_do_not_see_each_others_files(client, sessions, pair) -> None:
    one, other = Visitor(client), Visitor(client)
    one.send("content", pair[0])
    one.send("style", pair[1])
    told = one.job("/merge", {"method": "direct"})
    assert other.client.get(other.place).json() == {"files": {}, "prompt": ""}
    refused(client.get(f"{other.place}/jobs/{told['job']}"), 404, "is gone")
    refused(client.get(f"{other.place}/jobs/{told['job']}/{told['file']}"), 404, "is gone")
    assert set(one.client.get(one.place).json()["files"]) == {"content", "style"}

    assert client.delete(one.place).status_code == 200
    refused(client.get(one.place), 404, "reload the page")
    sessions._worker.submit(lambda: None).result()
    assert not [path for path in sessions.folder.rglob("*") if path.is_file()]


def test_files_go_after_a_pause_and_at_the_end(sessions, client, pair) -> None:
    visitor, patient = Visitor(client), Visitor(client)
    visitor.send("content", pair[0])
    patient.send("content", pair[0])
    (old,) = [session for session in sessions._known.values() if visitor.place.endswith(_token(sessions, session))]
    old.seen -= 3601
    sessions.sweep()
    sessions._worker.submit(lambda: None).result()
    refused(client.get(visitor.place), 404, "gone after a long pause")
    assert not old.folder.exists() and len(list(sessions.folder.rglob("*.safetensors"))) == 1
    sessions.end()
    assert not sessions.folder.exists()


def _token(sessions: Sessions, session) -> str:
    return next(token for token, known in sessions._known.items() if known is session)


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_bad_file_is_one_line_and_is_not_kept(visitor, sessions, tmp_path, monkeypatch) -> None:
    pickled = io.BytesIO()
    torch.save({"lora_unet_x.lora_down.weight": Evil()}, pickled)
    save_file({"weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    nan = {f"unet.mid_block.attentions.0.to_q.lora_{side}.weight": torch.full((4, 4), torch.nan) for side in "AB"}
    save_file(nan, tmp_path / "nan.safetensors")
    for name, content, words in [
        ("x.safetensors", b"", "x.safetensors: not a readable safetensors file"),
        ("page.safetensors", b"<!doctype html>", "page.safetensors: a web page, not a LoRA"),
        ("x.pt", pickled.getvalue(), "x.pt: a pickle that holds more than tensors"),
        ("x.ckpt", pickle.dumps(Evil()), "x.ckpt"),
        ("other.safetensors", (tmp_path / "other.safetensors").read_bytes(), "other.safetensors"),
        ("nan.safetensors", (tmp_path / "nan.safetensors").read_bytes(), "nan.safetensors"),
    ]:
        answer = visitor.send("content", content, name)
        refused(answer, 422, words)
        assert str(tmp_path) not in answer.text, "no path of the server"
    refused(visitor.send("content", b"x", "x.exe"), 415, "x.exe: no LoRA by its name")
    assert visitor.client.get(visitor.place).json()["files"] == {} and not Path("executed").exists()
    assert not [path for path in sessions.folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["../../escape.safetensors", "..\\..\\escape.safetensors", "/etc/escape.safetensors"])
def test_a_name_leads_nowhere_else(visitor, sessions, pair, name: str) -> None:
    assert visitor.send("content", pair[0].read_bytes(), name).json()["file"]["name"] == "escape.safetensors"
    (file,) = [path for path in sessions.folder.rglob("*") if path.is_file()]
    assert file.parent.name == "content" and file.is_relative_to(sessions.folder)


def test_sizes_are_bounded(visitor, monkeypatch) -> None:
    refused(visitor.send("content", bytes(LARGEST + 1)), 413, f"larger than {LARGEST}")
    answer = visitor.client.post(f"{visitor.place}/merge", content=b" " * (SMALL + 1))
    refused(answer, 413, f"larger than {SMALL}")
    pieces = visitor.client.put(f"{visitor.place}/files/content", params={"name": "a.pt"}, content=iter([b"x"]))
    refused(pieces, 411, "length")
    monkeypatch.setattr("lorarar.app.server.SPARE", 1 << 62)
    refused(visitor.send("content", b"x"), 507, "no room")


@pytest.mark.parametrize(
    "headers, status, words",
    [
        ({"Host": "evil.example"}, 421, "another name than 'evil.example'"),
        ({"Host": "127.0.0.1.evil.example:8080"}, 421, "another name"),
        ({"Host": ""}, 421, "another name"),
        ({"Origin": "http://evil.example"}, 403, "another site"),
        ({"Origin": "http://127.0.0.1:9999"}, 403, "another site"),
        ({"Origin": "null"}, 403, "another site"),
        ({"Sec-Fetch-Site": "cross-site"}, 403, "another site"),
        ({"Sec-Fetch-Site": "same-site"}, 403, "another site"),
    ],
)
def test_pages_of_other_sites_are_refused(client, sessions, headers: dict, status: int, words: str) -> None:
    refused(client.post("/api", headers=headers), status, words)
    assert not sessions._known
    if status == 421:
        refused(client.get("/", headers=headers), 421, words)


def test_the_page_itself_may_ask(client) -> None:
    for headers in ({"Origin": BASE, "Sec-Fetch-Site": "same-origin"}, {"Host": "localhost"}, {"Host": "[::1]:8080"}):
        assert client.post("/api", headers=headers).status_code == 200
    answer = client.get("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-frame-options"] == "DENY" and answer.headers["cache-control"] == "no-store"
    assert client.get("/static/app.js").status_code == 200
    refused(client.get("/static/../app.html"), 404, "nothing here")
    refused(client.get("/docs"), 404, "nothing here")


@pytest.mark.parametrize(
    "body, words",
    [
        ({"method": "nonsense"}, "method nonsense: unknown"),
        ({"method": "lorarar", "options": {"hypernet": "/etc/passwd"}}, "has no option hypernet"),
        ({"method": "ties", "options": {"dtype": "x"}}, "has no option dtype"),
        ({"method": "direct", "format": "peft"}, "format peft"),
        ({"method": "direct", "out": "/tmp/x"}, "out"),
        ({"method": 3}, "method"),
        ({"method": "direct", "weights": [1]}, "weights"),
    ],
)
def test_a_wrong_request_is_one_line(visitor, body: dict, words: str) -> None:
    visitor.example("content", "dog8")
    visitor.example("style", "glowing")
    refused(visitor.client.post(f"{visitor.place}/merge", json=body), 422, words)


@pytest.mark.parametrize(
    "body, words",
    [
        ({"method": "ties", "options": {"density": 7}}, "density 7: give"),
        ({"method": "ties", "options": {"density": "x"}}, "density x: give"),
        ({"method": "nplora", "weights": [1, 0]}, "method nplora: takes two adapters"),
        ({"method": "direct", "dtype": "fp3"}, "dtype fp3: unknown"),
    ],
)
def test_a_wrong_option_ends_its_job_with_one_line(visitor, body: dict, words: str) -> None:
    visitor.example("content", "dog8")
    visitor.example("style", "glowing")
    told = visitor.job("/merge", body)
    assert told["state"] == "failed" and words in told["error"] and "\n" not in told["error"]


def test_the_last_setting_replaces_one_that_waits(sessions) -> None:
    session, gate = sessions[sessions.open()], threading.Event()
    first = sessions.submit(session, "other", lambda _: {"waited": gate.wait(60)})
    waiting = [sessions.submit(session, "draw", lambda _, n=n: {"number": n}) for n in range(3)]
    assert [job.state for job in waiting] == ["dropped", "dropped", "waiting"] and sessions.before(waiting[2]) == 1
    gate.set()
    waiting[2].future.result(60)
    assert (first.state, waiting[2].state, waiting[2].result) == ("done", "done", {"number": 2})
    sessions.end()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_the_command_serves_until_told_to_end_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "lorarar.cli", "app", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    assert process.stdout
    url = process.stdout.readline().split()[1]
    assert url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(url) as answer:
        assert b"Merge LoRAs" in answer.read()
    assert len(list(tmp_path.glob("lorarar-app-*"))) == 1
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    assert not list(tmp_path.glob("lorarar-app-*"))


def test_mistakes_of_the_command_are_one_line(monkeypatch, capsys) -> None:
    from lorarar.cli import main

    monkeypatch.chdir(ROOT)
    for words, message in [
        (["--base", "/nowhere"], "--base /nowhere: no such folder"),
        (["--hypernet", "README.md"], "README.md"),
        (["--host", "203.0.113.1", "--port", "0"], "cannot listen there"),
    ]:
        monkeypatch.setattr("sys.argv", ["lorarar", "app", *words])
        with pytest.raises(SystemExit) as end:
            main()
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert end.value.code == 2 and error.startswith("error: ") and message in error


def test_a_recipe_is_merged_alone_and_has_its_method(pair) -> None:
    recipe = Recipe(tuple(Part(name, file) for name, file in zip("ab", pair, strict=True)), "average")
    merged, wanted = lorarar.merge(recipe), lorarar.merge(*pair, method="average")
    assert all(all(map(torch.equal, merged.layers[path], factors)) for path, factors in wanted.layers.items())
    with pytest.raises(UserError, match="a recipe is merged alone"):
        lorarar.merge(recipe, pair[0])
    with pytest.raises(UserError, match="a recipe has its method and options"):
        lorarar.merge(recipe, method="direct")
