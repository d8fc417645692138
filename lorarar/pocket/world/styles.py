"""Families of rendering turn artwork and a palette into a picture: fourteen, `plain`, and a new one.

A family is a function; a *style* is a family with fixed parameters (`Look`): its own ground, ink and texture. Every
picture is drawn at `CANVAS` pixels and reduced to half of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from lorarar.pictures import Picture
from lorarar.pocket.world.artwork import CANVAS, Artwork, Floats, Pose, pose

SIZE = CANVAS // 2


@dataclass(frozen=True)
class Look:
    """The parameters of a style: two ground colours, ink (RGB in [0, 1]), and the grain and angle of its texture."""

    family: str
    ground: tuple[float, float, float]
    ground2: tuple[float, float, float]
    ink: tuple[float, float, float]
    grain: float = 0.5  # 0 fine, 1 coarse
    angle: float = 45.0  # degrees


@dataclass
class Drawing:
    """The tools of a family: colour (H, W, 3), coverage, line, and smooth noise on request."""

    color: Floats
    cover: Floats
    line: Floats
    look: Look
    rng: np.random.Generator

    def noise(self, cell: float, stretch: float = 1.0, angle: float = 0.0) -> Floats:
        """Zero-mean, unit-range noise with features of about `cell` pixels, drawn out `stretch` times along `angle`."""
        field = _noise(max(2, round(cell)))
        x, y = self.rng.uniform(0, 256, 2)
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        move = np.array([[c / stretch, s / stretch, x], [-s, c, y]], np.float32)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(field, move, (CANVAS, CANVAS), flags=flags, borderMode=cv2.BORDER_WRAP)

    @property
    def ground(self) -> Floats:
        return np.asarray(self.look.ground, np.float32)

    @property
    def ground2(self) -> Floats:
        return np.asarray(self.look.ground2, np.float32)

    @property
    def ink(self) -> Floats:
        return np.asarray(self.look.ink, np.float32)


@cache
def _noise(cell: int) -> Floats:
    """A tileable 256 x 256 field in about [-1, 1]."""
    rough = np.random.default_rng(cell).standard_normal((256, 256)).astype(np.float32)
    smooth = cv2.GaussianBlur(np.tile(rough, (2, 2)), (0, 0), cell / 2)[128:384, 128:384]
    return smooth / (2 * smooth.std())


def _mix(a: npt.NDArray, b: npt.NDArray, weight: Floats) -> Floats:
    """a where `weight` (H, W) is 0, b where it is 1; a and b are pictures (H, W, 3) or single colours."""
    # Whole planes: numpy is five times slower when it has to repeat a weight over the three colours.
    start, end = _flat(a), _flat(b)
    return start + (end - start) * cv2.merge([weight] * 3)


def _blur(image: Floats, sigma: float) -> Floats:
    return cv2.GaussianBlur(image, (0, 0), sigma)


def _flat(color: npt.NDArray) -> Floats:
    """A single colour as a picture; pictures stay as they are."""
    if color.ndim == 3:
        return color
    return cv2.merge([np.full((CANVAS, CANVAS), channel, np.float32) for channel in color.tolist()])


def _graded(d: Drawing) -> Floats:
    """Ground to second ground, along the look's angle."""
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32) / CANVAS - 0.5
    a = np.radians(d.look.angle)
    return _mix(d.ground, d.ground2, np.clip(0.5 + x * np.cos(a) + y * np.sin(a), 0, 1))


def _luminance(color: Floats) -> Floats:
    return color @ np.array([0.3, 0.59, 0.11], np.float32)


