"""Fifty raters at once, and a server that dies under them."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from random import Random

import aiohttp
import pytest
from running import Running

from lorarar.study.storage import Rater, Storage

RATERS = 50


async def rate(url: str, rater: Rater, think: float, acknowledged: dict, seconds: list[float]) -> None:
    """One rater: answer everything, and send each answer until it is acknowledged, some twice."""
    random = Random(rater.name)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        state = await (await session.get(f"{url}/api/{rater.token}")).json()
        for position in range(len(state["slots"])):
            await asyncio.sleep(random.uniform(0, 2 * think))
            ballot = {
                "id": random.randbytes(16).hex(),
                "position": position,
                "revision": 0,
                "choice": random.choice(["1", "similar", "2"]),
                "seconds": 1.0,
            }
            again = random.random() < 0.1
            while True:
                begun = time.perf_counter()
                try:
                    async with session.post(f"{url}/api/{rater.token}/vote", json=ballot) as answer:
                        assert answer.status == 200, await answer.text()
                        await answer.read()
                except (aiohttp.ClientError, TimeoutError):
                    await asyncio.sleep(0.2)
                    continue
                seconds.append(time.perf_counter() - begun)
                acknowledged[rater.name, position] = ballot["choice"]
                if not again:
                    break
                again = False


def recorded(folder) -> dict:
    """(rater, position) -> choice, of a database that has no second answer to anything."""
    with sqlite3.connect(folder / "votes.sqlite") as database:
        rows = database.execute("SELECT rater, position, choice, revision FROM votes").fetchall()
    assert all(revision == 0 for *_, revision in rows), "doubled"
    return {(rater, position): choice for rater, position, choice, _ in rows}


@pytest.fixture
def raters(study) -> list[Rater]:
    storage = Storage(study)
    invited = storage.invite(RATERS)
    storage.close()
    return invited


def test_no_vote_is_lost_or_doubled_even_if_the_server_is_killed(study, raters) -> None:
    server = Running(study.folder)
    acknowledged: dict = {}

    async def everybody() -> dict:
        work = asyncio.gather(*(rate(server.url, rater, 0.02, acknowledged, []) for rater in raters))
        while len(acknowledged) < 200:
            await asyncio.sleep(0.01)
        server.kill()
        survived = dict(acknowledged)
        assert survived.items() <= recorded(study.folder).items(), "acknowledged, but not on disk"
        await asyncio.to_thread(server.start)
        await work
        return survived

    try:
        survived = asyncio.run(everybody())
    finally:
        server.kill()
    assert 200 <= len(survived) < RATERS * 10, "the server died in the middle"
    assert len(acknowledged) == RATERS * 10
    assert recorded(study.folder) == acknowledged
