"""The page: whole in one file, right as HTML, and in a real Chromium on a desk and on a phone."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from selenium import webdriver
from selenium.webdriver.common.by import By

from lorarar.report import claims, coefficients, failures, page, panels, tables, trust
from lorarar.scoring.score_table import Row, by_pair, summarise
from lorarar.scoring.statistics import Interval

VOID = {"meta", "link", "img", "source", "br"}
UNEXAMINED: dict = {"judge": "a judge", "n": 0, "not_examined": "nobody knows the truth here"}
PROVENANCE = tables.Provenance("pocket", 0, "1a", "2b", "3c", "verification")
METHODS = ["direct", "ziplora", "lorarar", "base_only", "truth"]
PAPER = {
    "direct_merge": {"average": 0.4, "best": 0.76},
    "ziplora": {"average": 0.58, "best": 1.0},
    "dare": {"average": 0.34, "best": 0.72},
    "lorarar": {"average": 0.71, "best": 1.0},
}


def evidence(subjects: int = 3, styles: int = 2, methods: list[str] = METHODS) -> panels.Evidence:
    """A split with random answers and pictures."""
    random = np.random.default_rng(0)
    pairs = [(f"subject{i}", f"style{j}") for i in range(subjects) for j in range(styles)]
    rows = {
        method: by_pair(
            [
                Row(*pair, index, *(bool(yes) for yes in random.integers(0, 2, 2)), 0.5, 0.5, 0, 0, True, 0.1, 0.2, 0.3)
                for pair in pairs
                for index in range(2)
            ]
        )
        for method in methods
    }
    metrics = {name: summarise([row for part in found.values() for row in part]) for name, found in rows.items()}
    right = {name: {pair: [row.right for row in part] for pair, part in found.items()} for name, found in rows.items()}
    titles = {name: f"A long title of {name}" for pair in pairs for name in pair}
    modes = {name: failures.modes(found) for name, found in rows.items()}
    worst = {name: failures.worst(found) for name, found in rows.items()}
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    by_pair_ = {f"{i}": {path: (torch.rand(8), torch.rand(8))} for i in range(len(pairs))}
    fitted = [coefficients.Fitted.stack("lorarar", by_pair_)]
    near = [
        failures.Neighbour(kind, name, name, 0.1 * place, dict.fromkeys(methods, Interval(0.5, 0.2, 0.7)), 4)
        for kind, name in (("subject", "subject0"), ("style", "style0"))
        for place in range(1, 3)
    ]
    found = claims.examine(right, PAPER)
    made = {
        "mars2": tables.mars2_table(metrics, PAPER, "test", UNEXAMINED, PROVENANCE),
        "claim": claims.table(found, "test", PROVENANCE),
        "modes": failures.modes_table(modes, "test", "12 images", PROVENANCE),
        "worst": failures.worst_table(worst, titles, "test", PROVENANCE),
        "coefficients": coefficients.table(fitted, "test", PROVENANCE),
        "neighbours": failures.neighbours_table(near, titles, "test", PROVENANCE),
        "mars2-by-subject": tables.breakdown_table(
            right, "subject", {f"subject{i}": f"subject {i}" for i in range(subjects)}, "test", PROVENANCE
        ),
    }
    pictures = random.integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    return panels.Evidence(
        "test",
        metrics,
        rows,
        titles,
        made,
        found,
        modes,
        worst,
        lambda m, *_: pictures[len(m) % 7],
        PAPER,
        fitted,
        near,
    )


def sections(one: panels.Evidence) -> list[page.Panel]:
    curve = {"step": [1.0, 2.0, 3.0], "loss": [3.0, 2.0, 1.0], "content": [1.0, 1.0, 1.0]}
    return [
        panels.results([one]),
        panels.claim([one]),
        panels.gallery([one]),
        panels.parts([one]),
        panels.failed([one]),
        panels.coefficients([one], 0),
        panels.cost([one]),
        panels.learning(curve),
        panels.trusted(None, None, [one]),
        panels.people({}, {}),
        panels.made([("Command", "`make <repro>`")]),
    ]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    page.write(path, "A report", "With **all** & [a link](tables).", [("World", "`pocket`")], sections(evidence()))
    return path


class Checker(HTMLParser):
    """Every tag is closed in its order; what tags say is collected."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing(report: Path) -> None:
    checker = Checker()
    checker.feed(report.read_text(encoding="utf-8"))
    assert not checker.open
    ids = [attributes["id"] for _, attributes in checker.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    names = {tag for tag, _ in checker.tags}
    assert {"img", "table", "details", "picture"} <= names and not {"script", "iframe", "object"} & names
    for tag, attributes in checker.tags:
        for name in ("src", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
        target = attributes.get("href") or "data:"
        assert target.startswith(("data:", "#")) or "://" not in target, "links stay within the results"
        assert not target.startswith("#") or target[1:] in ids
        assert tag != "img" or attributes.get("alt"), "every picture is told in words"
        assert tag != "th" or attributes.get("scope") in ("col", "row")
    text = report.read_text(encoding="utf-8")
    assert "url(" not in text and "@import" not in text
    assert "<code>make &lt;repro&gt;</code>" in text, "what comes from outside is text"


def test_what_is_not_known_has_no_section(report: Path, tmp_path: Path) -> None:
    text = report.read_text(encoding="utf-8")
    for absent in ("cost", "study", "trust"):
        assert f'id="{absent}"' not in text
    assert 'id="claim"' in text
    few = replace(evidence(methods=["direct"]), fitted=[], neighbours=[], tables={})
    path = tmp_path / "few.html"
    page.write(path, "A report", "", [], sections(few))
    less = path.read_text(encoding="utf-8")
    assert 'id="results"' in less and 'id="pictures"' in less
    assert 'id="claim"' not in less and 'id="coefficients"' not in less


def test_equal_results_make_equal_bytes(tmp_path: Path) -> None:
    one = evidence(2, 1)
    for name in ("a", "b"):
        page.write(tmp_path / name, "A report", "", [], sections(one))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_thousand_pairs_do_not_make_a_huge_page() -> None:
    blocks = panels.gallery([evidence(40, 25, ["direct"])]).blocks
    shown = sum(len(block.rows) for block in blocks if isinstance(block, page.Gallery))
    assert shown <= panels.MOST_ROWS + 1
    large = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    assert len(page.image(large)) < 40_000


def test_a_judge_that_was_not_examined_is_said_to_be_so() -> None:
    table = str(tables.mars2_table(evidence().metrics, {}, "test", UNEXAMINED, PROVENANCE))
    assert "was not examined" in table and "balanced accuracy" not in table
    judge = {"n": 10, **Interval(0.9, 0.8, 1.0).named("subject_balanced_accuracy")}
    judge |= {f"{kind}_{error}": 0.05 for kind in ("subject", "style") for error in ("false_yes", "false_no")}
    (row,) = trust.judge_table(judge, PROVENANCE).rows
    assert row == ["balanced accuracy", "0.900 [0.800, 1.000] (n = 10)", ""]


def test_everything_is_seen_and_nothing_is_fetched(browser: webdriver.Chrome, report: Path) -> None:
    browser.get(report.as_uri())
    for details in browser.find_elements(By.TAG_NAME, "summary"):
        details.click()
    waiting = "const found = [...document.images]; found.forEach(one => one.loading = 'eager');"
    browser.execute_async_script(
        waiting + "Promise.all(found.map(one => one.decode())).then(arguments[0], arguments[0])"
    )
    broken = "return [...document.images].filter(one => !one.complete || !one.naturalWidth).map(one => one.alt)"
    assert browser.execute_script(broken) == []
    page_width, viewport = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert page_width <= viewport, "nothing makes the page itself scroll sideways"
    # What is wider than the page is inside of a box that scrolls.
    outside = """
        return [...document.querySelectorAll('main *, header *')].filter(one => {
          const box = one.getBoundingClientRect();
          return box.width && box.right > innerWidth + 1 && !one.closest('.scroll')
        }).map(one => one.outerHTML.slice(0, 80))"""
    assert browser.execute_script(outside) == []
    clipped = """
        return [...document.querySelectorAll('.scroll')].filter(one =>
          one.scrollWidth > one.clientWidth && getComputedStyle(one).overflowX !== 'auto').length"""
    assert browser.execute_script(clipped) == 0
    for box in browser.find_elements(By.CSS_SELECTOR, ".scroll"):
        assert box.accessible_name and box.get_attribute("tabindex") == "0", "a box that scrolls is reached by keyboard"
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"} and report.as_uri() in asked


def test_it_is_dark_where_that_is_preferred(browser: webdriver.Chrome, report: Path) -> None:
    browser.get(report.as_uri())
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(ground)
    chart = browser.find_element(By.CSS_SELECTOR, "img.chart")
    before = chart.get_property("currentSrc")
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    assert browser.execute_script(ground) != light
    browser.execute_script("arguments[0].scrollIntoView()", chart)
    assert chart.get_property("currentSrc") != before
