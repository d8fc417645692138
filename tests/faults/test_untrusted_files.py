"""Files from anywhere: whatever is in them, they are read or refused in one line; nothing in them is run."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterable
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from mutation import spoilt, spoilt_headers
from safetensors.torch import save_file

from lorarar import pictures
from lorarar.data.catalog import Catalog
from lorarar.diffusion.backbone import Backbone
from lorarar.errors import UserError
from lorarar.lora import base_models
from lorarar.lora.adapter import Adapter, Factors
from lorarar.lora.lycoris import Reading
from lorarar.merging import columns
from lorarar.merging.hypernet import HyperNetwork
from lorarar.merging.klora import Schedule
from lorarar.scoring import score_table
from lorarar.scoring.clip import Clip
from lorarar.scoring.dino import Dino
from lorarar.scoring.folder import read_pictures
from lorarar.study.manifest import Study
from lorarar.study.votes import COLUMNS, read_csv
from lorarar.training.checkpoint import Checkpoint
from stages.shared.params import load

ROOT = Path(__file__).parents[2]
BASE, JUDGES = ROOT / "data/pocket/base", ROOT / "data/pocket/judges"
QUICK, MANY = 300, 100_000
LONGEST = 5.0
"""Seconds of work that no single file may take."""
numbers = pytest.mark.parametrize("number", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])
LAYERS = ["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"]


def try_all(
    folder: Path, suffix: str, valid: Iterable[bytes], files: Iterable[bytes], read: Callable[[Path], object]
) -> None:
    """Read all files: valid ones are accepted, of the others none ends in anything but a refusal of few words."""
    for content in valid:
        path = folder / f"valid{suffix}"
        path.write_bytes(content)
        read(path)
        path.unlink()
    refused = number = 0
    for number, content in enumerate(files, start=1):
        # Each in a file of its own: pages of the one before may still be mapped.
        path = folder / f"{number}{suffix}"
        path.write_bytes(content)
        begun = time.process_time()
        try:
            read(path)
        except UserError as error:
            refused += 1
            assert str(path) in str(error) and max(map(len, str(error).split("\n"))) < 600, str(error)
        except Exception as error:
            kept = path.rename(folder / f"kept{suffix}")
            raise AssertionError(f"file {number}, kept as {kept}: {error!r}") from error
        assert time.process_time() - begun < LONGEST, f"file {number} took too long"
        path.unlink()
    print(f"{number} spoilt files {suffix}: {refused} refused, {number - refused} read")
    assert refused > number / 2, "they should be spoilt"


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spoilt")


def valid_adapters(folder: Path) -> list[bytes]:
    generator = torch.Generator().manual_seed(0)
    shapes = {LAYERS[0]: ((2, 8), (8, 2)), LAYERS[1]: ((1, 4, 3, 3), (4, 1, 1, 1))}
    made = {
        path: Factors(torch.randn(down, generator=generator), torch.randn(up, generator=generator))
        for path, (down, up) in shapes.items()
    }
    adapter = Adapter({LAYERS[0]: made[LAYERS[0]]}, {"prompt": "a dog"}, others={f"unet.{LAYERS[1]}": made[LAYERS[1]]})
    contents = []
    for format in ("diffusers", "kohya", "kohya-sgm", "peft"):
        adapter.save(folder / "valid.safetensors", format=format)
        contents.append((folder / "valid.safetensors").read_bytes())
        (folder / "valid.safetensors").unlink()
    return contents


def look_into(path: Path) -> None:
    """What `lorarar inspect` and `lorarar merge` do with a file."""
    adapter = Adapter.load(path)
    adapter.check(str(path))
    base_models.guess(adapter.layers)
    for factors in adapter.layers.values():
        _ = factors.norm


@numbers
def test_adapters(memory: Path, number: int) -> None:
    valid = valid_adapters(memory)
    words = [
        ".lora_A",
        "alpha",
        "unet.",
        "unet.unet.",
        "lora_te_",
        "base_model.model.",
        "lora_adapter_metadata",
        ".diff",
    ]
    half = number // 2
    bytes_of_words = [word.encode() for word in words]
    try_all(memory, ".safetensors", valid, spoilt(0, half, valid, bytes_of_words), look_into)
    try_all(memory, ".safetensors", valid, spoilt_headers(1, half, valid, words), look_into)


@numbers
def test_adapters_of_other_kinds(memory: Path, number: int) -> None:
    """Files of LoHa, LoKr and full differences, read whole and cut."""
    torch.manual_seed(0)
    linear, convolution = (f"lora_unet_{path.replace('.', '_')}" for path in LAYERS)
    loha = {f"hada_w{side}_a": torch.randn(8, 2) for side in "12"} | {
        f"hada_w{side}_b": torch.randn(2, 6) for side in "12"
    }
    lokr = {"lokr_w1": torch.randn(2, 2), "lokr_w2_a": torch.randn(2, 4), "lokr_w2_b": torch.randn(2, 2)}
    lokr |= {"lokr_t2": torch.randn(2, 2, 3, 3), "alpha": torch.tensor(1.0)}
    diff = {"diff": torch.randn(4, 3, 3, 3), "diff_b": torch.zeros(4)}
    contents = []
    for parts in (
        {linear: loha | {"alpha": torch.tensor(3.0)}, convolution: lokr},
        {linear: {"diff": torch.randn(5, 4)}, convolution: diff},
    ):
        tensors = {f"{stem}.{part}": tensor for stem, found in parts.items() for part, tensor in found.items()}
        save_file(tensors, memory / "valid.safetensors")
        contents.append((memory / "valid.safetensors").read_bytes())
        (memory / "valid.safetensors").unlink()
    words = [
        ".hada_w1_a",
        ".hada_t1",
        ".lokr_w1",
        ".lokr_w1_a",
        ".lokr_t2",
        ".diff",
        ".diff_b",
        ".dora_scale",
        ".on_input",
        "F8_E4M3",
    ]

    def look(path: Path) -> None:
        look_into(path)
        Adapter.load(path, Reading(rank=1)).check(str(path))

    half = number // 2
    try_all(memory, ".safetensors", contents, spoilt(4, half, contents, [word.encode() for word in words]), look)
    try_all(memory, ".safetensors", contents, spoilt_headers(5, half, contents, words), look)


@numbers
@pytest.mark.filterwarnings("ignore")  # of odd protocols, and of networks of no width
def test_hypernetworks(memory: Path, number: int) -> None:
    network = HyperNetwork([2, 4], hidden=3)
    network.save(memory / "valid.safetensors")
    torch.save(network.state_dict(), memory / "valid.pth")
    safe, pickled = (memory / "valid.safetensors").read_bytes(), (memory / "valid.pth").read_bytes()
    words = ["input_1.weight", "input_9.weight", "guided", "constants", "output.1.bias"]
    half = number // 2
    try_all(memory, ".safetensors", [safe], spoilt_headers(2, half, [safe], words), HyperNetwork.load)
    opcodes = [word.encode() for word in words] + [b"ctorch\n_utils\n", b"\x93", b"R.", b"cposix\nsystem\n"]
    try_all(memory, ".pth", [pickled], spoilt(3, half, [pickled], opcodes), HyperNetwork.load)


VOTES = (
    ",".join(COLUMNS) + "\n"
    "anna,dog8,glowing,ziplora,lorarar,1,0,3,random,pair,,4.2,2026-01-01T00:00:00Z,0\n"
    "anna,dog8,glowing,ziplora,lorarar,similar,0,3,random,repeat,,1,,0\n"
    "bert,dog8,glowing,truth,base_only,2,,,best,check,1,,,0\n"
).encode()


@numbers
def test_votes(memory: Path, number: int) -> None:
    words = [name.encode() for name in COLUMNS] + [b'"', b",", b"\n", b"\r", b",,", "é".encode(), b"similar"]
    words += [b"rater,subject,style,method_1,method_2,choice\n"]
    try_all(memory, ".csv", [VOTES], spoilt(4, number, [VOTES], words), read_csv)


SOME = """seed: 0
executor: auto
workers: auto
evaluate:
  methods:
    - direct
    - truth
  splits: [test]
  pairs: all
