"""The web app of `lorarar app`: the page, and the addresses that it requests."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from lorarar import describe, shipped
from lorarar.api import merge, merge_recipe
from lorarar.app import choices
from lorarar.app.drawing import Artist
from lorarar.app.sessions import Job, Refusal, Session, Sessions, Side
from lorarar.contents import compare, contents
from lorarar.errors import UserError
from lorarar.lora import base_models, formats
from lorarar.lora.adapter import Adapter
from lorarar.merging.klora import Schedule
from lorarar.merging.registry import methods
from lorarar.version import __version__
from lorarar.web import TYPES, Guard, failure, listen

SMALL = 1 << 16
"""Largest body of a request that is no file, in bytes."""
SPARE = 1 << 30
"""Bytes that stay free on the disk."""


Weight = Annotated[float, Field(allow_inf_nan=False)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Example(Strict):
    name: str


class Wanted(Strict):
    """A merge: the method, its options, the weights of both files, and the form of the result."""

    method: str
    options: dict[str, Any] = {}
    weights: tuple[Weight, Weight] = (1.0, 1.0)
    format: str | None = None
    dtype: str | None = None


class Sitting(Strict):
    """A picture of a merge, or of one file or the base alone."""

    of: Literal["merge", "content", "style", "base"]
    method: str = "direct"
    options: dict[str, Any] = {}
    weights: tuple[Weight, Weight] = (1.0, 1.0)
    prompt: Annotated[str, Field(max_length=1000)]
    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 0
    steps: Annotated[int, Field(ge=1, le=100)] = 25


def create_app(
    sessions: Sessions,
    *,
    artist: Artist | None = None,
    hypernet: Path | None = None,
    largest: int = 2_000_000_000,
    hosts: Collection[str] = ("127.0.0.1", "localhost", "::1"),
) -> FastAPI:
    """The app.

    Parameters
    ----------
    artist : draws pictures; without one the page shows none.
    hypernet : file for the method lorarar; without one it is not offered.
    largest : bytes of an uploaded file.
    hosts : see `lorarar.web.Guard`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(sessions))
        yield
        sweeping.cancel()
        # Here and not after the server has ended: it passes on the signal that ended it.
        await run_in_threadpool(sessions.end)

    def limit(scope: Scope) -> int:
        return largest if scope["method"] == "PUT" else SMALL

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=lifespan)
    app.add_middleware(Guard, largest=limit, hosts=hosts)
    pages = files("lorarar.app") / "pages"
    static = {page.name: page.read_bytes() for page in pages.iterdir() if Path(page.name).suffix in TYPES}
    page = (pages / "app.html").read_text(encoding="utf-8")
    rows = choices.rows(hypernet is not None)

    @app.get("/")
    async def root() -> Response:
        return HTMLResponse(page)

    @app.get("/static/{name}")
    async def resource(name: str) -> Response:
        if name not in static:
            raise HTTPException(404)
        return Response(static[name], media_type=TYPES[Path(name).suffix])

    @app.get("/api")
    async def about() -> dict[str, Any]:
        return {
            "version": __version__,
            "methods": rows,
            "formats": choices.FORMATS,
            "dtypes": list(formats.DTYPES),
            "examples": list(shipped.examples()),
            "base": artist and artist.name,
            "largest": largest,
            "minutes": sessions.keep / 60,
        }

    @app.post("/api")
    async def enter() -> dict[str, Any]:
        return {"session": sessions.open()}

    @app.get("/api/{token}")
    async def state(token: str) -> dict[str, Any]:
        session = sessions[token]
        return {"files": session.shown, "prompt": _prompt(session)}

    @app.delete("/api/{token}")
    async def leave(token: str) -> dict[str, Any]:
        sessions.close(token)
        return {}

    @app.put("/api/{token}/files/{side}")
    async def upload(token: str, side: Side, name: str, request: Request) -> dict[str, Any]:
        session = sessions[token]
        place = session.place(side, name)
        _room(session, int(request.headers.get("content-length", 0)))
        session.forget(side)
        place.parent.mkdir(parents=True)
        try:
            with place.open("wb") as file:
                async for piece in request.stream():
                    file.write(piece)
            return await run_in_threadpool(_take, session, side, place)
        except ClientDisconnect:
            session.forget(side)
            raise Refusal(400, f"{place.name}: did not arrive whole; send it again") from None
        except (UserError, OSError):
            session.forget(side)
            raise

    @app.post("/api/{token}/files/{side}")
    async def example(token: str, side: Side, chosen: Example) -> dict[str, Any]:
        session, known = sessions[token], shipped.examples()
        if chosen.name not in known:
            raise Refusal(404, f"{chosen.name}: no such example; choose one of {', '.join(known) or 'none'}")
        session.forget(side)
        return await run_in_threadpool(_take, session, side, known[chosen.name])

    @app.delete("/api/{token}/files/{side}")
    async def remove(token: str, side: Side) -> dict[str, Any]:
        sessions[token].forget(side)
        return {}

    @app.post("/api/{token}/compare")
    async def fit(token: str) -> dict[str, Any]:
        session = sessions[token]
        pair = session.pair()
        return _told(sessions, sessions.submit(session, "compare", lambda _: _compared(pair)))

    @app.post("/api/{token}/merge")
    async def combine(token: str, wanted: Wanted) -> dict[str, Any]:
        session = sessions[token]
        pair = session.pair()
        # peft's layout is two files, and a download is one.
        two = formats.sidecars("merged", session.shown["content"]["format"])
        asked = wanted.format or ("diffusers" if two else None)
        schedule = methods()[wanted.method].schedule if wanted.method in methods() else False
        recipe = choices.recipe(
            pair, wanted.method, wanted.weights, wanted.options, hypernet, None if schedule else asked, wanted.dtype
        )

        def work(job: Job) -> dict[str, Any]:
            _room(session, sum(file.stat().st_size for file in pair))
            name = f"{pair[0].stem}+{pair[1].stem}.{wanted.method}.safetensors"
            job.file = session.folder / "merged" / job.token / name
            notes = merge_recipe(recipe, job.file)
            return {"name": name, "bytes": job.file.stat().st_size, "notes": list(map(session.plain, notes))}

        return _told(sessions, sessions.submit(session, "merge", work))

    @app.post("/api/{token}/draw")
    async def draw(token: str, sitting: Sitting) -> dict[str, Any]:
        session = sessions[token]
        if artist is None:
            raise Refusal(404, "no base model is at hand here: start `lorarar app` with --base")
        if not sitting.prompt.strip():
            raise UserError("prompt: empty; give the words the LoRAs were trained on, such as 'a sks cat in oil style'")
        pair = session.pair()
        recipe = choices.recipe(pair, sitting.method, sitting.weights, sitting.options, hypernet)

        def work(job: Job) -> dict[str, Any]:
            adapter: Adapter | Schedule | None = None
            if sitting.of == "merge":
                adapter = merge(recipe)
            elif sitting.of != "base":
                adapter = Adapter.load(session.files[sitting.of])
            picture = artist.draw(adapter, sitting.prompt, sitting.seed, sitting.steps)
            job.file = session.folder / "pictures" / f"{job.token}.png"
            job.file.parent.mkdir(parents=True, exist_ok=True)
            job.file.write_bytes(picture)
            return {}

        # A new setting of the sliders replaces the one that waits; the pictures of single files are jobs of their own.
        return _told(sessions, sessions.submit(session, f"draw {sitting.of}", work))

    @app.get("/api/{token}/jobs/{number}")
    async def job(token: str, number: str) -> dict[str, Any]:
        return _told(sessions, _job(sessions[token], number))

    @app.get("/api/{token}/jobs/{number}/{name}")
    async def product(token: str, number: str, name: str) -> Response:
        made = _job(sessions[token], number)
        if made.state != "done" or made.file is None or made.file.name != name:
            raise HTTPException(404)
        kind = "image/png" if made.file.suffix == ".png" else "application/octet-stream"
        return FileResponse(
            made.file, media_type=kind, filename=name if made.kind == "merge" else None,
            headers={"Cache-Control": "private, max-age=3600"},
        )  # fmt: skip

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return failure(refusal.status, str(refusal))

    @app.exception_handler(UserError)
    async def mistaken(request: Request, error: UserError) -> Response:
        with suppress(Refusal, KeyError):
            return failure(422, sessions[request.path_params["token"]].plain(str(error)))
        return failure(422, str(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        problem = error.errors()[0]
        return failure(422, f"{'.'.join(str(part) for part in problem['loc'][1:])}: {problem['msg']}")

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        return failure(error.status_code, "There is nothing here." if error.status_code == 404 else str(error.detail))

    @app.exception_handler(OSError)
    async def unwritten(_: Request, error: OSError) -> Response:
        print(f"error: {error}", flush=True)
        return failure(507, f"The file cannot be kept on the server ({error.strerror}).")

    return app


def serve(
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    artist: Artist | None = None,
    hypernet: Path | None = None,
    largest: int = 2_000_000_000,
    keep: float = 3600,
    names: Collection[str] = (),
) -> None:
    """Serves the page until Ctrl-C; then every file is removed.

    Parameters
    ----------
    keep : seconds without a request after which a visitor's files go.
    names : further names of this machine, by which browsers ask.

    Raises
    ------
    UserError : the address cannot be used.
    """
    listener = listen(host, port)
    hosts = {"127.0.0.1", "localhost", "::1", host.lower(), *(name.lower() for name in names)}
    with tempfile.TemporaryDirectory(prefix="lorarar-app-", ignore_cleanup_errors=True) as folder:
        sessions = Sessions(Path(folder), keep)
        app = create_app(sessions, artist=artist, hypernet=hypernet, largest=largest, hosts=hosts)
        shown = f"[{host}]" if ":" in host else host
        print(f"lorarar: http://{shown}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30)
        uvicorn.Server(config).run(sockets=[listener])


async def _sweep(sessions: Sessions) -> None:
    while True:
        await asyncio.sleep(min(sessions.keep / 2, 30))
        sessions.sweep()


def _take(session: Session, side: Side, file: Path) -> dict[str, Any]:
    """Reads a file, keeps it as the visitor's, and returns the figures that the page shows."""
    adapter = Adapter.load(file)
    adapter.check(str(file))
    found = contents(adapter)
    largest = max(found.layers, key=lambda path: found.layers[path].norm, default="")
    session.files[side] = file
    session.shown[side] = {
        "name": file.name,
        "bytes": file.stat().st_size,
        "format": found.format,
        "base": found.base,
        "layers": len(found.layers),
        "others": len(found.others),
        "ranks": found.ranks,
        "dtypes": found.dtypes,
        "norm": found.norm,
        "largest": largest,
        "triggers": describe.triggers(found.metadata),
    }
    return {"file": session.shown[side], "prompt": _prompt(session)}


def _compared(pair: tuple[Path, Path]) -> dict[str, Any]:
    """Figures that tell whether two files fit."""
    adapters = [Adapter.load(file) for file in pair]
    base_models.same(*(adapter.layers for adapter in adapters), names=[file.name for file in pair])
    found = compare(*adapters)
    return asdict(found) | {"warnings": found.warnings}


def _prompt(session: Session) -> str:
    """The prompt of two examples; empty if a file is another, or a style is taken for a subject."""
    known = shipped.examples()
    names = [file.stem for side in ("content", "style") if (file := session.files.get(side)) and file in known.values()]
    if len(names) < 2:
        return ""
    with suppress(UserError, ModuleNotFoundError):  # the tables of subjects need PyYAML, which draws too
        from lorarar import preview

        return preview.prompt_of(*names)
    return ""


def _told(sessions: Sessions, job: Job) -> dict[str, Any]:
    """A job as the page sees it."""
    return {
        "job": job.token,
        "state": job.state,
        "before": sessions.before(job) if job.state == "waiting" else 0,
        "seconds": round(job.seconds, 1),
        "error": job.error,
        "file": job.file.name if job.file and job.state == "done" else "",
        **job.result,
    }


def _job(session: Session, token: str) -> Job:
    if token not in session.jobs:
        raise Refusal(404, "this result is gone: ask for it again")
    return session.jobs[token]


def _room(session: Session, size: int) -> None:
    """Raises `Refusal` if a file of this size would fill the disk."""
    if shutil.disk_usage(session.folder.parent).free < size + SPARE:
        raise Refusal(507, "the server's disk has no room for this file; try again later")
