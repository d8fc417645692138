"""Brings into the site what its pages link to outside of docs/: the README as first page, tables, pictures, data."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
"""Path of a relative link, without the heading."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the README, and then each file that a page links to, those that it links to, and so on."""
    left = [file.src_uri for file in files.documentation_pages()] + [_place("README.md")]
    while left:
        uri = left.pop()
        if (file := files.get_file_from_path(uri)) is None:
            file = File.generated(config, uri, abs_src_path=str(ROOT / _source(uri)))
            files.append(file)
        if file.is_documentation_page():
            linked = {_target(path, uri) for path in LINK.findall(_without_code(file.content_string))}
            left += [new for new in linked if (ROOT / _source(new)).is_file() and not files.get_file_from_path(new)]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links of the repository into links of the site."""
    here = posixpath.dirname(page.file.src_uri)
    return LINK.sub(lambda link: posixpath.relpath(_target(link[1], page.file.src_uri), here or "."), markdown)


def _target(path: str, page: str) -> str:
    """Place in the site of a file that a page links to."""
    return _place(posixpath.normpath(posixpath.join(posixpath.dirname(_source(page)), path)))


def _place(source: str) -> str:
    """Place in the site of a file of the repository."""
    return "index.md" if source == "README.md" else source.removeprefix("docs/")


def _source(place: str) -> str:
    """File of the repository at a place in the site."""
    if place == "index.md":
        return "README.md"
    return f"docs/{place}" if (ROOT / "docs" / place).exists() else place


def _without_code(markdown: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", markdown, flags=re.MULTILINE | re.DOTALL)
