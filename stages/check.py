"""Before anything runs: is all of params.yaml right, and are the shipped weights what they were?"""

from __future__ import annotations

from pathlib import Path

from lorarar import hub
from lorarar.errors import UserError
from lorarar.files import sha256
from stages.context import Context
from stages.run import run


def main(context: Context) -> None:
    """Loading the context has checked params.yaml and the catalogue; then weights are looked at.

    Those that are shipped are compared with SHA256SUMS; those of a base that is only named must be on this machine.
    """
    base = context.data / "base"
    if (base / hub.NAME).exists():
        from lorarar.backbone import check_files

        check_files(*hub.locate(base), hub.fetch_command(base))
    else:
        verify(context.data)


def verify(data: Path) -> None:
    """Compare every shipped file with `SHA256SUMS`.

    Raises
    ------
    UserError : a file is missing or has changed.
    """
    try:
        lines = (data / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    except OSError:
        raise UserError(f"{data / 'SHA256SUMS'}: cannot be read; restore it with `git checkout {data}`") from None
    for line in lines:
        expected, name = line.split("  ", 1)
        path = data / name
        if not path.is_file() or sha256(path) != expected:
            state = "has changed" if path.is_file() else "is missing"
            raise UserError(f"{path}: {state}; restore it with `git checkout {data}`")


if __name__ == "__main__":
    run(main)
