"""What is told of results in prose is what results/ says."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "pocket"


def test_the_readmes_first_table_is_that_of_the_results():
    rows = [line for line in (RESULTS / "tables/mars2-test.md").read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 10 and "\n".join(rows) in (ROOT / "README.md").read_text()


def test_the_two_methods_compared_have_the_figures_of_the_results():
    before, after = (json.loads((RESULTS / f"metrics/{name}-test.json").read_text()) for name in ("lorarar", "ziplora"))
    for document in ("README.md", "docs/experiments.md"):
        (shown,) = re.findall(
            r"headline-lorarar +headline-ziplora +Change\n((?: +results/.*\n)+)", (ROOT / document).read_text()
        )
        for _, metric, one, other, _ in map(str.split, shown.splitlines()):
            assert (float(one), float(other)) == (round(before[metric], 3), round(after[metric], 3)), metric
