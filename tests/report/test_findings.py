"""What the report finds in scores and coefficients: claims, failures, familiar concepts, costs."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from lorarar.merging.hypernet import HyperNetwork
from lorarar.report import claims, coefficients, failures, footprint, power, trust
from lorarar.report.tables import Provenance
from lorarar.scoring.score_table import Row, by_pair
from lorarar.scoring.statistics import Interval

PROVENANCE = Provenance("pocket", 0, "1a", "2b", "3c", "verification")
PAPER = {
    "joint_training": {"average": 0.53},
    "direct_merge": {"average": 0.40},
    "ziplora": {"average": 0.58},
    "lorarar": {"average": 0.71},
}
PAIRS = [(subject, style) for subject in ("can", "dog8") for style in ("glowing", "sticker", "oil_painting2")]


def right(*numbers: int) -> dict[tuple[str, str], list[bool]]:
    """So many right images of four, pair by pair."""
    return {pair: [place < number for place in range(4)] for pair, number in zip(PAIRS, numbers, strict=True)}


def test_a_claim_is_confirmed_refuted_or_open_by_where_its_interval_lies() -> None:
    found = {"lorarar": right(2, 3, 2, 3, 2, 3), "direct": right(0, 1, 0, 1, 0, 1), "ziplora": right(3, 2, 3, 2, 2, 3)}
    examined = {claim.competitor: claim for claim in claims.examine(found, PAPER)}
    assert list(examined) == ["joint", "direct", "ziplora"]
    assert {name: claim.verdict for name, claim in examined.items()} == {
        "joint": "open",
        "direct": "confirmed",
        "ziplora": "open",
    }
    assert examined["joint"].difference is None and examined["direct"].published == pytest.approx(0.31)
    assert examined["direct"].difference == Interval(0.5, 0.5, 0.5)
    assert (examined["direct"].n_pairs, examined["direct"].n_images) == (6, 24)

    better = claims.examine(found | {"ziplora": right(4, 4, 4, 4, 4, 4)}, PAPER)
    assert [claim.verdict for claim in better] == ["open", "confirmed", "refuted"]
    assert claims.overall(better) == "refuted", "one that is better refutes the whole, whatever else is open"
    assert claims.overall(list(examined.values())) == "open"
    assert claims.overall([examined["direct"]]) == "confirmed"
    table = str(claims.table(better, "test", PROVENANCE))
    assert "| Direct merge | confirmed | +0.50 [+0.50, +0.50] | 0.000 | 24 / 6 | +0.31 |" in table
    assert "| Joint training | open | not evaluated |  |  | +0.18 |" in table
    assert "**refuted** (1 confirmed, 1 refuted, 1 open)" in table


def test_without_lorarar_every_claim_is_open() -> None:
    found = claims.examine({"direct": right(0, 1, 0, 1, 0, 1)}, PAPER)
    assert {claim.verdict for claim in found} == {"open"} and all(claim.difference is None for claim in found)


def rows() -> list[Row]:
    """Two images of each pair: `can` loses the style, in the second image always the subject too."""
    blank = Row("", "", 0, True, True, 0.9, 0.9, 0, 0, True, 0.1, 0.2, 0.3)
    return [
        replace(blank, subject=s, style=t, index=i, subject_yes=s == "dog8" or i == 0, style_yes=s == "dog8")
        for s, t in PAIRS
        for i in (0, 1)
    ]


def test_what_is_wrong_is_told_apart() -> None:
    found = failures.modes(by_pair(rows()))
    assert {name: share.mean for name, share in found.items()} == {
        "right": 0.5,
        "subject lost": 0.0,
        "style lost": 0.25,
        "both lost": 0.25,
    }


def test_the_worst_pairs_come_first_and_show_a_wrong_image() -> None:
    sure = [replace(row, subject_prob=0.1) if row.style == "sticker" else row for row in rows()]
    first, *others = failures.worst(by_pair(sure))
    assert first.pair == ("can", "sticker"), "of pairs that are equally bad, the one that the judge thinks least of"
    assert first.share == 0 and first.image and first.image.index == 0 and first.mode == "style lost"
    assert [bad.share for bad in others] == [0, 0, 1, 1] and others[-1].image is None and others[-1].mode == "right"


def test_familiar_concepts_are_compared_by_rank() -> None:
    def one(similarity: float, share: float) -> failures.Neighbour:
        return failures.Neighbour("style", "x", "y", similarity, {"direct": Interval(share, 0, 1)}, 50)

    rising = [one(0.1, 0.2), one(0.5, 0.3), one(0.9, 0.8)]
    assert failures.rank_correlation(rising, "direct") == pytest.approx(1)
    assert math.isnan(failures.rank_correlation(rising[:2], "direct")), "two points are always in some order"
    assert math.isnan(failures.rank_correlation([one(0.1, 0.5), one(0.2, 0.5), one(0.3, 0.5)], "direct"))
    pairs = by_pair(rows())
    assert failures.shares(pairs, "subject", "can").mean == 0.5
    assert failures.shares(pairs, "style", "glowing").mean == 0.5


def stacked(values: dict[str, tuple[list[float], list[float]]]) -> coefficients.Fitted:
    """The same coefficients for two pairs, of which the second has .2 more everywhere."""
    first = {path: (torch.tensor(m_c), torch.tensor(m_s)) for path, (m_c, m_s) in values.items()}
    second = {path: (m_c + 0.2, m_s + 0.2) for path, (m_c, m_s) in first.items()}
    return coefficients.Fitted.stack("lorarar", {"a": first, "b": second})


LAYERS = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": ([1.0, 0.0], [0.5, 0.5]),
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0": ([2.0], [0.1]),
}


def test_coefficients_are_sorted_by_block_and_projection() -> None:
    fitted = stacked(LAYERS)
    assert fitted.blocks == ["down_blocks.0", "mid_block"] and fitted.projections == ["to_q", "to_out.0"]
    assert fitted.where().shape == (2, 2, 3)
    assert np.allclose(fitted.where("mid_block", "to_out.0")[:, :, 0], [[2.0, 0.1], [2.2, 0.3]])
    assert fitted.where("mid_block", "to_q").shape == (2, 2, 0)
    assert [block for block, *_ in coefficients.by_block(fitted)] == fitted.blocks, "and no projection twice"
    (all_of_them, query, output) = coefficients.table([fitted], "test", PROVENANCE).rows
    assert all_of_them[:3] == ["LoRA.rar", "all", "3"] and all_of_them[5] == "0.1000", "half of .2 between two pairs"
    assert query[-1] == "12.5%", "one of eight is below .05" and output[1] == "output"


def test_prediction_is_timed_and_is_that_of_the_hypernetwork(adapters) -> None:
    content, style = adapters
    network = HyperNetwork.for_adapter(content)
    found, seconds = footprint.predicted(network, {"pair": adapters})
    with torch.no_grad():
        expected = network.coefficients(content, style)
    for path, both in expected.items():
        for m, other in zip(both, found["pair"][path], strict=True):
            torch.testing.assert_close(m, other)
    assert len(seconds) == 1 and 0 < seconds[0] < 5
    assert (added := footprint.extra(network, content, style)) is None or 0 <= added < 1000


def test_what_was_not_measured_is_said_to_be_so() -> None:
    attempts = Interval(2.0, 1.0, 3.0).named("attempts")
    paper = {"lorarar": {"seconds_to_predict_coefficients": 0.037, "parameters": "0.49e6"}}
    paper["lorarar"] |= {"attempts_to_good_image": 2.28, "extra_memory_gb": 0}
    measured = {"lorarar": {"seconds": footprint.quartiles([0.001, 0.002, 0.003]), "parameters": 1000}}
    table = footprint.table(measured, dict.fromkeys(("lorarar", "ziplora", "direct"), attempts), paper, "test")
    assert [row[:5] for row in table.rows] == [
        ["ZipLoRA", "not measured", "not measured", "2.00 [1.00, 3.00]", "not measured"],
        ["LoRA.rar", "2 [1.5, 2.5] ms (n = 3)", "1,000", "2.00 [1.00, 3.00]", "not measured"],
    ]
    assert table.rows[1][5:] == ["0.037 s", "0.49 M", "2.28", "0 GB"]
    assert footprint.quartiles([]) == {} and footprint.quartiles([2.0])["median"] == 2.0


def test_two_opinions_stand_side_by_side() -> None:
    figures = {}
    for name in ("mars2_average", "subject", "style"):
        figures |= Interval(0.2, 0.1, 0.3).named(name)
    recognised = {"direct-test": {"both": 0.8, "subject": 0.9, "style": 0.85, "n_images": 250}}
    table = trust.opinions_table({"direct": figures, "ties": figures}, recognised, "test", PROVENANCE)
    assert table.rows == [["Direct merge", *["0.20 [0.10, 0.30]"] * 3, "0.80", "0.90", "0.85", "250"]]


def test_power_tells_where_variance_comes_from_and_what_can_be_seen() -> None:
    random = np.random.default_rng(0)
    pairs = [(f"s{i}", f"t{j}") for i in range(8) for j in range(8)]
    easy = {pair: random.random() for pair in pairs}
    found = {
        name: {pair: (random.random(4) < share * easy[pair]).tolist() for pair in pairs}
        for name, share in {"direct": 1.0, "ties": 0.6}.items()
    }
    text = str(power.table(found, "test", PROVENANCE))
    of_pairs = [float(row.split(" | ")[3]) for row in text.splitlines() if row.startswith(("| Direct", "| TIES"))]
    assert len(of_pairs) == 2 and all(share > 0.1 for share in of_pairs)
    least = [float(number) for number in re.findall(r"(\d\.\d\d) with", text)]
    assert least == sorted(least, reverse=True) and len(least) == len(power.SIZES)
    assert "with 25 (5 x 5)" in text and "with 800 (80 x 80)" in text
    alone = {name: {pairs[0]: of[pairs[0]]} for name, of in found.items()}
    text = str(power.table(alone, "test", PROVENANCE))
    assert "not known, as too few pairs share" in text and "nan" not in text
