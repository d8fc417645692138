"""Writes docs/licences.md from what is installed: `.venv/bin/python docs/licences.py`."""

from __future__ import annotations

import re
from importlib.metadata import metadata
from pathlib import Path

COPYLEFT = re.compile(r"GPL|MPL|EPL|CDDL|EUPL|Mozilla|Eclipse", re.IGNORECASE)
OWN_TERMS = re.compile(r"NVIDIA|Proprietary", re.IGNORECASE)
HEAD = """# Licences of what is installed and shipped
Written by `.venv/bin/python docs/licences.py` from the packages' own metadata. Nothing of these packages is copied into
this repository: `make` installs them from PyPI, each under its own licence.

| shipped here | licence |
| --- | --- |
| code | Apache-2.0 (`LICENSE`) |
| artwork of OpenMoji, and the weights and pictures made from it | CC BY-SA 4.0 (`NOTICE`): share alike, attribution |
"""


def licence(name: str) -> str:
    """What a package says of itself, in few words."""
    about = metadata(name)
    if expression := about.get("License-Expression"):
        return expression
    classified = [
        entry.rpartition(" :: ")[2] for entry in about.get_all("Classifier") or [] if entry.startswith("License ::")
    ]
    text = (about.get("License") or "").strip().split("\n")[0]
    return "; ".join(classified) or text[:80] or "not said; see the package"


def table(lock: Path) -> str:
    """A row for every package of the lock file."""
    names = re.findall(r"^([\w.-]+)==", lock.read_text(encoding="utf-8"), re.MULTILINE)
    licences = {name: licence(name) for name in names}
    copyleft = [f"{name} ({text})" for name, text in licences.items() if COPYLEFT.search(text)]
    own = [name for name, text in licences.items() if OWN_TERMS.search(text)]
    remarks = [
        f"\nCopyleft, of these packages' own files: {', '.join(copyleft)}. They are used as "
        "libraries, unchanged; krippendorff by the tests alone, dulwich, grandalf, pygit2 and shtab by DVC alone.",
        f"\nOwn terms of NVIDIA, needed only on its GPUs: {', '.join(own)}.",
        "\n| package | licence |\n| --- | --- |",
    ]
    return "\n".join([HEAD + "\n".join(remarks), *(f"| {name} | {text} |" for name, text in licences.items()), ""])


if __name__ == "__main__":
    Path("docs/licences.md").write_text(table(Path("requirements.lock")), encoding="utf-8")
