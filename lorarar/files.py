"""Files that appear whole or not at all, and their checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from lorarar.errors import UserError

os.umask(UMASK := os.umask(0o077))  # there is no way to read it but to set it


@contextmanager
def atomic(path: Path | str, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success fsync it and rename it into place, on failure remove it.

    Without `durable` there is no fsync, and a power cut may leave an empty file: for what is checked when it is read
    and can be made again.

    Raises
    ------
    UserError : the disk is full, however the writer in the block says so, or nothing may be written there.
    """
    path = Path(path)
    # The suffix is kept last, because image and tensor writers choose their format by it.
    end = f".{socket.gethostname()}-{os.getpid()}{path.suffix}"
    stem = path.stem if len(f".{path.stem}{end}".encode()) <= 255 else hashlib.sha256(path.stem.encode()).hexdigest()
    temporary = path.with_name(f".{stem}{end}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(0o666 & ~UMASK)  # some writers keep their files from all others
        if durable:
            with open(temporary, "r+b") as file:  # Windows sends only what may be written to its disk
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if _disk_is_full(error, path.parent):
            raise UserError(f"{path}: no space left on the disk; free some and run again") from error
        if isinstance(error, OSError) and _refused(error, path.parent, path, temporary):
            raise UserError(f"{path}: cannot be written ({error.strerror}); write to another folder") from error
        raise
    finally:
        with suppress(OSError):  # where there never was one
            temporary.unlink()


def sweep(folder: Path) -> None:
    """Remove temporary files and folders, here and below, whose writers were processes of this machine and are gone."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            found = _TEMPORARY.fullmatch(name)
            if found and not psutil.pid_exists(int(found["pid"])):
                path = Path(parent, name)
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        folders[:] = [name for name in folders if not _TEMPORARY.fullmatch(name)]


_TEMPORARY = re.compile(rf"\..+\.{re.escape(socket.gethostname())}-(?P<pid>\d+)(\.\w+)?")


def _disk_is_full(error: Exception, folder: Path) -> bool:
    """Tensor writers have errors of their own: one quotes the system, another is told by the lack of room alone."""
    if isinstance(error, OSError) and error.errno:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < 1 << 16


def _refused(error: OSError, *paths: Path) -> bool:
    """True if the system refused to write one of these paths. Errors on an open file carry no path."""
    if isinstance(error.filename, str | bytes):
        return Path(os.fsdecode(error.filename)) in paths
    return error.errno in (errno.EFBIG, errno.EIO)


def refuse_existing(out: Path, force: bool, *sources: Path) -> None:
    """Raise `UserError` if writing `out` would replace a file that nobody said may be replaced, or a source."""
    try:
        exists = out.exists()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); write to another folder") from None
    if out.is_dir():
        raise UserError(f"{out}: is a folder; give the name of a file in it")
    if any(exists and source.exists() and out.samefile(source) for source in sources):
        raise UserError(f"{out}: is one of the inputs; write to another file")
    if exists and not force:
        raise UserError(f"{out}: exists; give another name, or --force to replace it")


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 22))
    # In pieces far larger than `hashlib.file_digest` takes: a thread waits for its turn after each.
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


def folder_sha256(folder: Path | str) -> str:
    """SHA-256 over the names and contents of all files below a folder, wherever it lies; hidden ones do not count."""
    folder, digest = Path(folder), hashlib.sha256()
    names = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    for name in names:
        if not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()}\0{sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as JSON with sorted keys, so that equal values make equal bytes."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
