"""Checksums of what a stage reads: shipped files and outputs of DVC. A flipped bit must not reach a table."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lorarar.errors import UserError
from lorarar.files import sha256

LOCK = Path("dvc.lock")


def verify_shipped(data: Path) -> None:
    """Compare every shipped file with `SHA256SUMS`.

    Raises
    ------
    UserError : a file is missing or has changed.
    """
    try:
        lines = (data / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        train = f"with `base: {data.name}` in params.yaml, `python -m stages.base` trains what git does not have"
        raise UserError(f"{data / 'SHA256SUMS'}: no such file; `git checkout {data}` restores it; {train}") from None
    except OSError:
        raise UserError(f"{data / 'SHA256SUMS'}: cannot be read; restore it with `git checkout {data}`") from None
    for line in lines:
        expected, name = line.split("  ", 1)
        path = data / name
        if not path.is_file() or sha256(path) != expected:
            file = os.path.relpath(path.resolve())  # where a link leads
            raise UserError(f"{path}: {_state(path)}; restore it with `git checkout {file}`")


def verify_outputs(stage: str, missing: bool = False) -> None:
    """Compare the inputs of a stage that is run by hand with `dvc.lock`.

    DVC does so itself, and repeats the stages whose outputs have changed.

    Parameters
    ----------
    stage : a name in dvc.lock; for others, everything is compared.
    missing : accept that files are missing, as in a fresh clone.

    Raises
    ------
    UserError : a file is missing or has changed.
    """
    try:
        stages = yaml.safe_load(LOCK.read_text(encoding="utf-8"))["stages"]
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return  # nothing was made by DVC yet
    read = [item["path"] for item in stages[stage].get("deps", [])] if stage in stages else ["artifacts", "results"]
    for name, entry in stages.items():
        for out in entry.get("outs", []) if name != stage else []:
            for path, md5 in _files(out) if any(_overlap(out["path"], other) for other in read) else []:
                there = path.is_file()
                if (there or not missing) and (not there or _md5(path) != md5):
                    raise UserError(f"{path}: {_state(path)} since DVC made it; run `dvc repro`")


def cache() -> Path:
    """The folder of DVC's cache that holds lists of files, wherever the configuration puts it (`dvc cache dir`)."""
    from dvc.config import Config

    return Path(Config(".dvc").get("cache", {}).get("dir") or ".dvc/cache", "files/md5")


def _overlap(a: str, b: str) -> bool:
    """True if one path is the other or lies within it."""
    return f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/")


def _files(out: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    """Files of an output with their MD5. DVC's cache has the list of a folder, if it keeps that folder."""
    path, md5 = Path(out["path"]), out.get("md5", "")
    if not md5.endswith(".dir"):
        yield path, md5
        return
    try:
        listed = json.loads((cache() / md5[:2] / md5[2:]).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        print(f"note: {path}: DVC's cache {cache()} does not have its list of files, so they are not compared")
        return
    yield from ((path / entry["relpath"], entry["md5"]) for entry in listed)


def _state(path: Path) -> str:
    return "has changed" if path.is_file() else "is missing"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
