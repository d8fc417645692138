"""Pictures on disk and as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from lorarar.errors import UserError
from lorarar.files import atomic

if TYPE_CHECKING:
    from torch import Tensor

Picture = npt.NDArray[np.uint8]
"""(height, width, 3), RGB, 0 to 255."""


LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini"}
CAPTIONS = {".txt", ".caption"}
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Colour space of a profile -> mode of the pictures that it describes."""


def files(folder: Path) -> list[Path]:
    """Lists the files of a folder of pictures by name, without captions, hidden files and what Windows leaves there."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and not path.name.startswith(".")
        and path.name.lower() not in LITTER
        and path.suffix.lower() not in CAPTIONS
    )


def developed(image: Image.Image) -> Image.Image:
    """Turns a photograph upright, converts it to sRGB by its profile, and makes transparent parts white.

    Raises
    ------
    ValueError : more than 8 bits a channel, or the profile is damaged or belongs to pictures of another kind.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError("more than 8 bits a channel; save it with 8")
    upright = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    colours = _srgb(upright, profile) if profile else upright.convert("RGB")
    if not upright.has_transparency_data:
        return colours
    flat = Image.new("RGB", upright.size, "white")
    flat.paste(colours, mask=upright.convert("RGBA").getchannel("A"))
    return flat


def _srgb(image: Image.Image, content: bytes) -> Image.Image:
    """Converts the colours of an image from a profile; transparency is left out."""
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(content))
        if ImageCms.getProfileDescription(profile).startswith("sRGB"):
            return image.convert("RGB")  # to the bit
        mode = SPACES[profile.profile.xcolor_space.strip()]
        if mode != "RGB" and image.mode != mode and (mode, image.mode) != ("L", "LA"):
            raise ValueError(f"a profile of {mode} in a picture of {image.mode}")
        target = ImageCms.createProfile("sRGB")
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        converted = ImageCms.profileToProfile(image.convert(mode), profile, target, intent, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"its colour profile cannot be used ({error}); save it as sRGB") from None
    assert converted is not None
    return converted


def unread(path: Path) -> str:
    """Tells what to do about a picture file that Pillow does not know; empty if nothing is known about it."""
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf"):
        return "HEIC, as iPhones take it, which cannot be read; save it as JPEG"
    return ""


def read(path: Path | str) -> Picture:
    """Read one picture.

    Raises
    ------
    UserError
        The file is missing, or no whole picture.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such picture; delete its folder and run `dvc repro` again") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable picture ({error}); delete it and run `dvc repro` again") from None


def read_all(folder: Path | str) -> list[Picture]:
    """Read the pictures `00.png`, `01.png` and so on of a folder.

    Raises
    ------
    UserError
        There is none, one before the last is missing, or one cannot be read.
    """
    number = len(list(Path(folder).glob("*.png")))
    return [read(Path(folder) / f"{index:02}.png") for index in range(max(number, 1))]


def write(path: Path | str, picture: Picture) -> None:
    """Write a PNG, whole or not at all; equal pictures make equal bytes."""
    with atomic(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def as_tensor(pictures: Sequence[Picture] | np.ndarray) -> Tensor:
    """Converts pictures (N, H, W, 3) of one size to float32 (N, 3, H, W) in [-1, 1]."""
    import torch

    stacked = np.ascontiguousarray(np.stack(list(pictures)))
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1