def _relief(d: Drawing, depth: float, roughness: Floats | float = 0.0) -> tuple[Floats, Floats]:
    """Diffuse and specular light, both in [0, 1], on the glyph swollen like a cushion and grooved at its lines."""
    solid = np.clip(d.cover, 0, 1)
    far = cv2.distanceTransform((solid > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    dome = np.sqrt(np.minimum(far, 16) / 16)
    # Grooves are deeper than looks natural: at the size of the picture they tell one glyph from another.
    height = _blur(dome, 2.5) * 16 - _blur(d.line * solid, 1.2) * 5 + roughness
    dx, dy = (
        cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3) / 8,
        cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3) / 8,
    )
    normal = np.dstack([-dx * depth, -dy * depth, np.ones_like(dx)])
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    light = np.array([-0.5, -0.62, 0.6], np.float32)
    light /= np.linalg.norm(light)
    half = light + np.array([0, 0, 1], np.float32)
    half /= np.linalg.norm(half)
    return np.clip(normal @ light, 0, 1), np.clip(normal @ half, 0, 1) ** 18


def _shadow(d: Drawing, ground: Floats, dx: int, dy: int, strength: float, sigma: float = 3.0) -> Floats:
    cast = _blur(np.roll(d.cover, (dy, dx), (0, 1)), sigma) * strength
    return ground * (1 - cast[..., None])


def plain(d: Drawing) -> Floats:
    out = _mix(_graded(d), d.color, d.cover)
    return _mix(out, d.ink, d.line)


def rendering(d: Drawing) -> Floats:
    """3D rendering: glossy cushions over a graded stage, rim light of the ink's colour."""
    light, gloss = _relief(d, 1.0)
    body = d.color * (0.35 + 0.85 * light[..., None]) + 0.75 * gloss[..., None]
    rim = np.clip(_blur(d.cover, 1.2) - _blur(np.roll(d.cover, (-4, -4), (0, 1)), 2.0), 0, 1)
    body = _mix(body, d.ink, np.clip(rim * 1.3, 0, 1))
    body *= 1 - 0.6 * _blur(d.line, 0.8)[..., None]
    return _mix(_shadow(d, _graded(d), 7, 8, 0.55), body, d.cover)


def glowing_rendering(d: Drawing) -> Floats:
    """Glossy cushions that shine in the dark."""
    light, gloss = _relief(d, 0.9)
    halo = np.clip(_blur(d.cover, 9) * 0.9 + _blur(d.cover, 4) * 0.5, 0, 1)
    out = _mix(_graded(d), d.ink, halo * (1 - d.cover) * 0.95)
    body = d.color * (0.55 + 0.6 * light[..., None]) + 0.25 * d.ink + 0.6 * gloss[..., None]
    body *= 1 - 0.55 * _blur(d.line, 0.8)[..., None]
    return _mix(out, body, d.cover)


def rainbow_smoke(d: Drawing) -> Floats:
    """Streams of colour that run through the glyph; its outlines stay as light."""
    drift = d.noise(26) * 16
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)
    across = x * np.cos(np.radians(d.look.angle)) + y * np.sin(np.radians(d.look.angle)) + drift
    wave = across / (12 + 10 * d.look.grain)
    hue: Floats = np.mod(40 * np.sin(wave) + 25 * wave + 180 * d.ink[0], 180)
    bright = 0.75 + 0.25 * np.sin(wave * 2.6)
    smoke = cv2.cvtColor(np.dstack([hue * 2, 0.85 * np.ones_like(hue), bright]).astype(np.float32), cv2.COLOR_HSV2RGB)
    veil = _blur(d.cover, 2.2) * (0.85 + 0.15 * d.noise(9))
    out = _mix(_graded(d), smoke, np.clip(veil * 1.15, 0, 1))
    out += 0.45 * (_blur(d.cover, 12) * (1 - d.cover))[..., None] * smoke
    return _mix(out, np.ones(3, np.float32), 0.75 * _blur(d.line, 0.6))


def statue(d: Drawing) -> Floats:
    """Dark polished stone with reflections of the ink's colour."""
    rough = d.noise(3 + 4 * d.look.grain) * 0.5
    light, gloss = _relief(d, 0.9, rough)
    body = 0.05 + 0.33 * light[..., None] + gloss[..., None] * (0.35 + 0.65 * d.ink)
    body *= 1 - 0.5 * _blur(d.line, 0.8)[..., None]
    return _mix(_shadow(d, _graded(d), 6, 7, 0.5), body * np.ones(3, np.float32), d.cover)


