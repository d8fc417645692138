"""The notebook runs from top to bottom, wherever it is opened, and draws."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples/merge_and_draw.ipynb"


def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_it_draws_a_row_of_pictures_for_each_method(tmp_path: Path) -> None:
    code = "\n".join("".join(cell["source"]) for cell in cells() if cell["cell_type"] == "code")
    where = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    script = f"{where}{code}\nsheet.save({str(tmp_path / 'sheet.png')!r})\nprint(prompt, *drawn)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=NOTEBOOK.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "dog" in done.stdout and done.stdout.split()[-2:] == ["direct", "nplora"]
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(float)
    assert sheet.shape == (2 * 64 * 3, 4 * 64 * 3, 3)
    above, below = np.split(sheet, 2)
    assert above.std() > 20 and below.std() > 20, "pictures, not one colour"
    assert 1 < np.abs(above - below).mean() < 80, "methods differ, but both draw the same dog from the same noise"


def test_it_is_stored_without_results() -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells() if "outputs" in cell)
