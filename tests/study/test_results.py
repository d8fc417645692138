"""What is made of votes whose answers are known."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, pearsonr, spearmanr

from lorarar.cli import main
from lorarar.errors import UserError
from lorarar.scoring.statistics import wilson
from lorarar.study import report
from lorarar.study.results import correlate, image_scores, read_metrics, summarise
from lorarar.study.simulate import panel
from lorarar.study.storage import Storage
from lorarar.study.votes import Vote, read_csv, write_csv

PAPER = {"metric_human_correlation": {"mars2": 0.76}, "human_evaluation": {"comparable_or_better": ">0.75"}}


def vote(rater: str, choice: str, subject: str = "can", first: str = "direct", second: str = "ziplora", **more) -> Vote:
    row = {"rater": rater, "subject": subject, "style": "glowing", "method_1": first, "method_2": second}
    return Vote.model_validate(row | {"choice": choice, "image_1": 0, "image_2": 0} | more)


def check(rater: str, right: bool) -> Vote:
    return vote(rater, "1", kind="check", expected="1" if right else "2", image_1=None, image_2=None)


VOTES = [
    vote("ann", "1"),
    vote("bob", "2", first="ziplora", second="direct"),
    vote("eve", "2"),
    vote("ann", "similar", "dog8"),
    vote("bob", "1", "dog8"),
    check("ann", True),
    check("bob", True),
    check("eve", False),
    vote("ann", "1", kind="repeat", seconds=3.0),
    vote("bob", "2", kind="repeat", seconds=5.0),
]


def test_shares_count_votes_for_methods_and_neither_checks_nor_repeats() -> None:
    found = summarise(VOTES, seed=0, resamples=200)["scenarios"]["random"]["all"]
    (row,) = found["comparisons"]
    assert row["methods"] == ["direct", "ziplora"]
    assert (row["better"], row["similar"], row["worse"], row["better_or_similar"]) == (0.6, 0.2, 0.2, 0.8)
    assert (row["n_votes"], row["n_raters"], row["n_pairs"]) == (5, 3, 2)
    assert row["better_ci_low"] <= 0.6 <= row["better_ci_high"]
    strengths = {row["method"]: row["strength"] for row in found["strengths"]}
    assert strengths == {"direct": 0.7, "ziplora": 0.3}, "of two methods, shares with ties as half"


def test_raters_who_fail_a_check_are_flagged_and_kept() -> None:
    found = summarise(VOTES, seed=0, resamples=50)
    assert [row["rater"] for row in found["raters"] if row["flagged"]] == ["eve"] and found["n_flagged"] == 1
    random = found["scenarios"]["random"]
    assert random["all"]["n_raters"] == 3 and random["without_flagged"]["n_raters"] == 2
    assert random["without_flagged"]["comparisons"][0]["worse"] == 0
    text = report.document(found | {"correlations": []}, {}, "")
    assert "| eve | 2 | 1 of 1 |" in text and "failed a check" in text and "without flagged raters" in text


def test_side_repeats_and_times() -> None:
    found = summarise(VOTES, seed=0, resamples=50)["scenarios"]["random"]["all"]
    share = {
        key: round(value, 6)
        for key, value in zip(("share", "share_ci_low", "share_ci_high"), wilson(3, 6), strict=True)
    }
    assert found["option_1"] == {"n": 6, **share}
    assert (found["repeats_same"]["share"], found["repeats_same"]["n"]) == (0.5, 2)
    assert found["seconds"] == {"median": 4.0, "quartiles": [3.5, 4.5], "n": 2}


def test_the_score_of_an_image_is_its_mean_preference() -> None:
    scores = image_scores(VOTES)
    assert scores["direct", "can", "glowing", 0] == pytest.approx(1 / 3) == -scores["ziplora", "can", "glowing", 0]
    assert scores["direct", "dog8", "glowing", 0] == 0.5


def test_metrics_are_correlated_over_images() -> None:
    random = np.random.default_rng(0)
    votes = [
        vote(f"r{n}", str(random.choice(["1", "similar", "2"])), f"s{pair}") for pair in range(12) for n in range(5)
    ]
    scores = image_scores(votes)
    metrics = pd.DataFrame(
        [{"mars2": float(random.random() < 0.5), "added": random.random()} for _ in scores], index=scores.index
    )
    rows = correlate(votes, metrics, seed=0, resamples=200)
    assert [(row["images"], row["metric"]) for row in rows] == [
        ("all", "mars2"), ("all", "added"), ("direct", "mars2"), ("direct", "added"),
    ]  # fmt: skip
    for row in rows:
        images = [image for image in scores.index if row["images"] in ("all", image[0])]
        first = [scores[image] for image in images]
        second = [metrics.loc[image, row["metric"]] for image in images]
        for name, test in (("pearson", pearsonr), ("spearman", spearmanr), ("kendall", kendalltau)):
            assert row[name] == pytest.approx(test(first, second).statistic, abs=1e-6)
            assert row[f"{name}_ci_low"] < row[name] < row[f"{name}_ci_high"]
        assert (row["n_images"], row["n_pairs"]) == (len(images), 12)


def test_a_metric_that_is_constant_has_no_correlation() -> None:
    metrics = pd.DataFrame({"mars2": 1.0}, index=image_scores(VOTES).index)
    assert all(row["pearson"] is None for row in correlate(VOTES, metrics, seed=0, resamples=20))


def test_columns_that_a_scorer_added_are_metrics(sources, tmp_path) -> None:
    row = {"subject": "can", "style": "glowing", "subject_yes": True, "subject_prob": 0.9, "family_yes": True}
    added = [
        row | {"index": 3, "style_yes": True, "clip_i": 0.25, "new": 7},
        row | {"index": 4, "style_yes": False, "clip_i": 0.5, "new": 8},
    ]
    pd.DataFrame(added).to_parquet(tmp_path / "direct-test.parquet")
    assert read_metrics(tmp_path).to_dict("index") == {
        ("direct", "can", "glowing", 3): {"clip_i": 0.25, "new": 7.0, "mars2": 1.0},
        ("direct", "can", "glowing", 4): {"clip_i": 0.5, "new": 8.0, "mars2": 0.0},
    }
    pd.DataFrame(added).drop(columns="style_yes").to_parquet(tmp_path / "ties-test.parquet")
    with pytest.raises(UserError, match=r"ties-test\.parquet: not a table of scores \(KeyError\('style_yes'\)\)"):
        read_metrics(tmp_path)
    with pytest.raises(UserError, match="no tables of scores"):
        read_metrics(tmp_path / "none")
    assert set(read_metrics(sources.scores)) == {"clip_i", "dino", "clip_t", "mars2"}


def test_a_simulated_panel_prefers_what_is_better_and_is_called_simulated(make, sources, tmp_path) -> None:
    study = make("direct", "ziplora", checks=3)
    storage = Storage(study)
    quality = {"direct": 2.0, "ziplora": 0.0}
    truth = [
        (2.0, 0.0) if item.kind == "check" else (quality[item.options[0].method], quality[item.options[1].method])
        for item in study.manifest.items
    ]
    panel(storage, truth, raters=10, seed=0)
    votes = storage.votes()
    assert all(rater.finished for rater in storage.raters()) and len(votes) == 10 * 12
    report.write(tmp_path / "out", votes, sources.scores, 0, 50, PAPER, "Made from: this.")
    figures = json.loads((tmp_path / "out/results.json").read_text())
    assert figures["simulated"] is True
    random = figures["scenarios"]["random"]
    assert random["without_flagged"]["comparisons"][0]["better"] > 0.9
    assert [row["rater"] for row in figures["raters"] if row["flagged"]] == ["simulated-010"], "the careless one"
    text = (tmp_path / "out/results.md").read_text(encoding="utf-8")
    assert "Nobody was asked" in text and text.endswith("Made from: this.\n")
    assert "better than or similar to ZipLoRA: >0.75 of the votes" in text and "| 0.76 |" in text
    for line in text.splitlines():
        assert "rater" not in line.lower() or "simulated" in line.lower() or line.startswith("Intervals"), line
        assert not line.startswith("#") or "imulated" in line
    assert read_csv(tmp_path / "out/votes.csv") == votes
    assert [Vote.model_validate(row) for row in json.loads((tmp_path / "out/votes.json").read_text())] == votes
    storage.close()


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["lorarar", "study", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_command_builds_invites_imports_and_sums_up(sources, tmp_path, monkeypatch, capsys) -> None:
    study = tmp_path / "mine"
    where = ["--images", sources.images, "--scores", sources.scores, "--references", sources.references]
    methods = ["-m", "direct", "-m", "ziplora"]
    assert run(monkeypatch, "build", study, *methods, *where, "--scenario", "best") == 0
    output = capsys.readouterr()
    assert "4 comparisons of 2 methods, 2 left out, 3 checks" in output.out and "left out: cat2" in output.err
    assert run(monkeypatch, "build", study, *methods, *where) == 2
    assert "exists" in capsys.readouterr().err
    assert run(monkeypatch, "results", study, "-o", tmp_path / "out") == 2
    assert "no votes yet" in capsys.readouterr().err
    assert run(monkeypatch, "invite", study, 2, "--url", "https://there/") == 0
    header, *links = capsys.readouterr().out.splitlines()
    assert header == "rater,link" and len(links) == 2 and all(",https://there/r/" in link for link in links)

    write_csv(tmp_path / "theirs.csv", VOTES)
    assert run(monkeypatch, "import", tmp_path / "theirs.csv", "-o", tmp_path / "votes.csv", "--study", study) == 2
    assert "does not" in capsys.readouterr().err and not (tmp_path / "votes.csv").exists()
    assert run(monkeypatch, "import", tmp_path / "theirs.csv", "-o", tmp_path / "votes.csv") == 0
    assert read_csv(tmp_path / "votes.csv") == VOTES
    for _ in range(2):
        status = run(monkeypatch, "results", tmp_path / "votes.csv", "-o", tmp_path / "out", "--resamples", 20)
    assert status == 2 and "--force" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(report.NAMES)