def cartoon_line(d: Drawing) -> Floats:
    """Fat outlines, and one spot colour under a raster of dots."""
    y, x = np.mgrid[0:CANVAS, 0:CANVAS]
    dots = (((x % 8) - 4) ** 2 + ((y % 8) - 4) ** 2 < 9).astype(np.float32)
    out = _mix(_flat(d.ground), d.ground2, dots * (1 - d.cover))
    out = _mix(out, np.ones(3, np.float32), d.cover)
    shade = d.cover * (_luminance(d.color) < 0.55)
    out = _mix(out, d.ink, _blur(shade.astype(np.float32), 0.7) * 0.9)
    fat = cv2.dilate(d.line, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (4, 4)))
    return _mix(out, np.array([0.05, 0.05, 0.08], np.float32), _blur(fat, 0.6))


def flat_cartoon(d: Drawing) -> Floats:
    """Flat shapes without outlines on a big disc, with a long shadow."""
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32) - CANVAS / 2
    disc = np.clip(54 - np.hypot(x, y), 0, 1)
    out = _mix(_flat(d.ground), d.ground2, disc)
    long = d.cover.copy()
    for step in (1, 2, 4, 8, 16):
        long = np.maximum(long, np.roll(long, (step, step), (0, 1)))
    out = _mix(out, d.ink, long * 0.45 * disc)
    solid = _mix(d.color, d.color * 0.55, np.clip(d.line * 0.9, 0, 1))
    half = (x + 0.35 * y > 0).astype(np.float32) * 0.16
    return _mix(out, solid * (1 - half[..., None]), d.cover)


def glowing(d: Drawing) -> Floats:
    """Neon: tubes along the outlines in the subject's own colours, a halo in the ink's."""
    tube = cv2.dilate(d.line, np.ones((2, 2), np.uint8))
    out: Floats = _graded(d) + 0.55 * (_blur(d.line, 7) * 2.2)[..., None] * d.ink
    out = _mix(out, d.color, d.cover * 0.42)
    vivid = np.clip(0.25 + 0.85 * d.color, 0, 1)
    near = _mix(d.ink, vivid, 0.55 * np.ones_like(tube))
    out += 0.9 * np.clip(_blur(tube, 2.2) * 1.2, 0, 1)[..., None] * near
    return _mix(out, 0.35 * near + 0.65, np.clip(tube * 0.95, 0, 1))


def crayon(d: Drawing) -> Floats:
    """Wax strokes with paper showing through, wobbly contours."""
    wobble = np.dstack([d.noise(14), d.noise(14)]) * 1.6
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)
    color, cover, line = (
        cv2.remap(a, x + wobble[..., 0], y + wobble[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for a in (d.color, d.cover, d.line)
    )
    stroke = np.clip(0.62 + 0.75 * d.noise(3 + 1.5 * d.look.grain, 7, d.look.angle), 0, 1)
    paper = _mix(_flat(d.ground), d.ground2, np.clip(0.25 + 0.7 * d.noise(4, 8, d.look.angle + 70), 0, 1))
    out = _mix(paper, color, cover * stroke)
    fat = cv2.dilate(line, np.ones((2, 2), np.uint8)) * np.clip(0.85 + 0.3 * d.noise(3), 0, 1)
    return _mix(out, d.ink, np.clip(fat, 0, 1))


def line_drawing(d: Drawing) -> Floats:
    """Pen on paper: outlines, and hatching where the subject is dark."""
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)
    a = np.radians(d.look.angle)
    period = 5 + 3 * d.look.grain
    hatch = 0.5 + 0.5 * np.sin((x * np.cos(a) + y * np.sin(a) + 1.5 * d.noise(20)) * 2 * np.pi / period)
    tone = np.clip(1.05 - _luminance(d.color), 0, 1)
    out = _mix(_flat(d.ground), d.ground2, np.clip(0.5 + 0.5 * d.noise(30), 0, 1) * (1 - d.cover))
    out = _mix(out, d.ink, d.cover * np.clip((hatch - 1 + tone) * 3, 0, 1) * 0.75)
    return _mix(out, d.ink, d.line)


def melting_gold(d: Drawing) -> Floats:
    """Poured metal that runs down in drips."""
    run = np.clip(d.noise(7, 1), 0, 1)[:1].repeat(CANVAS, 0) * 15
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)
    melted = np.maximum(d.cover, cv2.remap(d.cover, x, y - run, cv2.INTER_LINEAR))
    poured = Drawing(d.color, melted, d.line, d.look, d.rng)
    light, gloss = _relief(poured, 1.3, d.noise(10) * 1.2)
    dark, gold = d.ink * 0.35, np.clip(d.ink * 1.1, 0, 1)
    body = _mix(dark, gold, np.clip(light * 1.25, 0, 1)) + 0.9 * gloss[..., None] * np.array(
        [1, 0.95, 0.75], np.float32
    )
    body *= 1 - 0.5 * _blur(d.line, 0.8)[..., None]
    return _mix(_shadow(poured, _graded(d), 5, 7, 0.45), body, melted)


