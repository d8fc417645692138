"""A clone whose path has spaces and quotes: sbatch's script, run by a shell as Slurm would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm

from slurm import cluster
from slurm.commands import ClusterError
from slurm.resources import Resources
from slurm.store import Store
from slurm.task import Task

HERE = Path(__file__).parents[2]
SMALL = Resources(minutes=10, memory_gb=2, cpus=1, gpus=0, parallel=9, retries=0, tasks_per_job=1)
WORK = """
from dataclasses import dataclass
from pathlib import Path

@dataclass(frozen=True)
class Write:
    text: str

    def run(self, folder: Path) -> None:
        import slurm
        (folder / "text").write_text(f"{self.text} by {slurm.__file__}")
"""


@pytest.mark.parametrize("name", ["my clone", "Ann's clone", 'a "b" $HOME & c; d'])
def test_jobs_run_in_a_folder_with_spaces_and_quotes(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    (folder / "made").mkdir(parents=True)
    (folder / "slurm").symlink_to(HERE / "slurm")
    (folder / "made" / "__init__.py").touch()
    (folder / "made" / "work.py").write_text(WORK)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for module in ("made", "made.work"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    from made.work import Write  # type: ignore[import-not-found]

    def run(job: Any, fate: str) -> None:
        """Run the script of an element with the variables that Slurm sets."""
        number, _, index = job.id.partition("_")
        slurm = {"SLURM_JOB_ID": number, "SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index,
                 "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1", "SLURM_NODEID": "0",
                 "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}  # fmt: skip
        environment = {**os.environ, **{key: value for key, value in slurm.items() if value}}
        environment.pop("PYTHONPATH", None)
        words = ["bash", str(job.folder / f"{number}_submission.sh")]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        job.state = "COMPLETED"

    monkeypatch.setattr(fake, "_run", run)
    done = Store(Path(".work/lab/texts"), "1").run([Task(t, Write(t)) for t in "ab"], SMALL, "texts", "slurm")
    for text, out in done.items():
        said = (out / "text").read_text()
        assert said.startswith(f"{text} by {folder}/.work/code/"), "the snapshot runs"
    (output,) = re.findall(r"#SBATCH --output=(.*)\n", fake.scripts[0])
    unquoted = subprocess.run(["bash", "-c", f"printf %s {output}"], capture_output=True, text=True, check=True).stdout
    assert unquoted.startswith(f"{folder}/.work/")


def test_a_path_that_slurm_or_python_would_split_is_one_line(tmp_path: Path) -> None:
    for name in ("a:b", "50%j"):
        (tmp_path / name).mkdir()
        with pytest.raises(ClusterError, match=r"in the path means something to PYTHONPATH or Slurm; move it"):
            cluster.snapshot(tmp_path / name, dry=True)
