"""Text of tables."""

from lorarar.scoring.statistics import Interval
from lorarar.tables import interval, markdown, signed, title


def test_a_short_row_is_filled_and_no_cell_ends_a_column() -> None:
    assert markdown(["", "a", "b"], [["x|y", "1"]]) == "|  | a | b |\n| --- | ---: | ---: |\n| x\\|y | 1 |  |"
    assert markdown(["", "a", "b"], [], labels=2) == "|  | a | b |\n| --- | --- | ---: |"


def test_a_method_from_elsewhere_keeps_its_name() -> None:
    assert [title(name) for name in ("direct", "truth", "mine")] == ["Direct merge", "Known truth", "mine"]


def test_an_estimate_is_written_as_far_as_it_is_defined() -> None:
    figures = Interval(0.214, 0.1, 0.336).named("a") | {"b": 0.5, "b_ci_low": None, "b_ci_high": None, "c": None}
    assert [interval(figures, name) for name in "abc"] == ["0.21 [0.10, 0.34]", "0.50", "–"]
    assert interval(figures, "a", 1) == "0.2 [0.1, 0.3]"
    assert signed(Interval(-0.001, -0.2, 0.2)) == "+0.00 [-0.20, +0.20]"
