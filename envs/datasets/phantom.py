"""Procedural radiograph- and lesion-like phantoms with known identities.

Every image is a pure function of ``(seed, kind, site, identity, view)``. An identity ("patient") fixes the anatomy:
geometry, texture and finding; a view changes only what a second acquisition of the same patient changes: position,
exposure and detector noise. So the truth about who is who is known exactly, for any number of images and without a
download.

Two *sites* exist because a base model that was pretrained on exactly the private distribution has nothing to learn
from it: ``public`` is what the embedded backbone is pretrained on, ``clinic`` shifts anatomy, exposure and
accessories the way a children's ward or another dermatoscope does. No image of ``clinic`` is used in pretraining.

Coordinates: x to the right, y down, both in [-1, 1] over the square image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Kind = Literal["radiograph", "lesion"]
Site = Literal["public", "clinic"]
Array = NDArray[np.floating[Any]]

KINDS: tuple[Kind, ...] = ("radiograph", "lesion")
SITES: tuple[Site, ...] = ("public", "clinic")
FINDINGS: dict[Kind, tuple[str, ...]] = {
    "radiograph": ("no finding", "nodule", "effusion", "consolidation"),
    "lesion": ("nevus", "melanoma", "seborrheic keratosis"),
}
_TEXTURES = 3
_HAIRS = 10

# name: (low, high) at site "public", optionally followed by (low, high) at site "clinic".
_Range = tuple[float, float]
_RADIOGRAPH: dict[str, tuple[_Range, ...]] = {
    "chest_width": ((0.70, 0.92), (0.55, 0.72)),
    "chest_top": ((-0.95, -0.75), (-0.80, -0.60)),
    "shoulder": ((0.10, 0.35), (0.0, 0.15)),
    "lung_width": ((0.24, 0.34), (0.19, 0.26)),
    "lung_height": ((0.55, 0.72), (0.48, 0.60)),
    "lung_gap": ((0.34, 0.42), (0.26, 0.33)),
    "lung_y": ((-0.18, 0.02), (-0.12, 0.05)),
    "lung_dark": ((0.22, 0.42), (0.30, 0.50)),
    "asymmetry": ((-0.06, 0.06),),
    "heart_x": ((0.05, 0.20), (0.02, 0.12)),
    "heart_y": ((0.18, 0.32), (0.12, 0.24)),
    "heart_w": ((0.20, 0.36), (0.20, 0.30)),
    "heart_h": ((0.22, 0.34), (0.20, 0.28)),
    "heart_tilt": ((-0.5, 0.1),),
    "dome": ((0.42, 0.62), (0.36, 0.52)),
    "dome_lift": ((-0.10, 0.10),),
    "rib_count": ((6.0, 9.0), (7.5, 10.0)),
    "rib_slope": ((0.10, 0.40), (0.30, 0.60)),
    "rib_bend": ((0.2, 0.7),),
    "rib_light": ((0.04, 0.13), (0.10, 0.20)),
    "rib_phase": ((0.0, 1.0),),
    "spine_width": ((0.07, 0.12), (0.06, 0.09)),
    "spine_light": ((0.03, 0.14), (0.10, 0.22)),
    "spine_curve": ((-0.06, 0.06), (-0.10, 0.10)),
    "clavicle_y": ((-0.72, -0.58), (-0.66, -0.50)),
    "clavicle_slope": ((-0.25, 0.10),),
    "clavicle_light": ((0.05, 0.14),),
    "tissue": ((0.62, 0.88), (0.50, 0.72)),
    "air": ((0.02, 0.20), (0.02, 0.10)),
    "markings": ((0.015, 0.05), (0.025, 0.075)),
    "device": ((0.0, 1.0),),
    "device_x": ((-0.5, 0.5),),
    "finding_x": ((-1.0, 1.0),),
    "finding_y": ((-0.6, 0.6),),
    "finding_size": ((0.06, 0.20),),
    "finding_light": ((0.15, 0.35),),
}
_LESION: dict[str, tuple[_Range, ...]] = {
    "skin_hue": ((0.0, 1.0), (0.35, 1.0)),
    "skin_light": ((0.62, 0.92), (0.55, 0.80)),
    "skin_cast": ((-0.10, 0.10), (-0.22, 0.05)),
    "shade_angle": ((0.0, 2 * np.pi),),
    "shade": ((0.0, 0.18),),
    "mottle": ((0.01, 0.05),),
    "centre_x": ((-0.25, 0.25),),
    "centre_y": ((-0.25, 0.25),),
    "radius": ((0.25, 0.60), (0.20, 0.50)),
    "aspect": ((0.75, 1.30),),
    "edge": ((0.03, 0.16), (0.02, 0.10)),
    "dark": ((0.35, 0.75), (0.50, 0.90)),
    "pigment": ((0.0, 1.0),),
    "patch": ((0.1, 0.5),),
    "network": ((0.0, 0.12),),
    "halo": ((0.0, 0.15),),
    "vignette": ((0.0, 1.0), (0.5, 1.0)),
    "vignette_r": ((0.95, 1.25), (0.90, 1.10)),
    "vignette_light": ((0.0, 1.0),),
    "hair": ((0.0, 1.0), (0.3, 1.0)),
    "hair_dark": ((0.15, 0.6),),
    "ruler": ((0.0, 1.0),),
    "gloss": ((0.0, 1.0),),
    "sticker": ((0.0, 1.0),),
} | {f"lobe_{k}": ((0.0, 1.0),) for k in range(12)}


@dataclass(frozen=True)
class PhantomImages:
    """Phantoms and the truth about them; row i of every field belongs to image i.

    Attributes:
        images: uint8, ``(n, size, size, 3)``.
        captions: One sentence an image.
        labels: Index into ``FINDINGS[kind]``, int64 ``(n,)``.
        groups: The identity's name, equal exactly for views of one identity.
    """

    images: NDArray[np.uint8]
    captions: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: tuple[str, ...]


def render(
    kind: Kind,
    identities: Sequence[int],
    *,
    seed: int,
    site: Site = "clinic",
    views: Sequence[int] | None = None,
    size: int = 64,
) -> PhantomImages:
    """Draw one image for each entry of ``identities``.

    Args:
        kind: What to draw.
        identities: Non-negative identity numbers; repeat one and vary ``views`` for more images of it.
        seed: Names the population: identity 3 of seed 0 and of seed 1 are different people.
        site: Where the images come from, see the module's text.
        views: View numbers, as long as ``identities``; all 0 by default.
        size: Height and width in pixels, at least 16.

    Raises:
        ValueError: If an argument is outside the ranges above.
    """
    if kind not in KINDS or site not in SITES:
        raise ValueError(f"no phantom of kind {kind!r} at site {site!r}: kinds are {KINDS}, sites {SITES}")
    if size < 16 or seed < 0 or any(i < 0 for i in identities):
        raise ValueError(f"phantoms need size >= 16 and non-negative seed and identities, got size={size} seed={seed}")
    views = [0] * len(identities) if views is None else views
    if len(views) != len(identities):
        raise ValueError(f"{len(views)} views for {len(identities)} identities")
    spec = _RADIOGRAPH if kind == "radiograph" else _LESION
    where = (KINDS.index(kind), SITES.index(site))
    low, high = np.array([r[min(where[1], len(r) - 1)] for r in spec.values()], dtype=np.float64).T

    n = len(identities)
    uniforms = np.empty((n, len(spec)))
    labels = np.empty(n, dtype=np.int64)
    fields = np.empty((n, _TEXTURES, size, size), dtype=np.float32)
    hairs = np.empty((n, _HAIRS, 6), dtype=np.float32)
    jitter = np.empty((n, 6), dtype=np.float32)
    grain = np.empty((n, size, size, 1), dtype=np.float32)
    for row, (identity, view) in enumerate(zip(identities, views, strict=True)):
        rng = np.random.default_rng([seed, *where, identity])
        uniforms[row] = rng.random(len(spec))
        labels[row] = rng.integers(len(FINDINGS[kind]))
        fields[row] = rng.standard_normal((_TEXTURES, size, size))
        hairs[row] = rng.random((_HAIRS, 6))
        rng = np.random.default_rng([seed, *where, identity, 1 + view])
        jitter[row] = rng.uniform(-1, 1, 6)
        grain[row] = rng.standard_normal((size, size, 1))
    values = low + (high - low) * uniforms
    scene = _Scene(dict(zip(spec, values.T.astype(np.float32), strict=True)), size, labels, _coloured(fields), hairs)
    scene.place(jitter)
    colour = _radiograph(scene) if kind == "radiograph" else _lesion(scene)
    exposure = 1 + 0.06 * jitter[:, 4]
    colour = (colour - 0.5) * exposure[:, None, None, None] + 0.5 + 0.03 * jitter[:, 5, None, None, None]
    colour = colour + 0.012 * grain
    images = (np.clip(colour, 0, 1) * 255 + 0.5).astype(np.uint8)
    names = FINDINGS[kind]
    where_from = {"public": "", "clinic": "pediatric " if kind == "radiograph" else "polarized "}[site]
    what = "chest radiograph phantom" if kind == "radiograph" else "dermoscopy phantom of a"
    captions = tuple(f"{where_from}{what}{', ' if kind == 'radiograph' else ' '}{names[k]}" for k in labels)
    return PhantomImages(images, captions, labels, tuple(f"{kind}-{site}-{seed}-{i}" for i in identities))


class _Scene:
    """A batch of parameter sets and the pixel grid they are drawn on; arrays broadcast to ``(n, size, size)``."""

    def __init__(self, values: dict[str, Array], size: int, labels: NDArray[np.int64], fields: Array, hairs: Array):
        self.values, self.labels, self.fields, self.hairs = values, labels, fields, hairs
        axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
        self.frame_x, self.frame_y = axis[None, None, :], axis[None, :, None]
        self.x, self.y = self.frame_x, self.frame_y

    def place(self, jitter: Array) -> None:
        """Moves, turns and scales the patient: the part of a view that is geometry."""
        angle, zoom = 0.05 * jitter[:, 0, None, None], 1 + 0.05 * jitter[:, 1, None, None]
        x, y = self.frame_x + 0.06 * jitter[:, 2, None, None], self.frame_y + 0.06 * jitter[:, 3, None, None]
        self.x = (np.cos(angle) * x - np.sin(angle) * y) * zoom
        self.y = (np.sin(angle) * x + np.cos(angle) * y) * zoom

    def __getattr__(self, name: str) -> Array:
        try:
            return self.values[name][:, None, None]
        except KeyError:
            raise AttributeError(name) from None

    def is_a(self, kind: Kind, finding: str) -> Array:
        """1 for the images whose finding it is, 0 for the others."""
        return np.asarray(self.labels == FINDINGS[kind].index(finding), dtype=np.float32)[:, None, None]


def _coloured(white: Array) -> Array:
    """White noise to fields of spectrum 1/f, 1/f^1.5 and band-passed, each of mean 0 and standard deviation 1."""
    size = white.shape[-1]
    f = np.hypot(*np.meshgrid(fft.fftfreq(size) * size, fft.rfftfreq(size) * size, indexing="ij"))
    f[0, 0] = np.inf
    filters = np.stack([1 / f, 1 / f**1.5, np.exp(-(((f - size / 8) / (size / 16)) ** 2))])
    field = fft.irfft2(fft.rfft2(white) * filters.astype(np.float32), s=(size, size))
    field -= field.mean((-2, -1), keepdims=True)
    return np.asarray(field / field.std((-2, -1), keepdims=True), dtype=np.float32)


def _soft(distance: Array, width: float | Array) -> Array:
    """1 inside (negative distance), 0 outside, a logistic edge of the given width."""
    return np.asarray(1 / (1 + np.exp(np.clip(distance / width, -30, 30))), dtype=np.float32)


def _line(distance: Array, width: float | Array) -> Array:
    return np.asarray(np.exp(-((distance / width) ** 2)), dtype=np.float32)


def _radiograph(s: _Scene) -> Array:
    x, y = s.x, s.y
    half_width = s.chest_width * (0.82 + 0.18 * np.clip(y + 0.6, 0, 1))
    slope = s.shoulder * np.abs(x) / s.chest_width
    shoulder_line = s.chest_top + slope + 0.9 * np.maximum(np.abs(x) - 0.35, 0)
    torso = _soft(np.maximum(np.abs(x) - half_width, shoulder_line - y), 0.05)
    neck = _soft(np.maximum(np.abs(x) - 0.22, y + 0.4), 0.04)
    body = np.maximum(torso, neck)
    image = s.air + (s.tissue - s.air) * body * (0.85 + 0.15 * np.clip(y + 0.5, 0, 1))

    lungs = np.zeros_like(image)
    for side in (-1.0, 1.0):
        centre = side * (s.lung_gap + side * s.asymmetry)
        taper = 1 - 0.30 * np.clip(-(y - s.lung_y) / s.lung_height, 0, 1)
        u, v = (x - centre) / (s.lung_width * taper), (y - s.lung_y) / s.lung_height
        dome = s.dome + side * s.dome_lift * 0.5 + 0.9 * (x - centre) ** 2 - 0.08
        lungs = np.maximum(lungs, _soft(np.maximum((np.abs(u) ** 2.4 + np.abs(v) ** 2.6) - 1, 3 * (y - dome)), 0.10))
    c, n = np.cos(s.heart_tilt), np.sin(s.heart_tilt)
    hx, hy = x - s.heart_x, y - s.heart_y
    heart = _soft(((c * hx + n * hy) / s.heart_w) ** 2 + ((c * hy - n * hx) / s.heart_h) ** 2 - 1, 0.18)
    hilum = _line(np.abs(x) - 0.16, 0.10) * _line(y - s.lung_y - 0.02, 0.22)
    aerated = lungs * (1 - 0.92 * heart)
    image = image - s.lung_dark * aerated
    image = image + 0.10 * hilum * lungs + s.markings * s.fields[:, 0] * (0.35 * body + aerated)

    spine_x = s.spine_curve * np.sin(2.2 * (y + 0.3))
    vertebrae = 1 + 0.25 * np.sin(2 * np.pi * (y * 5.5 + s.rib_phase))
    image = image + s.spine_light * _line(x - spine_x, s.spine_width) * vertebrae * body

    ribs: Array = np.zeros_like(image)
    spacing = 1.7 / s.rib_count
    arc = np.abs(x - spine_x)
    for k in range(11):
        level = -0.85 + (k + s.rib_phase) * spacing
        posterior = level - 0.18 + s.rib_slope * arc + s.rib_bend * arc**2
        anterior = level + 0.30 - 0.55 * arc + 0.5 * s.rib_bend * arc**2
        ribs = ribs + _line(y - posterior, 0.028) + 0.35 * _line(y - anterior, 0.035) * (arc > 0.3)
    image = image + s.rib_light * np.minimum(ribs, 1.4) * (0.25 * torso + 0.75 * lungs)
    for side in (-1.0, 1.0):
        out = side * x
        clavicle = _line(y - s.clavicle_y - s.clavicle_slope * (out - 0.1) - 0.05 * np.sin(4 * out), 0.035)
        image = image + s.clavicle_light * clavicle * _soft(np.abs(out - 0.38) - 0.30, 0.04)

    where = np.sign(s.finding_x)
    fx, fy = where * (s.lung_gap + 0.12 * s.finding_x), s.lung_y + s.finding_y * s.lung_height
    r2 = (x - fx) ** 2 + (y - fy) ** 2
    size = s.finding_size
    image = image + s.is_a("radiograph", "nodule") * s.finding_light * _soft(np.sqrt(r2) - 0.7 * size, 0.02) * lungs
    fluid = _soft(s.lung_y + s.lung_height * (0.75 - 2.5 * size) - 0.4 * np.abs(x - fx) - y, 0.05)
    image = image + s.is_a("radiograph", "effusion") * (s.lung_dark + 0.05) * fluid * lungs * (where * x > 0)
    patch = np.exp(-r2 / (2 * (1.3 * size) ** 2)) * (0.75 + 0.35 * s.fields[:, 1])
    image = image + s.is_a("radiograph", "consolidation") * (s.finding_light + 0.08) * patch * lungs
    wire = _line(x - s.device_x - 0.25 * np.sin(2.5 * y + 6 * s.device_x), 0.014) * _soft(y - 0.35, 0.02)
    image = image + (s.device > 0.85) * 0.25 * wire
    return np.repeat(image[..., None], 3, axis=-1).astype(np.float32)


_PALE, _TAN = np.array([0.98, 0.80, 0.76], np.float32), np.array([0.86, 0.66, 0.50], np.float32)
_PIGMENTS = np.array([[0.40, 0.22, 0.14], [0.22, 0.12, 0.10], [0.56, 0.34, 0.20], [0.34, 0.36, 0.42]], np.float32)


def _lesion(s: _Scene) -> Array:
    x, y = s.x, s.y
    hue = s.skin_hue[..., None]
    skin = (_PALE * (1 - hue) + _TAN * hue) * s.skin_light[..., None]
    skin = skin * (1 + s.skin_cast[..., None] * np.array([1.0, 0.0, -1.0], np.float32))
    shade = 1 + s.shade * (np.cos(s.shade_angle) * s.frame_x + np.sin(s.shade_angle) * s.frame_y)
    image = skin * (shade + s.mottle * s.fields[:, 0])[..., None]

    dx, dy = (x - s.centre_x) * s.aspect, (y - s.centre_y) / s.aspect
    angle, radius = np.arctan2(dy, dx), np.hypot(dx, dy)
    nevus, melanoma, keratosis = (s.is_a("lesion", k) for k in FINDINGS["lesion"])
    ragged = 0.35 * nevus + 1.2 * melanoma + 0.6 * keratosis
    outline: Array = np.ones_like(radius)
    for k in range(6):
        amplitude, phase = getattr(s, f"lobe_{2 * k}"), getattr(s, f"lobe_{2 * k + 1}")
        outline = outline + ragged * 0.28 / (k + 1.5) * (amplitude - 0.3) * np.cos((k + 1) * angle + 2 * np.pi * phase)
    distance = radius - s.radius * outline + 0.05 * ragged * s.fields[:, 1]
    edge = s.edge * (1 + 0.5 * keratosis)
    inside = _soft(distance, edge * 0.5)
    mix = np.clip(s.pigment + s.patch * (0.35 * nevus + 1.4 * melanoma + 0.8 * keratosis) * s.fields[:, 1], 0, 1)
    blue = np.clip(melanoma * (s.fields[:, 1] - 0.9), 0, 1)[..., None]
    brown = _PIGMENTS[0] * (1 - mix[..., None]) + _PIGMENTS[1] * mix[..., None]
    brown = brown * (1 - 0.5 * keratosis[..., None]) + 0.5 * keratosis[..., None] * _PIGMENTS[2]
    brown = brown * (1 - blue) + _PIGMENTS[3] * blue
    depth = s.dark * inside * (0.75 + 0.25 * _soft(distance + 0.6 * s.radius, 0.2)) + 0.25 * inside
    depth = np.clip(depth * (1 + s.network * s.fields[:, 2] + 0.10 * s.fields[:, 0]), 0, 1)
    pores = keratosis * np.clip(s.fields[:, 2] - 1.2, 0, 1) * inside * 0.5
    image = image * (1 - depth[..., None]) + brown * depth[..., None] + pores[..., None] * _PALE
    image = image * (1 - (s.halo * _soft(np.abs(distance - 0.08) - 0.06, 0.05))[..., None])

    for k in range(_HAIRS):
        x0, y0, turn, bend, length, present = (s.hairs[:, k, j, None, None] for j in range(6))
        a = np.pi * turn
        u = np.cos(a) * (x - 2 * x0 + 1) + np.sin(a) * (y - 2 * y0 + 1)
        v = -np.sin(a) * (x - 2 * x0 + 1) + np.cos(a) * (y - 2 * y0 + 1) + 0.5 * (bend - 0.5) * u**2
        strand = _line(v, 0.016) * _soft(np.abs(u) - 0.3 - 0.7 * length, 0.02) * (present < 1.4 * s.hair - 0.7)
        image = image * (1 - s.hair_dark * strand)[..., None]
    ticks = (np.abs(np.mod(s.frame_x * 8, 1) - 0.5) < 0.12) * _soft(np.abs(s.frame_y - 0.85) - 0.06, 0.01)
    image = image * (1 - 0.5 * (s.ruler > 0.85) * ticks)[..., None]
    sticker = _soft(np.hypot(x - 0.75, y + 0.7) - 0.28, 0.01) * (s.sticker > 0.94)
    image = image * (1 - sticker[..., None]) + sticker[..., None] * np.array([0.85, 0.72, 0.12], np.float32)
    gloss = np.clip(s.fields[:, 2] * s.fields[:, 0] - 3.0, 0, 1) * (s.gloss > 0.75)
    image = image + 0.5 * gloss[..., None]
    rim = (1 - _soft(np.hypot(s.frame_x, s.frame_y) - s.vignette_r, 0.02)) * (s.vignette > 0.6)
    border = np.where(s.vignette_light > 0.75, 0.92, 0.04)[..., None]
    image = image * (1 - rim[..., None]) + border * rim[..., None]
    return np.asarray(image, dtype=np.float32)
