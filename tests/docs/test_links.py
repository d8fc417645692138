"""Every relative link of the documentation leads to a file, and to a heading if it names one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """The page without its blocks and spans of code, in which nothing is a link."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^ {4}\S.*$", "", text, flags=re.MULTILINE))


def links(page: Path) -> list[tuple[str, str]]:
    """Paths and headings of the relative links of a page."""
    found = [link for link in LINK.findall(prose(page)) if not re.match(r"[a-z][a-z+.-]*:", link)]
    return [(path, heading) for path, _, heading in (link.partition("#") for link in found)]


def headings(page: Path) -> set[str]:
    """Names that GitHub and MkDocs give to the headings of a page."""
    lines = re.findall(r"^#+ +(.+?)\s*$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for path, heading in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.is_relative_to(ROOT) and target.exists(), f"{path}: no such file"
        assert not heading or heading in headings(target), f"{path}#{heading}: no such heading"


def test_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A *b*, c\n[`x`](a.md#b) ![y](c.webp) [z](https://z.org) `[no](no.md)`\n```\n[no](no.md)\n# no\n```\n"
    )
    assert links(page) == [("a.md", "b"), ("c.webp", "")] and headings(page) == {"a-b-c"}
    assert sum(len(links(page)) for page in PAGES) > 80


def test_the_site_lists_every_page() -> None:
    listed = set(re.findall(r"^ +- ([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert {page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")} <= listed
