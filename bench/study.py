"""Measures a vote's time when fifty raters vote at once. Exits with 1 above 100 ms at p95.

PYTHONPATH=.:tests/study python bench/study.py

Each rater answers every half second on average, ten times as fast as a person, over the loopback.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import psutil
from running import Running
from test_load import RATERS, rate, recorded

from lorarar.study.build import Sources, build
from lorarar.study.manifest import Study
from lorarar.study.storage import Storage


def main() -> None:
    """Build a study of the chain's images, serve it, vote, and print the quantiles."""
    artifacts = Path("artifacts/pocket")
    sources = Sources(artifacts / "generate", artifacts / "score", artifacts / "images", "test")
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study"
        build(study, sources, ["direct", "ziplora"], checks_from="truth")
        storage = Storage(Study.load(study))
        raters = storage.invite(RATERS)
        storage.close()
        server = Running(study)
        acknowledged: dict = {}
        seconds: list[float] = []

        async def everybody() -> None:
            await asyncio.gather(*(rate(server.url, rater, 0.5, acknowledged, seconds) for rater in raters))

        begun = time.perf_counter()
        try:
            asyncio.run(everybody())
            used = sum(psutil.Process(server.process.pid).cpu_times()[:2])
        finally:
            server.kill()
        wall = time.perf_counter() - begun
        assert recorded(study) == acknowledged
    ordered = sorted(seconds)
    p50, p95, p99 = (1000 * ordered[int(len(ordered) * share)] for share in (0.5, 0.95, 0.99))
    print(f"{len(ordered)} votes of {RATERS} raters in {wall:.1f} s, {len(ordered) / wall:.0f} a second, none lost")
    print(f"the server's processor time, its start included: {1000 * used / len(ordered):.2f} ms a vote")
    print(f"p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms, slowest {1000 * ordered[-1]:.1f} ms")
    raise SystemExit(p95 > 100)


if __name__ == "__main__":
    main()
