"""The web app: a page for raters, a page for the person who runs the study, and the addresses that they request."""

from __future__ import annotations

import csv
import secrets
import sqlite3
from collections import Counter
from functools import cache
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException

from lorarar.errors import UserError
from lorarar.study.manifest import Item, Study, spoken
from lorarar.study.storage import PANEL, Ballot, Refusal, Storage
from lorarar.study.votes import as_csv, as_json
from lorarar.web import TYPES, Guard, failure, listen

LARGEST = 2048
"""Largest body of a request, in bytes; a vote has some 120."""


def create_app(study: Study, storage: Storage) -> FastAPI:
    """The app of one study.

    It runs in one thread: the database needs well below a millisecond for a vote, and nothing needs a lock.
    """
    # Starlette's own redirects name the host, which a proxy hides.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(Guard, largest=lambda _: LARGEST)
    pages = files("lorarar.study") / "pages"
    static = {page.name: page.read_bytes() for page in pages.iterdir() if Path(page.name).suffix in TYPES}
    page = (pages / "rater.html").read_text(encoding="utf-8")
    items = study.manifest.items

    @app.get("/")
    async def root() -> Response:
        return _page("message.html", 404, top="", message="There is nothing here. Use the link that was sent to you.")

    @app.get("/static/{name}")
    async def resource(name: str) -> Response:
        if name not in static:
            raise HTTPException(404)
        return Response(static[name], media_type=TYPES[Path(name).suffix], headers={"Cache-Control": "max-age=300"})

    @app.get("/image/{name}")
    async def image(name: str) -> Response:
        try:
            content = study.image(name)
        except KeyError:
            raise Refusal(404, "There is no such image.") from None
        return Response(content, media_type="image/png", headers={"Cache-Control": "private, max-age=86400, immutable"})

    @app.get("/r/{token}")
    async def rater(token: str, request: Request) -> Response:
        try:
            storage.enrol(storage.rater(token), request.query_params)
        except Refusal as refusal:
            return _page("message.html", refusal.status, message=refusal)
        return HTMLResponse(page)

    @app.get("/join/{key}")
    async def join(key: str, request: Request) -> Response:
        try:
            if not secrets.compare_digest(key.encode(), storage.key.encode()):
                raise Refusal(404, "This link is not known. Check that it was copied as a whole, or ask who sent it.")
            return _lead(f"../r/{storage.join(request.query_params).token}", "")
        except Refusal as refusal:
            return _page("message.html", refusal.status, message=refusal)

    @app.get("/r/{token}/")
    @app.get("/admin/{token}/")
    @app.get("/join/{token}/")
    async def trimmed(token: str, request: Request) -> Response:
        return _lead(f"../{quote(token)}", request.url.query)

    @app.get("/api/{token}")
    async def state(token: str) -> dict[str, Any]:
        who = storage.rater(token)
        answers = storage.answers(who)
        slots = []
        for position, slot in enumerate(storage.slots(who)):
            answer = answers.get(position)
            slots.append(
                _shown(study, items[slot.item], slot.swapped)
                | {"choice": answer and answer.choice, "revision": answer.revisions if answer else 0}
            )
        explained = study.manifest.example
        wrong = "style" if explained.options[0].subject == explained.subject else "subject"
        example = _shown(study, explained, False) | {"wrong": wrong}
        ending = storage.ending if who.finished is not None else {}
        return {"finished": who.finished is not None, "example": example, "slots": slots, **ending}

    @app.post("/api/{token}/vote")
    async def vote(token: str, ballot: Ballot) -> dict[str, Any]:
        storage.vote(token, ballot)
        return {"position": ballot.position, "revision": ballot.revision + 1, "choice": ballot.choice}

    @app.post("/api/{token}/finish")
    async def finish(token: str) -> dict[str, Any]:
        storage.finish(token)
        return {"finished": True, **storage.ending}

    @app.get("/admin/{token}")
    async def admin(token: str) -> Response:
        _admit(storage, token)
        return _progress(study, storage, token)

    @app.get("/admin/{token}/votes.csv")
    async def votes_csv(token: str) -> Response:
        _admit(storage, token)
        return PlainTextResponse(as_csv(storage.votes()), media_type="text/csv", headers=_attached("votes.csv"))

    @app.get("/admin/{token}/raters.csv")
    async def raters_csv(token: str) -> Response:
        _admit(storage, token)
        return PlainTextResponse(_raters(storage), media_type="text/csv", headers=_attached("raters.csv"))

    @app.get("/admin/{token}/votes.json")
    async def votes_json(token: str) -> Response:
        _admit(storage, token)
        return Response(as_json(storage.votes()), media_type="application/json", headers=_attached("votes.json"))

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return failure(refusal.status, str(refusal))

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> Response:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"][1:])
        return failure(422, f"Not a vote: {place}: {problem['msg']}.")

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        return failure(error.status_code, "There is nothing here." if error.status_code == 404 else str(error.detail))

    @app.exception_handler(sqlite3.Error)
    async def unwritten(_: Request, error: sqlite3.Error) -> Response:
        print(f"error: {storage.path}: {error}", flush=True)
        return failure(503, "The answer cannot be saved at the moment.")

    @app.exception_handler(UserError)
    async def changed(_: Request, error: UserError) -> Response:
        print(f"error: {error}", flush=True)
        return failure(500, "This image has changed since the study began and is not shown.")

    return app