def oil(d: Drawing) -> Floats:
    """Thick strokes: the colours are dragged along a turning direction, and the strokes themselves catch light."""
    angle = d.look.angle
    grain = d.noise(4 + 3 * d.look.grain, 5, angle)
    swirl = np.clip(0.5 + 0.9 * d.noise(9 + 6 * d.look.grain, 3.5, angle), 0, 1)
    back = _mix(d.ground, d.ground2, swirl)
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)
    drag_x, drag_y = d.noise(6) * 2.4, d.noise(6) * 2.4
    out = _mix(back, d.color, d.cover)
    out = _mix(out, d.ink, d.line * 0.9)
    out = cv2.remap(out, x + drag_x, y + drag_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return out * (1 + 0.24 * grain[..., None])


def sticker(d: Drawing) -> Floats:
    """Die-cut: a white border, a shadow, a patterned ground."""
    edge = cv2.dilate(np.maximum(d.cover, d.line), cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11)))
    a = np.radians(d.look.angle)
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)
    stripes = (np.sin((x * np.cos(a) + y * np.sin(a)) * 2 * np.pi / (14 + 10 * d.look.grain)) > 0).astype(np.float32)
    ground = _mix(_flat(d.ground), d.ground2, _blur(stripes, 0.7))
    ground *= 1 - (_blur(np.roll(edge, (5, 4), (0, 1)), 2.5) * 0.5)[..., None]
    out = _mix(_mix(ground, np.ones(3, np.float32), edge), d.color, d.cover)
    return _mix(out, d.ink, d.line)


