"""Scores on disk, the figures that sum them up, and the tables and pictures made from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lorarar import pictures
from lorarar.errors import UserError
from lorarar.report import figures, tables
from lorarar.scoring import crossed, score_table
from lorarar.scoring.statistics import Interval

PROVENANCE = tables.Provenance("pocket", 0, "1a", "2b", "3c", "verification")
JUDGE = {
    "n": 100,
    **Interval(0.95, 0.94, 0.96).named("subject_balanced_accuracy"),
    **Interval(0.9, 0.8, 1.0).named("style_balanced_accuracy"),
    **Interval(0.7, 0.5, 0.8).named("subject_same_class_accuracy"),
    **Interval(0.8, 0.75, 0.85).named("subject_dino_auc"),
    **Interval(0.6, 0.55, 0.65).named("style_clip_i_auc"),
    **Interval(0.99, 0.98, 1.0).named("style_auc"),
    "subject_n_same_class": 20,
}


def rows() -> list[score_table.Row]:
    """Two pairs of two images; the second image of the first pair alone is right."""
    right = {("dog8", 1): (True, True), ("dog8", 0): (True, False), ("can", 0): (False, True)}
    others = (0.5, None, 0, 1, True, 0.1, 0.2, 0.3)
    return [
        score_table.Row(subject, "glowing", index, *right.get((subject, index), (False, False)), *others)
        for subject in ("dog8", "can")
        for index in (0, 1)
    ]


def test_rows_survive_the_disk_and_a_probability_that_is_not_known_stays_so(tmp_path: Path) -> None:
    for name in ("a", "b"):
        score_table.write(tmp_path / f"{name}.parquet", rows())
    assert score_table.read(tmp_path / "a.parquet") == rows()
    assert {row.style_prob for row in score_table.read(tmp_path / "a.parquet")} == {None}
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_another_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    with pytest.raises(UserError, match=r"scores\.parquet: no such table of scores"):
        score_table.read(path)
    path.write_text("subject,style\ndog8,glowing\n")
    with pytest.raises(UserError, match=r"scores\.parquet: not a table of scores"):
        score_table.read(path)
    pq.write_table(pa.table({"subject": ["dog8"]}), path)
    with pytest.raises(UserError, match="other columns: subject"):
        score_table.read(path)
    score_table.write(path, [])
    with pytest.raises(UserError, match="no scores in it"):
        score_table.read(path)


def test_figures_are_those_of_mars2() -> None:
    found = score_table.summarise(rows())
    assert (found["mars2_average"], found["mars2_best"], found["attempts"]) == (0.25, 0.5, 2.5)
    assert (found["subject"], found["style"], found["family"]) == (0.5, 0.5, 1.0)
    assert (found["n_images"], found["n_pairs"]) == (4, 2)
    assert found["mars2_average_ci_low"] == 0.0 and found["mars2_average_ci_high"] == 1.0
    assert found["unanswered"] == 4
    assert found == score_table.summarise(rows())


def test_a_soft_score_needs_every_probability() -> None:
    known = [replace(row, subject_prob=0.5, style_prob=share) for row, share in zip(rows(), (0, 1, 1, 0), strict=True)]
    assert score_table.summarise(known)["mars2_soft"] == 0.25
    assert "mars2_soft" not in score_table.summarise([*known[:3], rows()[3]])


def metrics() -> dict[str, dict[str, float]]:
    figure = score_table.summarise(rows())
    return dict.fromkeys(("truth", "direct", "lorarar", "base_only", "truth_rendered"), figure)


def cells(text: str) -> list[list[str]]:
    """A Markdown table, row by row, its heading first."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_a_table_orders_floors_methods_and_ceiling_and_says_where_it_is_from() -> None:
    paper = {"direct_merge": {"average": 0.4, "best": 0.76}, "lorarar": {"average": 0.71, "best": 1.0}}
    text = str(tables.mars2_table(metrics(), paper, "test", JUDGE, PROVENANCE))
    found = cells(text)
    labels = ["Base alone (floor)", "Direct merge", "LoRA.rar", "Known truth (ceiling)"]
    assert [row[0] for row in found[1:]] == [*labels, "Known truth before the VAE (ceiling)"]
    assert found[2][1] == "0.25 [0.00, 1.00]" and found[2][-4:] == ["4", "2", "0.40", "0.76"]
    assert len({len(row) for row in found}) == 1
    assert "seed 0" in text and "`2b`" in text and "compare the ranking" in text
    assert "subject 0.950 [0.940, 0.960]" in text
    assert "look alike it knows: another subject of the class 0.700 [0.500, 0.800] (n = 20)." in text
    similarity = str(tables.similarity_table(metrics(), {}, "val", JUDGE, PROVENANCE))
    assert "0.100 [0.100, 0.100]" in similarity
    assert "subjects by DINO 0.800 [0.750, 0.850];" in similarity
    assert "styles by CLIP-I 0.600 [0.550, 0.650], the judge's own probability 0.990 [0.980, 1.000]." in similarity


