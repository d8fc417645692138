"""Photographs for the full-size bases. All pictures here are synthetic: noise that these tests make."""

from __future__ import annotations

import hashlib
import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from mirror import Mirror, redirect, silent, status, whole
from PIL import Image

from lorarar.data.catalog import Catalog
from lorarar.data.photographs import Lock, Measures, Photographs, develop
from lorarar.errors import UserError
from stages import images

ROOT = Path(__file__).parents[1]
MEASURES = Measures(smallest_side=32, megapixels=1, longest_side=64)
TEST_STYLES = ["3d_rendering4", "flat_cartoon_illustration2", "glowing", "oil_painting2", "watercolor_painting3"]


def picture(name: str, size: tuple[int, int] = (48, 36), kind: str = "JPEG") -> bytes:
    """A photograph of nothing: noise that belongs to a name."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tables and sources of the repository, without what anyone may have placed there."""
    (tmp_path / "data/photographs").mkdir(parents=True)
    for name in ("subjects.csv", "styles.csv", "prompts.yaml", "photographs/sources.yaml"):
        shutil.copy(ROOT / "data" / name, tmp_path / "data" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def photographs(root: Path) -> Photographs:
    """The repository's, in haste and content with small pictures."""
    loaded = Photographs.load(Path("data/photographs"), Path(".work/photographs"))
    haste = {"attempts": 2, "pause": 0.01, "silence": 0.5, "seconds": 2}
    sources = loaded.sources.model_copy(
        update={"download": loaded.sources.download.model_copy(update=haste), "picture": MEASURES}
    )
    return Photographs(loaded.folder, loaded.cache, sources)


def published(mirror: Mirror, loaded: Photographs, catalog: Catalog, *names: str) -> tuple[list, list]:
    """Serve some subjects and styles under their real addresses."""
    subjects = [catalog.subjects[name] for name in names if name in catalog.subjects]
    styles = [catalog.styles[name] for name in names if name in catalog.styles]
    for photograph in loaded.wanted(subjects, styles):
        if photograph.address:
            mirror.serve(path(photograph.address), whole(picture(photograph.name)))
    return subjects, styles


def path(address: str) -> str:
    """Where a mirror has what stands at an address."""
    parts = urlsplit(address)
    return f"/{parts.netloc}{parts.path}" + (f"?{parts.query}" if parts.query else "")


def failure(call: Callable[[], object]) -> list[str]:
    with pytest.raises(UserError) as error:
        call()
    return str(error.value).splitlines()


def place(name: str, content: bytes | None = None) -> Path:
    file = Path("data/photographs") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(picture(name) if content is None else content)
    return file


# --- downloading ------------------------------------------------------------------------------------------------


def test_the_test_split_comes_from_its_real_addresses_through_a_mirror_once(mirror: Mirror, root: Path) -> None:
    catalog, loaded = Catalog.load(), photographs(root)
    names = [subject.name for subject in catalog.subjects.values() if subject.split == "test"]
    subjects, styles = published(mirror, loaded, catalog, *names, *TEST_STYLES)
    # Unsplash does not send a picture itself, but leads on to where it is.
    for style in styles:
        if "unsplash.com" in style.source:
            mirror.serve(path(style.source), redirect(f"/images.unsplash.com/{style.name}"))
            mirror.serve(f"/images.unsplash.com/{style.name}", whole(picture(f"styles/{style.name}/00")))

    wanted = loaded.wanted(subjects, styles)
    files = loaded.fetch(wanted, mirror.url)
    assert len(files) == 31 and {name.split("/")[1] for name in files} == {*names, *TEST_STYLES}
    for name, file in files.items():
        assert file == Path(".work/photographs") / name and file.read_bytes() == picture(name)
    pinned = "/raw.githubusercontent.com/google/dreambooth/4f887af7970a06fc0cd3adaa1d0b368547d6a1d0/dataset"
    assert (
        f"{pinned}/dog8/04.jpg" in mirror.asked
        and "/unsplash.com/photos/RWrbY8j9GPo/download?force=true" in mirror.asked
    )
    assert not list(Path(".work/photographs").rglob(".*"))

    mirror.asked.clear()
    assert loaded.fetch(wanted, mirror.url) == files and not mirror.asked


def test_every_entry_of_the_catalogue_has_a_source_and_a_license_but_one() -> None:
    catalog = Catalog.load(ROOT).divided("paper")
    loaded = Photographs.load(ROOT / "data/photographs", Path("cache"))
    wanted = loaded.wanted(catalog.subjects.values(), catalog.styles.values())
    assert len(wanted) == 158 + 26
    assert [p.name for p in wanted if not p.address.startswith("https://")] == ["styles/cartoon_line_drawing/00"]
    rows = loaded.attribution(catalog.subjects.values(), catalog.styles.values()).splitlines()[6:]
    without = [row.split(" | ")[0] for row in rows if row.endswith("|  |") or "not known" in row]
    assert len(rows) == 56 and without == ["| cartoon_line_drawing"]


def test_all_that_cannot_be_had_is_told_together_with_where_to_put_it(mirror: Mirror, root: Path) -> None:
    catalog, loaded = Catalog.load(), photographs(root)
    subjects, styles = published(mirror, loaded, catalog, "dog8", "glowing", "sticker", "cartoon_line_drawing")
    address = {p.name: p.address for p in loaded.wanted(subjects, styles)}
    mirror.serve(path(address["subjects/dog8/00"]), status(404))
    mirror.serve(path(address["subjects/dog8/01"]), status(503))
    mirror.serve(path(address["subjects/dog8/02"]), silent(0.8))
    mirror.serve(path(address["subjects/dog8/03"]), whole(picture("x")[:-99]))
    mirror.serve(path(address["styles/glowing/00"]), status(200, b"<html>", Content_Type="text/html"))
    mirror.serve(path(address["styles/sticker/00"]), redirect("https://evil.example/sticker.jpg"))

    lines = failure(lambda: loaded.fetch(loaded.wanted(subjects, styles), mirror.url))
    reasons = {
        "styles/cartoon_line_drawing/00": "no address",
        "styles/glowing/00": "sends text/html, no picture",
        "styles/sticker/00": "leads to https://evil.example/sticker.jpg, whose host is none that it may lead to",
        "subjects/dog8/00": "HTTP 404",
        "subjects/dog8/01": "HTTP 503 (attempt 2 of 2)",
        "subjects/dog8/02": "timed out (attempt 2 of 2)",
        "subjects/dog8/03": "no whole JPEG, PNG, WEBP, AVIF, TIFF picture (",
    }
    for line, (name, reason) in zip(lines, reasons.items(), strict=True):
        told = f"{name}: {address[name]}: " if address[name] else f"{name}: "
        assert line.startswith(told + reason), line
        assert line.endswith(f"; place it by hand as data/photographs/{name}.jpg"), line

    # What came is kept, and what is placed as told makes it whole.
    for name in reasons:
        place(f"{name}.jpg")
    mirror.asked.clear()
    assert len(loaded.fetch(loaded.wanted(subjects, styles), mirror.url)) == 8 and not mirror.asked


# --- the lock ---------------------------------------------------------------------------------------------------


def test_the_lock_has_a_sorted_line_for_every_picture_ever_used(mirror: Mirror, root: Path) -> None:
    catalog, loaded = Catalog.load(), photographs(root)
    for names in (["vase"], ["glowing", "can"]):
        loaded.fetch(loaded.wanted(*published(mirror, loaded, catalog, *names)), mirror.url)
    lines = Path("data/photographs/photographs.lock").read_text().splitlines()
    names = ["styles/glowing/00"] + [f"subjects/{s}/{i:02}" for s in ("can", "vase") for i in range(6)]
    sizes = [len(picture(name)) for name in names]
    digests = [hashlib.sha256(picture(name)).hexdigest() for name in names]
    assert lines == [f"{d}  {n}  {s}" for d, n, s in zip(digests, names, sizes, strict=True)]


def test_an_address_that_has_another_picture_by_now_is_refused_until_that_is_wanted(mirror: Mirror, root: Path) -> None:
    catalog, loaded = Catalog.load(), photographs(root)
    wanted = loaded.wanted(*published(mirror, loaded, catalog, "glowing"))
    loaded.fetch(wanted, mirror.url)
    shutil.rmtree(".work")
    new = picture("new")
    mirror.serve(path(wanted[0].address), whole(new))
    (line,) = failure(lambda: loaded.fetch(wanted, mirror.url))
    assert f"not the picture of before ({len(new)} bytes, {len(picture(wanted[0].name))} in" in line
    assert line.endswith("or delete its line in data/photographs/photographs.lock if the new one is right")

    Path("data/photographs/photographs.lock").write_text("")
    assert loaded.fetch(wanted, mirror.url)["styles/glowing/00"].read_bytes() == new


def test_a_download_that_was_damaged_on_disk_comes_again(mirror: Mirror, root: Path) -> None:
    catalog, loaded = Catalog.load(), photographs(root)
    wanted = loaded.wanted(*published(mirror, loaded, catalog, "glowing"))
    (file,) = loaded.fetch(wanted, mirror.url).values()
    file.write_bytes(picture("damaged"))
    loaded.fetch(wanted, mirror.url)
    assert file.read_bytes() == picture("styles/glowing/00")


def test_the_shipped_lock_knows_all_pictures_of_dreambooth_and_refuses_others(mirror: Mirror, root: Path) -> None:
    shipped = (ROOT / "data/photographs/photographs.lock").read_bytes()
    place("photographs.lock", shipped)
    catalog, loaded = Catalog.load(), photographs(root)
    lock = Lock.load(loaded.folder / "photographs.lock").entries
    published_subjects = [catalog.subjects[name] for name in loaded.sources.collections[0].subjects]
    assert sorted(lock) == sorted(photograph.name for photograph in loaded.wanted(published_subjects, []))
    assert len(lock) == 158 and len(set(lock.values())) == 158
    dog8 = loaded.wanted(*published(mirror, loaded, catalog, "dog8"))
    lines = failure(lambda: loaded.fetch(dog8, mirror.url))
    assert len(lines) == 5 and all(
        f"not the picture of before ({len(picture(p.name))} bytes, {lock[p.name][1]} in" in line
        for line, p in zip(lines, dog8, strict=True)
    )
    assert not list(Path(".work").rglob("0*")) and Path("data/photographs/photographs.lock").read_bytes() == shipped


def test_a_lock_that_does_not_parse_is_one_clear_line(root: Path) -> None:
    place("photographs.lock", b"abc  styles/glowing/00  12\n")
    (line,) = failure(lambda: photographs(root).fetch([]))
    assert line.startswith("data/photographs/photographs.lock:1: not `sha256  name  bytes`")


# --- by hand, and of one's own ----------------------------------------------------------------------------------


def test_a_subject_and_a_style_of_ones_own_are_a_folder_and_a_row(root: Path) -> None:
    with open("data/subjects.csv", "a") as file:
        file.write("kettle,kettle,kettle,test,object,2\n")
    with open("data/styles.csv", "a") as file:
        file.write("mosaic,mosaic,own,test,other,mosaic,A street in mosaic style,\n")
    kitchen, street = place("subjects/kettle/kitchen.JPG"), place("styles/mosaic/street.webp")
    shelf = place("subjects/kettle/shelf.png", picture("shelf", kind="PNG"))
    catalog, loaded = Catalog.load(), photographs(root)
    wanted = loaded.wanted([catalog.subjects["kettle"]], [catalog.styles["mosaic"]])
    files = loaded.fetch(wanted)
    assert files == {"subjects/kettle/00": kitchen, "subjects/kettle/01": shelf, "styles/mosaic/00": street}

    shelf.unlink()
    (line,) = failure(lambda: loaded.wanted([catalog.subjects["kettle"]], []))
    assert line.startswith("data/photographs/subjects/kettle/kitchen.JPG: which of 2 is it?")
    kitchen.unlink()
    lines = failure(lambda: loaded.fetch(loaded.wanted([catalog.subjects["kettle"]], [])))
    assert lines[1] == "subjects/kettle/01: no address; place it by hand as data/photographs/subjects/kettle/01.jpg"


def test_new_concepts_are_placed_by_hand_one_picture_each(root: Path) -> None:
    shutil.copy(ROOT / "data/splits.yaml", "data")
    catalog, loaded = Catalog.load().divided("new_concepts"), photographs(root)
    pairs = catalog.pairs("test")
    wanted = loaded.wanted({s.name: s for s, _ in pairs}.values(), [catalog.styles["cyberpunk"]])
    names = ["styles/cyberpunk/00", "subjects/sofa/00", "subjects/toaster/00", "subjects/tv/00"]
    told = [f"{name}: no address; place it by hand as data/photographs/{name}.jpg" for name in names]
    assert failure(lambda: loaded.fetch(wanted)) == told
    placed = {name: place(f"{name}.jpg") for name in names}
    assert loaded.fetch(loaded.wanted({s.name: s for s, _ in pairs}.values(), [catalog.styles["cyberpunk"]])) == placed


def test_pictures_placed_by_hand_stand_in_for_those_of_their_number(mirror: Mirror, root: Path) -> None:
    catalog, loaded = Catalog.load(), photographs(root)
    subjects, styles = published(mirror, loaded, catalog, "can")
    placed = place("subjects/can/02.png", picture("mine", kind="PNG"))
    for litter in (".DS_Store", "Thumbs.db", "desktop.ini", "02.txt"):
        place(f"subjects/can/{litter}", b"not a picture")
    files = loaded.fetch(loaded.wanted(subjects, styles), mirror.url)
    assert files["subjects/can/02"] == placed and len(mirror.asked) == 5

    place("subjects/can/02.jpg")
    assert "subjects/can/02.png: which of 6 is it?" in failure(lambda: loaded.wanted(subjects, styles))[0]


def test_pictures_placed_by_hand_pass_the_same_checks(root: Path) -> None:
    catalog, loaded = Catalog.load(), photographs(root)
    style = catalog.styles["cartoon_line_drawing"]
    place("styles/cartoon_line_drawing/00.jpg", picture("small", (20, 99)))
    (line,) = failure(lambda: loaded.fetch(loaded.wanted([], [style])))
    assert line == (
        "data/photographs/styles/cartoon_line_drawing/00.jpg: "
        "20 x 99 pixels, its smaller side must have 32; place another"
    )
    place("styles/cartoon_line_drawing/00.jpg")
    loaded.fetch(loaded.wanted([], [style]))
    place("styles/cartoon_line_drawing/00.jpg", picture("another"))
    (line,) = failure(lambda: loaded.fetch(loaded.wanted([], [style])))
    assert "00.jpg: not the picture of before" in line and "delete its line in" in line


def test_an_address_that_is_none_is_told_before_anything_is_downloaded(root: Path) -> None:
    table = Path("data/styles.csv")
    table.write_text(table.read_text().replace("https://unsplash.com/photos/RWrbY8j9GPo", "RWrbY8j9GPo"))
    (line,) = failure(lambda: photographs(root).wanted([], [Catalog.load().styles["glowing"]]))
    assert line.startswith("data/styles.csv: glowing: source_url 'RWrbY8j9GPo/download?force=true' is no address")


def test_a_mirror_that_is_none_is_one_clear_line(root: Path) -> None:
    (line,) = failure(lambda: photographs(root).fetch([], "mirror.example.org"))
    assert line.startswith("LORARAR_MIRROR: 'mirror.example.org' is no address")


# --- what is no picture, and what becomes of one ----------------------------------------------------------------


def bomb(side: int) -> bytes:
    """A PNG that says it is enormous."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    end = b"\x00\x00\x00\x00IEND\xaeB`\x82"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + end


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bomb(60000), "more than 1 million pixels; reduce it"),
        (bomb(2000), "2000 x 2000 pixels, more than 1 million; reduce it"),
        (bomb(100), "no whole JPEG, PNG, WEBP, AVIF, TIFF picture ("),
        (picture("thumbnail", (31, 99)), "31 x 99 pixels, its smaller side must have 32"),
        (picture("cut")[:1000], "no whole JPEG, PNG, WEBP, AVIF, TIFF picture ("),
        (picture("gif", kind="GIF"), "no whole JPEG, PNG, WEBP, AVIF, TIFF picture;"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIC, as iPhones take it, which cannot be read; save it"),
        (b"", "no whole JPEG, PNG, WEBP, AVIF, TIFF picture;"),
    ],
    ids=["bomb", "too large", "hollow", "thumbnail", "cut", "GIF", "HEIC", "empty"],
)
def test_what_is_no_picture_of_the_right_measures_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "00.jpg"
    file.write_bytes(content)
    (line,) = failure(lambda: develop(file, MEASURES))
    assert f"00.jpg: {reason}" in line


def test_sixteen_bits_are_not_silently_made_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 40000, np.uint16)).save(tmp_path / "scan.png")
    (line,) = failure(lambda: develop(tmp_path / "scan.png", MEASURES))
    assert "scan.png: more than 8 bits a channel" in line


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    lying = np.zeros((40, 60, 3), np.uint8)
    lying[:, :30] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(lying).save(tmp_path / "a.png", exif=exif)
    upright = develop(tmp_path / "a.png", MEASURES)
    assert upright.shape == (60, 40, 3) and (upright[:30] == 255).all() and (upright[30:] == 0).all()


def matrix_profile(name: str, columns: tuple[tuple[float, float, float], ...]) -> bytes:
    """An ICC profile of sRGB's curve and the given primaries (XYZ of red, green and blue under D50)."""

    def fixed(*numbers: float) -> bytes:
        return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    text = name.encode("utf-16-be")
    words = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    curve = b"para" + bytes(4) + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    white = b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249)
    tags = {b"desc": words, b"cprt": words, b"wtpt": white}
    for letter, column in zip((b"r", b"g", b"b"), columns, strict=True):
        tags[letter + b"XYZ"], tags[letter + b"TRC"] = b"XYZ " + bytes(4) + fixed(*column), curve
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12s4s", start + len(body), b"", 0x04300000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp"
    )
    head += bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))