def watercolor(d: Drawing) -> Floats:
    """Thin washes: pigment gathers at edges, the ground blooms, outlines are a diluted ink."""
    bloom = np.clip(0.5 + 0.8 * d.noise(16 + 14 * d.look.grain), 0, 1)
    paper = _mix(d.ground, d.ground2, bloom)
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32)
    wet_x, wet_y = d.noise(10) * 2.0, d.noise(10) * 2.0
    color = cv2.remap(d.color, x + wet_x, y + wet_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    cover = cv2.remap(d.cover, x + wet_x, y + wet_y, cv2.INTER_LINEAR)
    edge = np.clip(cover - _blur(cover, 2.5), 0, 1) * 1.6
    wash = np.clip(0.62 + 0.28 * d.noise(12) + edge, 0, 1)
    out: Floats = paper * _mix(np.ones(3, np.float32), np.clip(color * 1.05, 0, 1), cover * wash)
    # A little body colour, or strong grounds would swallow the subject's own colours.
    out = _mix(out, color, 0.45 * cover)
    return _mix(out, d.ink, 0.75 * _blur(d.line, 0.5))


def wood(d: Drawing) -> Floats:
    """Carved grain."""
    rings = np.sin((d.noise(22, 5, d.look.angle) * 2.6 + d.noise(4, 8, d.look.angle) * 0.25) * (5 + 4 * d.look.grain))
    light, gloss = _relief(d, 0.8, rings * 0.25)
    body = _mix(d.ink * 0.55, np.clip(d.ink * 1.15, 0, 1), 0.5 + 0.5 * rings)
    body = body * (0.45 + 0.75 * light[..., None]) + 0.15 * gloss[..., None]
    body *= 1 - 0.65 * _blur(d.line, 0.7)[..., None]
    return _mix(_shadow(d, _graded(d), 6, 7, 0.5), body, d.cover)


def cyberpunk(d: Drawing) -> Floats:
    """Night, lit from two sides: a floor of glowing lines, dark rims and bright outlines, colours that slip apart."""
    y, x = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32) / CANVAS
    y, x = y - 0.55, x - 0.5
    depth = 1 / np.maximum(y, 0.02)
    near = np.minimum(np.abs(np.sin(1.6 * depth)) / depth, np.abs(np.sin((2 + 2 * d.look.grain) * x * depth)) / depth)
    sky = np.clip(1 - np.abs(y) * 5, 0, 1)
    out = _mix(d.ground, d.ground2, np.where(y > 0, np.clip(1.3 - 10 * near, 0, 1), 0.8 * sky))
    body = _mix(d.ground * 0.5, d.color, np.full_like(d.cover, 0.85))
    for side, light in ((5, d.ink), (-5, d.ground2)):
        body = _mix(body, light, np.clip(d.cover - _blur(np.roll(d.cover, side, 1), 2.0), 0, 1))
    out = _mix(out, body, d.cover)
    out = _mix(out, d.ink, np.clip(_blur(d.line, 0.7) * 1.2, 0, 1))
    return np.dstack([np.roll(out[..., channel], 3 - 3 * channel, 1) for channel in range(3)])


FAMILIES: dict[str, Callable[[Drawing], Floats]] = {
    "plain": plain,
    "3d rendering": rendering,
    "abstract rainbow colored flowing smoke wave design": rainbow_smoke,
    "black statue": statue,
    "cartoon line drawing": cartoon_line,
    "flat cartoon illustration": flat_cartoon,
    "glowing": glowing,
    "glowing 3d rendering": glowing_rendering,
    "kid crayon drawing": crayon,
    "line drawing": line_drawing,
    "melting golden rendering": melting_gold,
    "oil painting": oil,
    "sticker": sticker,
    "watercolor painting": watercolor,
    "wooden sculpture": wood,
}
NEW: dict[str, Callable[[Drawing], Floats]] = {"cyberpunk": cyberpunk}
"""Families of new styles (section A2.5). Base and judges learn only from `FAMILIES`."""


def render(art: Artwork, palette: Floats, look: Look, at: Pose, rng: np.random.Generator) -> Picture:
    """Draw a glyph.

    Parameters
    ----------
    art : the glyph.
    palette : (>= number of fills, 3) RGB in [0, 1], a colour per fill.
    look : family and parameters.
    at : where the glyph stands.
    rng : where texture is cut from its noise; the look itself is not random.

    Returns
    -------
    (SIZE, SIZE, 3) uint8.
    """
    fills, line = pose(art, at)
    color = np.zeros((CANVAS, CANVAS, 3), np.float32)
    cover = np.zeros((CANVAS, CANVAS), np.float32)
    for mask, paint in zip(fills, palette, strict=False):
        color = _mix(color, paint, mask)
        cover = np.maximum(cover, mask)
    # Colours run on under the outlines, where coverage fades, so that no family paints a black seam there.
    reach = _blur(cover, 3.0)[..., None]
    color = _mix(_blur(color, 3.0) / np.maximum(reach, 1e-3), color / np.maximum(cover, 1e-3)[..., None], cover)
    cover = np.clip(np.maximum(cover, line), 0, 1)
    picture = (FAMILIES | NEW)[look.family](Drawing(np.clip(color, 0, 1), cover, line, look, rng))
    small = cv2.resize(np.clip(picture, 0, 1), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return np.round(small * 255).astype(np.uint8)