bases:
  pocket:
    hypernet: {steps: 100, learning_rate: 0.001, guided: [to_q, to_out.0], constants: [1.0, 1.0]}
    merge: {ties: {density: 0.5}}
"""


@numbers
def test_params(memory: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    catalog = Catalog.load()
    whole = Path("params.yaml").read_bytes()
    words = [b"&a ", b"*a", b"<<: ", b"!!python/object:os.system ", b"? ", b"- ", b": ", b"[", b"{", b"|\n", b"%YAML 9"]
    words += [b"2026-13-45", b"1:60:99", b"!!binary ", b"!!set ", b".inf", b"---\n", b"...\n", b"\t", b"'", b"all"]
    # Most of them short, as the whole file takes ten times as long.
    files = chain(spoilt(5, number * 9 // 10, [SOME.encode()], words), spoilt(6, number // 10, [whole], words))
    try_all(memory, ".yaml", [whole], files, lambda path: load(path, catalog))


class Planted:
    """Opened by pickle it would leave a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def as_torch(path: Path, planted: Planted) -> None:
    torch.save({"input_1.weight": planted, "step": planted}, path)


def as_pickle(path: Path, planted: Planted) -> None:
    path.write_bytes(pickle.dumps(planted))


def as_array(path: Path, planted: Planted) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([planted], dtype=object), allow_pickle=True)