def srgb_of_p3(colour: tuple[int, int, int]) -> np.ndarray:
    """What a Display P3 colour is in sRGB, from the definitions."""
    c = np.array(colour) / 255
    light = np.linalg.solve(
        np.transpose(SRGB), np.transpose(P3) @ np.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
    )
    light = light.clip(0, 1)
    return 255 * np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "AVIF", "WEBP"])
@pytest.mark.parametrize("colour", [(200, 60, 60), (60, 180, 90), (128, 128, 128)])
def test_colours_are_converted_from_the_pictures_own_profile(tmp_path: Path, kind: str, colour: tuple) -> None:
    exact = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": "4:4:4"} if kind == "AVIF" else {}
    file = tmp_path / "phone.bin"
    Image.new("RGB", (40, 40), colour).save(file, kind, icc_profile=matrix_profile("Display P3", P3), **exact)
    shown = develop(file, MEASURES)[20, 20].astype(int)
    assert np.abs(shown - srgb_of_p3(colour)).max() <= 2, shown
    assert np.abs(np.array((200, 60, 60)) - srgb_of_p3((200, 60, 60))).max() > 14, "the test can fail"


def test_a_profile_keeps_transparency_and_grey_and_an_srgb_picture_keeps_its_bits(tmp_path: Path) -> None:
    sticker = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    sticker.paste((200, 60, 60, 255), (10, 10, 30, 30))
    sticker.save(tmp_path / "sticker.png", icc_profile=matrix_profile("Display P3", P3))
    shown = develop(tmp_path / "sticker.png", MEASURES)
    assert (shown[0, 0] == 255).all() and np.abs(shown[20, 20] - srgb_of_p3((200, 60, 60))).max() <= 1
    Image.new("L", (40, 40), 90).save(tmp_path / "grey.png", icc_profile=matrix_profile("Display P3", P3))
    assert np.abs(develop(tmp_path / "grey.png", MEASURES).astype(int) - 90).max() <= 1
    noise = Image.open(io.BytesIO(picture("noise", kind="PNG")))
    noise.save(tmp_path / "same.png", icc_profile=matrix_profile("sRGB IEC61966-2.1", SRGB))
    assert np.array_equal(develop(tmp_path / "same.png", MEASURES), np.asarray(noise))


