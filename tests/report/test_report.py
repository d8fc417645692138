"""Scores on disk, the figures that sum them up, and the tables and pictures made from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lorarar import pictures
from lorarar.errors import UserError
from lorarar.report import figures, scores, tables
from lorarar.scoring import mars2

PROVENANCE = tables.Provenance("pocket", 0, "1a", "2b", "3c", "verification")
JUDGE = {"n": 100, "subject_balanced_accuracy": 0.95, "style_balanced_accuracy": 0.9}


def rows() -> list[scores.Row]:
    """Two pairs of two images; the second image of the first pair alone is right."""
    right = {("dog8", 1): (True, True), ("dog8", 0): (True, False), ("can", 0): (False, True)}
    others = (0.5, None, 0, 1, True, 0.1, 0.2, 0.3)
    return [
        scores.Row(subject, "glowing", index, *right.get((subject, index), (False, False)), *others)
        for subject in ("dog8", "can")
        for index in (0, 1)
    ]


def test_rows_survive_the_disk_and_a_probability_that_is_not_known_stays_so(tmp_path: Path) -> None:
    for name in ("a", "b"):
        scores.write(tmp_path / f"{name}.parquet", rows())
    assert scores.read(tmp_path / "a.parquet") == rows()
    assert {row.style_prob for row in scores.read(tmp_path / "a.parquet")} == {None}
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_another_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    with pytest.raises(UserError, match=r"scores\.parquet: not a table of scores"):
        scores.read(path)
    path.write_text("subject,style\ndog8,glowing\n")
    with pytest.raises(UserError, match=r"scores\.parquet: not a table of scores"):
        scores.read(path)
    pq.write_table(pa.table({"subject": ["dog8"]}), path)
    with pytest.raises(UserError, match="other columns: subject"):
        scores.read(path)
    scores.write(path, [])
    with pytest.raises(UserError, match="no scores in it"):
        scores.read(path)


def test_figures_are_those_of_mars2() -> None:
    found = scores.summarise(rows(), seed=0, resamples=200)
    right = [[False, True], [False, False]]
    assert found["mars2_average"] == mars2.average(right) == 0.25
    assert found["mars2_best"] == mars2.best(right) == 0.5
    assert found["attempts"] == mars2.attempts(right) == 2.5
    assert (found["subject"], found["style"], found["family"]) == (0.5, 0.5, 1.0)
    assert (found["n_images"], found["n_pairs"]) == (4, 2)
    assert found["mars2_average_ci_low"] == 0.0 and found["mars2_average_ci_high"] == 0.5
    assert found["unanswered"] == 4
    assert found == scores.summarise(rows(), seed=0, resamples=200)


def metrics() -> dict[str, dict[str, float]]:
    figure = scores.summarise(rows(), seed=0, resamples=50)
    return dict.fromkeys(("truth", "direct", "lorarar", "base_only"), figure)


def test_a_table_orders_floors_methods_and_ceiling_and_says_where_it_is_from() -> None:
    paper = {"direct_merge": {"average": 0.4, "best": 0.76}, "lorarar": {"average": 0.71, "best": 1.0}}
    text = tables.mars2_table(metrics(), paper, "test", JUDGE, PROVENANCE)
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    labels = [line.split(" | ")[0].strip("| ") for line in lines[1:]]
    assert labels == ["Base alone (floor)", "Direct merge", "LoRA.rar", "Known truth (ceiling)"]
    assert "0.25 [0.00, 0.50]" in lines[2] and lines[2].endswith("| 4 | 2 | 0.40 | 0.76 |")
    assert len({line.count("|") for line in lines}) == 1
    assert "seed 0" in text and "`2b`" in text and "compare the ranking" in text and "subject 0.950" in text
    similarity = tables.similarity_table(metrics(), {}, "val", PROVENANCE)
    assert "0.100 [0.100, 0.100]" in similarity


def test_figures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    small, large = np.full((64, 64, 3), 200, np.uint8), np.full((300, 200, 3), 20, np.uint8)
    made = []
    for name in ("a", "b"):
        grid, chart = tmp_path / f"{name}.webp", tmp_path / f"{name}.png"
        figures.grid(grid, ["Subject", "Content LoRA alone"], [("dog #8", [small, large])])
        figures.chart(chart, metrics(), "MARS²")
        made.append([path.read_bytes() for path in (grid, chart)])
    assert made[0] == made[1]
    with Image.open(tmp_path / "a.webp") as sheet:
        assert sheet.getpixel((40, 100)) == pytest.approx((200, 200, 200), abs=4)


def test_pictures_survive_the_disk_and_bad_ones_are_named(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pictures.write(tmp_path / "00.png", picture)
    assert np.array_equal(pictures.read_all(tmp_path)[0], picture)
    pictures.write(tmp_path / "02.png", picture)
    with pytest.raises(UserError, match=r"01\.png: no such picture"):
        pictures.read_all(tmp_path)
    (tmp_path / "00.png").write_bytes(b"\x89PNG no picture")
    with pytest.raises(UserError, match=r"00\.png: not a readable picture"):
        pictures.read(tmp_path / "00.png")
