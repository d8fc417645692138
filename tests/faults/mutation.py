"""Spoilt files: valid ones with a few things changed at random, and noise. The same seed makes the same files."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from math import prod

NUMBERS = [b"-1", b"0", b"9" * 30, b"9" * 5000, b"1e999", b"nan", b"0x1", b"1.5", b"true", b"null", b"\xff\xfe", b"\0"]


CONFIGURATIONS: list = [
    {"lora_adapter_metadata": json.dumps(value)}
    for value in (
        [[1, 2]],
        5,
        {"": 1},
        {"unet.r": "x"},
        {"unet.r": 2, "unet.lora_alpha": "1"},
        {"unet.lora_alpha": [1]},
        {"unet.lora_alpha": 10**400},
        {"unet.alpha_pattern": [1]},
        {"unet.rank_pattern": {"(": 1}},
        {"unet.rank_pattern": {"(.+)+x": 1}},
        {"unet.alpha_pattern": {".*" * 100 + "x": 1}},
        {"unet.r": True},
        {"unet.lora_alpha": float("nan")},
        {"unet.alpha_pattern": {".*": None}},
        {"unet.init_lora_weights": "pissa_9"},
    )
] + [{"lora_adapter_metadata": "[" * 100_000}, {"lora_adapter_metadata": 1}, {"a": "b" * 10_000}, [], None, "x"]


def spoilt(seed: int, number: int, valid: Sequence[bytes], words: Sequence[bytes]) -> Iterator[bytes]:
    """So many files: each a valid one after one to four changes, every twentieth nothing but noise.

    Parameters
    ----------
    words : what has a meaning to the reader; they are put where they do not belong.
    """
    chance = random.Random(seed)
    for index in range(number):
        if index % 20 == 19:
            yield chance.randbytes(chance.randrange(200))
            continue
        content = chance.choice(valid)
        for _ in range(chance.randint(1, 4)):
            content = chance.choice(CHANGES)(chance, content, [*words, *NUMBERS])
        yield content


def spoilt_headers(seed: int, number: int, valid: Sequence[bytes], words: Sequence[str]) -> Iterator[bytes]:
    """Files of safetensors whose header says, in good JSON, something that is not so; most are laid out right."""
    chance = random.Random(seed)
    for _ in range(number):
        content = chance.choice(valid)
        (length,) = struct.unpack("<Q", content[:8])
        header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
        for _ in range(chance.randint(1, 3)):
            _change_entry(chance, header, words)
        if chance.random() < 0.9:
            data = _laid_out(header, data)
        text = json.dumps(header).encode()
        claimed = chance.choice([len(text)] * 19 + [10**11])
        yield struct.pack("<Q", claimed) + text + data


def _change_entry(chance: random.Random, header: dict, words: Sequence[str]) -> None:
    key = chance.choice(list(header) or [""])
    entry = header.get(key)
    match chance.randrange(7):
        case 0:
            header.pop(key, None)
        case 1:
            header[chance.choice(words)] = header.pop(key, None)
        case 2:
            header[key + chance.choice(words)] = entry
        case 3 if isinstance(entry, dict) and "shape" in entry:
            entry["shape"] = [chance.choice([0, 1, 1, 2, 3, 8]) for _ in range(chance.randrange(5))]
        case 4 if isinstance(entry, dict) and "dtype" in entry:
            entry["dtype"] = chance.choice(list(SIZES))
        case 5 if isinstance(entry, dict) and entry:
            odd = [None, 0, "", [], {}, "F32", [1, 2], [1 << 62, 1 << 62], "{}", "[1]"]
            entry[chance.choice(list(entry))] = chance.choice(odd)
        case _:
            header["__metadata__"] = chance.choice(CONFIGURATIONS)


def _laid_out(header: dict, data: bytes) -> bytes:
    """Give each tensor its place, as its shape and numbers need it, where these make sense."""
    end = 0
    for key, entry in header.items():
        if key == "__metadata__" or not isinstance(entry, dict):
            continue
        try:
            begin, end = end, end + SIZES[entry["dtype"]] * prod(entry["shape"])
        except (KeyError, TypeError):
            continue
        if end > 1 << 20:
            return data
        header[key] = entry | {"data_offsets": [begin, end]}
    return (data * (end // max(1, len(data)) + 1))[:end]


SIZES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I32": 4, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "I64": 8, "C64": 8}


def _place(chance: random.Random, content: bytes) -> int:
    return chance.randrange(len(content) + 1)


def _flip(chance: random.Random, content: bytes, words: Sequence[bytes]) -> bytes:
    changed = bytearray(content)
    if changed:
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(chance: random.Random, content: bytes, words: Sequence[bytes]) -> bytes:
    return content[: _place(chance, content)]


def _remove(chance: random.Random, content: bytes, words: Sequence[bytes]) -> bytes:
    begin, end = sorted((_place(chance, content), _place(chance, content)))
    return content[:begin] + content[min(end, begin + 40) :]


def _repeat(chance: random.Random, content: bytes, words: Sequence[bytes]) -> bytes:
    begin = _place(chance, content)
    part = content[begin : begin + chance.randrange(60)]
    return content[:begin] + part * chance.choice([2, 2, 2, 20]) + content[begin + len(part) :]


def _insert(chance: random.Random, content: bytes, words: Sequence[bytes]) -> bytes:
    place = _place(chance, content)
    return content[:place] + chance.choice(words) + content[place:]


def _exchange(chance: random.Random, content: bytes, words: Sequence[bytes]) -> bytes:
    word = chance.choice(words)
    found = content.find(word)
    if found < 0:
        return _insert(chance, content, words)
    return content[:found] + chance.choice(words) + content[found + len(word) :]


def _lines(chance: random.Random, content: bytes, words: Sequence[bytes]) -> bytes:
    lines = content.splitlines(keepends=True)
    chosen = chance.randrange(max(1, len(lines)))
    match chance.randrange(4):
        case 0:
            del lines[chosen : chosen + 1]
        case 1:
            lines[chosen:chosen] = lines[chosen : chosen + 1]
        case 2:
            lines[chosen : chosen + 2] = lines[chosen : chosen + 2][::-1]
        case 3:
            lines[chosen : chosen + 1] = [b"  " + line for line in lines[chosen : chosen + 1]]
    return b"".join(lines)


CHANGES: list[Callable[[random.Random, bytes, Sequence[bytes]], bytes]] = [
    _flip, _flip, _cut, _remove, _repeat, _insert, _insert, _exchange, _lines,
]  # fmt: skip