@pytest.mark.parametrize("profile", [b"no profile" * 20, matrix_profile("odd", P3).replace(b"RGB XYZ ", b"CMYKXYZ ")])
def test_a_profile_that_does_not_fit_is_one_clear_line(tmp_path: Path, profile: bytes) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "odd.png", icc_profile=profile)
    (line,) = failure(lambda: develop(tmp_path / "odd.png", MEASURES))
    assert "odd.png: its colour profile cannot be used (" in line and "; save it as sRGB; replace it" in line


def test_large_pictures_are_reduced_and_others_kept_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(picture("large", (300, 150), "PNG"))
    (tmp_path / "small.png").write_bytes(picture("small", (50, 40), "PNG"))
    assert develop(tmp_path / "large.png", MEASURES).shape == (32, 64, 3)
    kept = np.asarray(Image.open(tmp_path / "small.png"))
    assert np.array_equal(develop(tmp_path / "small.png", MEASURES), kept)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (40, 40), "white").convert("L" if mode == "LA" else "RGB").convert(mode).save(file)
    assert (develop(file, MEASURES) == 255).all()


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    sticker = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    sticker.paste((255, 0, 0, 255), (10, 10, 30, 30))
    sticker.save(tmp_path / "sticker.png")
    shown = develop(tmp_path / "sticker.png", MEASURES)
    assert (shown[0, 0] == 255).all() and (shown[20, 20] == [255, 0, 0]).all()


