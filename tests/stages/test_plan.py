"""`python -m slurm plan STAGE` shows the tasks and changes nothing, also in a clone that has no artifacts."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
STAGES = list(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
SHOWN = {
    "images": ["184 pictures to draw"],
    "bank": [" 56 ", "berry_bowl", "each job asks for"],
    "fit": ["hypernet", "ziplora", " 25 ", "dog8+glowing"],
    "judge": ["subject, style"],
}
"""What the catalogue alone tells; all other stages are named."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked and new files, without what the chain makes."""
    folder = tmp_path_factory.mktemp("fresh") / "clone"
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def tree(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)}\0{path.lstat().st_mtime_ns}\0".encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


@pytest.mark.parametrize("stage", STAGES)
def test_a_plan_changes_nothing(clone: Path, stage: str) -> None:
    before = tree(clone)
    environment = os.environ | {"PYTHONPATH": str(clone), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "120"}
    words = [sys.executable, "-m", "slurm", "plan", stage]
    done = subprocess.run(words, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tree(clone) == before
    assert all(text in done.stdout for text in SHOWN.get(stage, [f"{stage}: "])), done.stdout


@pytest.mark.parametrize(
    "write",
    [
        "Path('x').write_text('')", "Path('old').unlink()", "Path('old').rename('y')", "Path('z').mkdir()",
        "open('old', 'a')", "__import__('shutil').rmtree('folder')", "os.open('old', os.O_RDWR)",
    ],
)  # fmt: skip
def test_the_guard_refuses_every_kind_of_write(tmp_path: Path, write: str) -> None:
    (tmp_path / "old").touch()
    (tmp_path / "folder").mkdir()
    code = (
        "import os\nfrom pathlib import Path\nfrom stages.shared.entry_point import Written, write_nothing\n"
        f"write_nothing(Path())\nPath('old').read_text()\ntry:\n    {write}\nexcept Written:\n    print('refused')"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "refused\n", done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "old"]