def as_yaml(path: Path, planted: Planted) -> None:
    path.write_text(f"seed: !!python/object/apply:os.mknod ['{planted.mark}']\n")


def resume(path: Path) -> None:
    weights = [torch.zeros(1, requires_grad=True)]
    Checkpoint(path).resume(weights, torch.optim.AdamW(weights), {})


def folder_of_dino(path: Path) -> None:
    shutil.copytree(JUDGES / "dino", path.parent / "dino", ignore=shutil.ignore_patterns("*.safetensors"))
    path.rename(path.parent / "dino" / "pytorch_model.bin")
    Dino.load(path.parent / "dino")


def folder_of_clip(path: Path) -> None:
    shutil.copytree(JUDGES / "clip", path.parent / "clip", ignore=shutil.ignore_patterns("*.safetensors"))
    path.rename(path.parent / "clip" / "open_clip_pytorch_model.bin")
    Clip.load(path.parent / "clip")


def folder_of_base(path: Path) -> None:
    shutil.copytree(BASE, path.parent / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    path.rename(path.parent / "base" / "unet" / "diffusion_pytorch_model.bin")
    Backbone.load(path.parent / "base")


READERS: dict[str, tuple[Callable[[Path, Planted], None], str, Callable[[Path], object]]] = {
    "adapter": (as_torch, ".safetensors", Adapter.load),
    "adapter, bare": (as_pickle, ".bin", Adapter.load),
    "schedule": (as_torch, ".safetensors", Schedule.load),
    "coefficients": (as_torch, ".safetensors", columns.load),
    "hypernetwork": (as_torch, ".pth", HyperNetwork.load),
    "hypernetwork, bare": (as_pickle, ".pth", HyperNetwork.load),
    "state of a training": (as_torch, ".state", resume),
    "picture": (as_pickle, ".png", pictures.read),
    "folder of pictures": (as_pickle, ".png", read_pictures),
    "scores": (as_pickle, ".parquet", score_table.read),
    "votes": (as_pickle, ".csv", read_csv),
    "study": (as_pickle, ".json", lambda path: Study.load(path.rename(path.with_name("manifest.json")).parent)),
    "params": (as_yaml, ".yaml", lambda path: load(path, Catalog.load(ROOT))),
    "DINO": (as_torch, ".bin", folder_of_dino),
    "CLIP": (as_torch, ".bin", folder_of_clip),
    "base": (as_torch, ".bin", folder_of_base),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_planted_pickle_is_not_run(tmp_path: Path, kind: str) -> None:
    write, suffix, read = READERS[kind]
    path, mark = tmp_path / f"planted{suffix}", tmp_path / "mark"
    write(path, Planted(mark))
    with pytest.raises(UserError):
        read(path)
    assert not mark.exists()


def test_a_planted_array_is_not_run(tmp_path: Path) -> None:
    """Renderings that a training of the base keeps for itself: numpy refuses, in its own words."""
    as_array(tmp_path / "planted.npy", Planted(tmp_path / "mark"))
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "planted.npy")
    assert not (tmp_path / "mark").exists()


def test_the_plant_would_grow(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Planted(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def picture_of_gigapixels(path: Path) -> None:
    rows = zlib.compress(b"\0" * 1000)
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


LAUGHS = "a: &a [lol]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in pairwise("abcdefghi")
)
BOMBS: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], object]]] = {
    "header of 100 GB": (
        ".safetensors",
        lambda path: path.write_bytes(struct.pack("<Q", 10**11) + b'{"a": '),
        Adapter.load,
    ),
    "tensor of 100 GB": (
        ".safetensors",
        lambda path: path.write_bytes(
            struct.pack("<Q", 72)
            + b'{"a.alpha":{"dtype":"F32","shape":[25000000000],"data_offsets":[0,100000000000]}}'[:72]
        ),
        Adapter.load,
    ),
    "a million columns": (".csv", lambda path: path.write_text(",".join(map(str, range(10**6))) + "\n"), read_csv),
    "one column a million times": (".csv", lambda path: path.write_text("rater," * 10**6 + "\n"), read_csv),
    "a line of a hundred million letters": (".csv", lambda path: path.write_text("a" * 10**8), read_csv),
    "aliases of aliases": (
        ".yaml",
        lambda path: path.write_text(f"{LAUGHS}seed: *i\n"),
        lambda path: load(path, Catalog.load(ROOT)),
    ),
    "brackets in brackets": (
        ".yaml",
        lambda path: path.write_text("seed: " + "[" * 100_000),
        lambda path: load(path, Catalog.load(ROOT)),
    ),
    "picture of gigapixels": (".png", picture_of_gigapixels, read_pictures),
    "picture of gigapixels in the chain": (".png", picture_of_gigapixels, pictures.read),
    "brackets in a study": (
        ".json",
        lambda path: path.write_text("[" * 10**6),
        lambda path: Study.load(path.rename(path.with_name("manifest.json")).parent),
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_what_claims_to_be_vast_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    suffix, make, read = BOMBS[kind]
    path = tmp_path / f"bomb{suffix}"
    make(path)
    before, begun = psutil.Process().memory_info().rss, time.process_time()
    with pytest.raises(UserError, match=r"bomb|manifest") as caught:
        read(path)
    assert len(str(caught.value)) < 1000
    assert time.process_time() - begun < LONGEST
    assert psutil.Process().memory_info().rss - before < 1 << 30


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", "..", "0" * 23])
def test_a_study_shows_no_file_from_elsewhere(tmp_path: Path, name: str) -> None:
    option = {"method": "truth", "subject": "dog8", "style": "glowing", "index": 0, "image": name}
    item = {"kind": "pair", "subject": "dog8", "style": "glowing", "options": [option, option]}
    references = {"subjects/dog8": name, "styles/glowing": name}
    manifest = {
        "scenario": "random", "split": "test", "seed": 0, "methods": ["truth"], "repeats": 0, "items": [item],
        "example": item, "references": references, "left_out": [], "images": {name: "0" * 64},
    }  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="not a study"):
        Study.load(tmp_path)


@pytest.mark.parametrize("name", ["../dog8", "dog8/../../x", "/etc", ".", "-", "a b"])
def test_votes_and_judges_name_no_file_from_elsewhere(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    votes = tmp_path / "votes.csv"
    votes.write_text(f"rater,subject,style,method_1,method_2,choice\nanna,{name},glowing,truth,direct,1\n")
    with pytest.raises(UserError, match=r"votes\.csv:2: subject"):
        read_csv(votes)
    monkeypatch.chdir(ROOT)
    params = tmp_path / "params.yaml"
    params.write_text(Path("params.yaml").read_text().replace("judge: verification", f"judge: '{name}'"))
    with pytest.raises(UserError, match=r"params\.yaml:\d+: recipes\.pocket\.score\.judge"):
        load(params, Catalog.load())