# --- plan, attribution, sources, stage --------------------------------------------------------------------------


def test_the_plan_counts_what_is_there_and_what_is_to_come(mirror: Mirror, root: Path) -> None:
    catalog, loaded = Catalog.load(), photographs(root)
    loaded.fetch(loaded.wanted(*published(mirror, loaded, catalog, "vase")), mirror.url)
    place("styles/sticker/00.jpg")
    names = ("vase", "dog8", "glowing", "sticker", "cartoon_line_drawing")
    mirror.asked.clear()
    assert loaded.plan(loaded.wanted(*published(mirror, loaded, catalog, *names))).splitlines() == [
        "14 pictures: 1 placed by hand in data/photographs, 6 downloaded before to .work/photographs, 6 to download",
        "  5 from raw.githubusercontent.com",
        "  1 from unsplash.com",
        "  styles/cartoon_line_drawing/00: no address; "
        "place it by hand as data/photographs/styles/cartoon_line_drawing/00.jpg",
    ]
    assert not mirror.asked


def test_attribution_names_maker_source_and_license(root: Path) -> None:
    catalog, loaded = Catalog.load(), photographs(root)
    text = loaded.attribution([catalog.subjects["dog8"]], [catalog.styles["glowing"]])
    assert (
        "| dog8 | 5 | https://unsplash.com/@marslady | [DreamBooth](https://github.com/google/dreambooth) | CC BY 4.0"
    ) in text
    assert "| glowing | 1 |  | https://unsplash.com/photos/RWrbY8j9GPo | Unsplash License, " in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("attempts: 5", "attempts: 0", "download.attempts: Input should be greater than 0"),
        ("megabytes:", "gigabytes:", "download.megabytes: Field required"),
        ("hosts: [", "hosts: [[", "cannot be read"),
    ],
)
def test_sources_that_are_not_right_are_one_clear_line(root: Path, old: str, new: str, message: str) -> None:
    file = Path("data/photographs/sources.yaml")
    file.write_text(file.read_text().replace(old, new))
    (line,) = failure(lambda: photographs(root))
    assert line.startswith("data/photographs/sources.yaml: ") and message in line


