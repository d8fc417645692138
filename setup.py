"""Writes the description of the package, README.md, so that its links work outside the repository."""

import re
import tomllib
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
ADDRESS = (
    tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {}).get("Repository")
)
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\((?![a-z]+:|#)([^()\s]+)\)")


def absolute(link: re.Match[str]) -> str:
    """A link into the repository; its words alone, and no picture, where pyproject.toml has no `urls.Repository`."""
    mark, words, path = link.groups()
    if not ADDRESS:
        return "" if mark else words
    return f"{mark}[{words}]({ADDRESS.rstrip('/')}/{'raw' if mark else 'blob'}/HEAD/{path})"


setup(
    long_description=LINK.sub(absolute, (HERE / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
