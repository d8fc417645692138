"""What a study shows, and to whom in which order."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from lorarar import pictures
from lorarar.errors import UserError
from lorarar.study.build import NothingToCompare, Sources, build
from lorarar.study.manifest import Study, playlist, spoken


def of_kind(study: Study, kind: str):
    return [item for item in study.manifest.items if item.kind == kind]


def test_every_two_methods_meet_once_for_every_pair(make) -> None:
    study = make("direct", "lorarar", "ziplora")
    met = Counter(
        (item.subject, item.style, *(option.method for option in item.options)) for item in of_kind(study, "pair")
    )
    assert met == Counter(
        (subject, style, *both)
        for subject in ("cat2", "dog8", "can")
        for style in ("glowing", "sticker")
        for both in combinations(("direct", "lorarar", "ziplora"), 2)
    )
    images: dict[tuple, set[int]] = {}
    for item in of_kind(study, "pair"):
        for option in item.options:
            images.setdefault((option.method, option.subject, option.style), set()).add(option.index)
    assert all(len(indices) == 1 for indices in images.values()), "one image stands for a method in a pair"


def test_the_best_are_images_that_the_judge_accepted(make) -> None:
    study = make(scenario="best")
    assert {option.index for item in of_kind(study, "pair") for option in item.options} == {1}
    assert {item.subject for item in of_kind(study, "pair")} == {"dog8", "can"}
    assert len(study.manifest.left_out) == 2 and all("no image of ziplora" in line for line in study.manifest.left_out)


def test_random_images_come_from_the_seed(make) -> None:
    studies = [make(name=name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    chosen = [
        [option.model_copy(update={"image": ""}) for item in study.manifest.items for option in item.options]
        for study in studies
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert {option.index for option in chosen[0]} == {0, 1}


def test_checks_and_example_have_a_right_answer(make) -> None:
    study = make(checks=3)
    checks = of_kind(study, "check")
    assert len(checks) == 3
    for check in checks:
        right, wrong = check.options
        assert (right.subject, right.style, right.index) == (check.subject, check.style, 1)
        assert wrong.subject != check.subject and wrong.style != check.style
    wrong, right = study.manifest.example.options
    assert wrong.style == right.style and wrong.subject != right.subject == study.manifest.example.subject


def test_neither_name_nor_file_tells_the_method(sources: Sources, make, tmp_path) -> None:
    file = sources.images / "direct/test/can+glowing/00.png"
    before, picture = file.read_bytes(), pictures.read(file)
    try:
        note = PngImagePlugin.PngInfo()
        note.add_text("method", "direct merge")
        Image.fromarray(picture).save(file, pnginfo=note)
        study = make(seed=3)
    finally:
        file.write_bytes(before)
    for path in (study.folder / "images").iterdir():
        assert re.fullmatch(r"[0-9a-f]{24}\.png", path.name)
        with Image.open(path) as image:
            assert not image.info
    again = make(seed=3, name="again")
    assert not set(study.manifest.images) & set(again.manifest.images), "the seed tells no names"


def test_pixels_are_those_generated(sources: Sources, study: Study) -> None:
    for item in study.manifest.items:
        for option in item.options:
            shown = pictures.read(study.folder / "images" / f"{option.image}.png")
            assert np.array_equal(shown, pictures.read(sources.image(option)))


def test_a_rater_sees_all_once_and_repeats_with_sides_exchanged(study: Study) -> None:
    slots = playlist(study.manifest, "rater-001")
    first = {slot.item: (place, slot) for place, slot in enumerate(slots) if not slot.repeat}
    again = [(place, slot) for place, slot in enumerate(slots) if slot.repeat]
    assert sorted(first) == list(range(8)) and len(again) == 2
    for place, slot in again:
        before, original = first[slot.item]
        assert before < place and slot.swapped != original.swapped
        assert study.manifest.items[slot.item].kind == "pair"
    assert sum(slot.swapped for _, slot in first.values()) == 4, "sides are balanced"


def test_order_and_sides_belong_to_the_rater_and_the_seed(study: Study, make) -> None:
    other = make(repeats=2, checks=2, seed=1, name="other")
    lists = [playlist(study.manifest, f"rater-{n}") for n in range(20)] + [playlist(other.manifest, "rater-0")]
    assert playlist(study.manifest, "rater-0") == lists[0]
    assert len({tuple(slots) for slots in lists}) == 21


def test_what_cannot_be_built_is_said(sources: Sources, tmp_path, make) -> None:
    out = tmp_path / "no"
    with pytest.raises(UserError, match="two or more different methods"):
        build(out, sources, ["direct", "direct"])
    with pytest.raises(UserError, match=r"magic-test\.parquet: no such table of scores"):
        build(out, sources, ["direct", "magic"])
    with pytest.raises(UserError, match=r"no images of a pair called 'can\+glow'"):
        build(out, sources, ["direct", "ziplora"], pairs=["can+glow"])
    with pytest.raises(NothingToCompare, match="suffice for 6 checks"):
        build(out, sources, ["direct", "ziplora"], checks=30)
    with pytest.raises(NothingToCompare, match="no pair has accepted images"):
        build(out, sources, ["direct", "ziplora"], scenario="best", pairs=["cat2+glowing"])
    assert not out.exists()
    make()
    with pytest.raises(UserError, match="exists; a study is never changed"):
        make()


def test_a_study_that_changed_is_refused(study: Study) -> None:
    path = study.folder / "images" / f"{min(study.manifest.images)}.png"
    original = path.read_bytes()
    path.write_bytes(original[:-1] + b"x")
    with pytest.raises(UserError, match=f"{path.name}: has changed since the study was built"):
        Study.load(study.folder)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name}: cannot be read"):
        Study.load(study.folder)
    path.write_bytes(original)
    manifest = study.folder / "manifest.json"
    content = json.loads(manifest.read_text())
    content["items"][0]["options"][0]["image"] = "../../secret"
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"manifest\.json: not a study \(items\.0\.options\.0\.image"):
        Study.load(study.folder)


def test_names_are_spoken() -> None:
    assert [spoken(name) for name in ("oil_painting2", "cat", "3d_rendering4")] == [
        "oil painting",
        "cat",
        "3d rendering",
    ]


def test_a_study_of_one_subject_shows_it_in_another_style_as_the_wrong_one(make) -> None:
    study = make(pairs=["dog8+glowing", "dog8+sticker"], checks=2)
    example, checks = study.manifest.example, [item for item in study.manifest.items if item.kind == "check"]
    assert len(checks) == 2 and {option.subject for item in checks for option in item.options} == {"dog8"}
    for item in (example, *checks):
        right, wrong = (item.options[1], item.options[0]) if item is example else item.options
        assert right.style == item.style and wrong.style != item.style