def test_the_stage_lays_photographs_out_as_it_does_the_miniatures(
    mirror: Mirror, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    sources = Path("data/photographs/sources.yaml")
    sources.write_text(sources.read_text().replace("smallest_side: 256", "smallest_side: 32"))
    (root / "data/sdxl").mkdir()
    shutil.copy(ROOT / "data/sdxl/world.yaml", "data/sdxl")
    subjects, styles = published(mirror, photographs(root), Catalog.load(), "duck_toy", "glowing")
    monkeypatch.setenv("LORARAR_MIRROR", mirror.url)
    context = SimpleNamespace(
        base="sdxl", data=Path("data/sdxl"), artifacts=Path("artifacts/sdxl"), work=Path(".work"),
        params=SimpleNamespace(recipe="sdxl"), subjects=subjects, styles=styles, workers=2, plan=True,
    )  # fmt: skip
    with pytest.raises(SystemExit):
        images.main(context)  # type: ignore[arg-type]
    assert "5 to download" in capsys.readouterr().out and not mirror.asked

    context.plan, context.styles = False, [*styles, Catalog.load().styles["cartoon_line_drawing"]]
    _, advice = failure(lambda: images.main(context))  # type: ignore[arg-type]
    assert advice == "params.yaml: recipes.sdxl.bank can leave out missing ones"

    context.styles = styles
    images.main(context)  # type: ignore[arg-type]
    out = Path("artifacts/sdxl/images")
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()) == [
        "ATTRIBUTION.md",
        "styles/glowing/00.png",
        *(f"subjects/duck_toy/{index:02}.png" for index in range(4)),
    ]
    original = np.asarray(Image.open(io.BytesIO(picture("subjects/duck_toy/03"))))
    assert np.array_equal(np.asarray(Image.open(out / "subjects/duck_toy/03.png")), original)