def test_columns_that_say_nothing_new_are_not_shown() -> None:
    heading = cells(str(tables.mars2_table(metrics(), {}, "val", JUDGE, PROVENANCE)))[0]
    assert "family" in heading and "unanswered" in heading
    dull = {"direct": metrics()["direct"] | {"family": 0.5, "style": 0.5, "unanswered": 0}}
    text = str(tables.mars2_table(dull, {}, "val", JUDGE, PROVENANCE))
    assert "family" not in cells(text)[0] and "whichever instance" not in text
    assert "unanswered" not in text


PAIRS = [("dog8", "glowing"), ("dog8", "sticker"), ("can", "glowing"), ("can", "sticker")]


def found(*numbers: int) -> tables.Right:
    """So many right images of four, pair by pair."""
    return {pair: [place < number for place in range(4)] for pair, number in zip(PAIRS, numbers, strict=True)}


RIGHT = {
    "base_only": found(0, 0, 0, 0),
    "style_only": found(1, 0, 0, 0),
    "direct": found(2, 0, 4, 2),
    "lorarar": found(3, 1, 4, 3),
    "nplora": dict(reversed(found(2, 1, 4, 2).items())),
    "truth": found(4, 4, 4, 4),
}
FIGURES = {
    name: {
        "mars2_average": float(np.mean(list(right.values()))),
        "clip_i": 0.5,
        "dino": 1 - place / 10,
        "n_images": 16,
        "n_pairs": 4,
    }
    for place, (name, right) in enumerate(RIGHT.items())
}


def test_differences_are_paired_and_told_from_noise() -> None:
    text = str(tables.differences_table(RIGHT, FIGURES, "test", PROVENANCE))
    heading, *rows = cells(text)
    assert heading == ["", "less Style LoRA alone (floor)", "less Direct merge", "less LoRA.rar"]
    assert [row[0] for row in rows] == ["Direct merge", "LoRA.rar", "NP-LoRA"]
    assert rows[0][2:] == ["", ""] and rows[1][3] == "", "a pair of methods is compared once"
    # In three of four pairs one image more.
    low, high = crossed.difference(RIGHT["lorarar"], RIGHT["direct"]).interval()[1:]
    assert rows[1][2].strip("*") == f"+0.19 [{low:+.2f}, {high:+.2f}]" and ("**" in rows[1][2]) == (low > 0)
    assert rows[2][3].startswith("-0.12 [") or rows[2][3].startswith("**-0.12 [")
    assert rows[2][2].startswith("+0.06 [-"), "pairs are matched by name, and an interval that holds 0 is not bold"
    assert "4 pairs (16 images of each method)" in text and "`2b`" in text


def test_each_subject_and_each_style_has_its_column() -> None:
    titles = {"can": "can", "dog8": "dog #8"}
    heading, *rows = cells(str(tables.breakdown_table(RIGHT, "subject", titles, "test", PROVENANCE)))
    assert heading == ["", "can (n = 8)", "dog #8 (n = 8)"]
    by_label = {row[0]: row[1:] for row in rows}
    assert by_label["Direct merge"] == ["0.75 [0.00, 1.00]", "0.25 [0.00, 1.00]"]
    assert next(iter(by_label)) == "Base alone (floor)" and list(by_label)[-1] == "Known truth (ceiling)"
    titles = {"glowing": "glowing", "sticker": "sticker"}
    text = str(tables.breakdown_table(RIGHT, "style", titles, "test", PROVENANCE))
    assert {row[0]: row[1] for row in cells(text)}["LoRA.rar"] == "0.88 [0.00, 1.00]"
    assert "2 pairs of each style" in text


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