def serve(
    study: Study, host: str, port: int, completion_code: str | None = None, completion_link: str | None = None
) -> None:
    """Serves a study until Ctrl-C; the code and the link are for raters at the end, and are kept with the study.

    Raises
    ------
    UserError : the address cannot be used, the link is none, or the database belongs to another study.
    """
    storage = Storage(study)
    storage.end_with(completion_code, completion_link)
    listener = listen(host, port)
    place = f"http://{host}:{listener.getsockname()[1]}"
    waiting = "" if storage.raters() else "; `lorarar study invite` makes links for raters"
    print(f"{study.folder}: {len(study.manifest.items)} comparisons at {place}{waiting}", flush=True)
    print(f"progress and export: {place}/admin/{storage.admin}", flush=True)
    print(f"one link for all of a panel: {place}/join/{storage.key}?PROLIFIC_PID=... or ?workerId=...", flush=True)
    config = uvicorn.Config(
        create_app(study, storage), log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30
    )
    uvicorn.Server(config).run(sockets=[listener])
    storage.close()


def _shown(study: Study, item: Item, swapped: bool) -> dict[str, Any]:
    """An item as the page receives it, without methods and without a mark on checks."""
    references = study.manifest.references
    images = [option.image for option in item.options]
    return {
        "subject": {"name": spoken(item.subject), "image": references[f"subjects/{item.subject}"]},
        "style": {"name": spoken(item.style), "image": references[f"styles/{item.style}"]},
        "options": images[::-1] if swapped else images,
    }


def _admit(storage: Storage, token: str) -> None:
    if not secrets.compare_digest(token.encode(), storage.admin.encode()):
        raise Refusal(404, "This link is not known.")


def _progress(study: Study, storage: Storage, token: str) -> Response:
    """The admin page: progress of every rater and number of votes on every comparison."""
    raters = []
    for rater in storage.raters():
        answered = len(storage.answers(rater))
        state = "finished" if rater.finished is not None else "under way" if answered else "not begun"
        known_as = " ".join(f"{name}={value}" for name, value in storage.panel(rater).items())
        raters.append((rater.name, answered, len(storage.slots(rater)), state, known_as))
    votes = Counter((vote.subject, vote.style, vote.methods) for vote in storage.votes() if vote.kind == "pair")
    comparisons = []
    for item in study.manifest.items:
        if item.kind == "pair":
            methods = sorted(option.method for option in item.options)
            number = votes[item.subject, item.style, (methods[0], methods[1])]
            comparisons.append((spoken(item.subject), spoken(item.style), " and ".join(methods), number))
    return _page(
        "progress.html",
        raters=raters,
        comparisons=comparisons,
        simulated=any(rater.simulated == "1" for rater in storage.raters()),
        scenario=study.manifest.scenario,
        token=token,
    )


@cache
def _templates() -> Environment:
    return Environment(loader=PackageLoader("lorarar.study", "pages"), autoescape=True, undefined=StrictUndefined)


def _page(name: str, status: int = 200, top: str = "../", **values: Any) -> Response:
    """A page; `top` leads from its address to the study's, without the path that a proxy puts in front."""
    return HTMLResponse(_templates().get_template(name).render(values, top=top), status)


def _lead(where: str, query: str) -> Response:
    """A redirect to an address that is relative to the page's."""
    return Response(status_code=307, headers={"Location": f"{where}?{query}" if query else where})


def _raters(storage: Storage) -> str:
    """A table of the raters with the identifiers that their panel gave them."""
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["rater", *PANEL, "finished"])
    for rater in storage.raters():
        known = storage.panel(rater)
        writer.writerow([rater.name, *(known.get(name, "") for name in PANEL), int(rater.finished is not None)])
    return file.getvalue()


def _attached(name: str) -> dict[str, str]:
    return {"Content-Disposition": f"attachment; filename={name}"}
