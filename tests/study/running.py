"""A server in a process of its own, on the loopback."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Running:
    """A study that is being served; `kill` ends it without warning, `start` brings it back at the same address."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder, self.port = folder, port
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "lorarar.cli", "study", "serve", str(self.folder), "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout
        line = self.process.stdout.readline()
        self.port = int(line.partition("http://127.0.0.1:")[2].split()[0].rstrip(";"))
        self.admin = self.process.stdout.readline().rpartition("/")[2].strip()
        self.url = f"http://127.0.0.1:{self.port}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.url}/static/icon.svg", timeout=5).read()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server did not come up")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
