"""Inverse depth from blurred pictures: the window's path and one inverse depth per patch, solved together.

Patches of a few anchor frames are compared with other frames of the window (``anchored.py``), so that nothing drifts
along a chain and no tracker's bias on unlike blurs comes in. Gauss–Newton from the track spline's solution; the tracks
have no say beyond that start. The inverse depths are eliminated by the Schur complement. The motion prior only damps
the steps: pulling, it would make every motion a little smaller, and what rotation loses parallax gains.

With the path known, more patches between the tracks cost little: each has only its own inverse depth to find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from ..bspline import KnotGrid
from ..camera import Camera, Shutter
from ..spline_state import SplineState
from .anchored import REACH, Anchor, AnchoredComparison, AnchoredPair
from .pictures import Grey, View, view
from .refine import CONTRAST_SHARE, KERNEL_SCALE2, MIN_CONTRAST, NOISE_FLOOR, NOISE_SHARE

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]
IntArray = NDArray[np.int64]

ANCHORS = 2
COMPARED = 7  # frames that every anchor is compared with, at most
SUBSAMPLES = 5  # of an exposure
TRACK_CELLS = 100  # of each anchor frame: one track in each
DENSE_CELLS = 432  # of the last anchor frame: one patch in each where there is no track
MAX_ITERATIONS = 8
SETTLED = 0.8  # of the disagreement left by a step that need not be followed by another
SETTLED_LEVEL = 0.1  # likewise: a narrow view agrees long before its level is right
DENSE_ITERATIONS = 2
NEIGHBOURS = 5  # from which a patch between the tracks starts
TEMPER = 5.0  # of the pictures beside the motion prior
VARIANCE_SCALE = 0.1  # of what the tempered equations state; found on the development clips, as is TEMPER
SCALE_FLOOR_SD = 0.02  # relative: what is left where noise is far below it (patches are flat and face the camera here)
GAUGE_PRECISION = 1e8
RHO_RANGE = (0.005, 20.0)  # 1/m
MAX_STEP = 0.5  # of an inverse depth, relative
START_RATIO = 3.0  # inverse depths start at most so far from their median
DAMPING = 1e-3  # of a patch's information, relative to the median patch's
MIN_INFORMATION = 1e-6  # m²: of a patch that does not move with its depth
MIN_PATCHES = 16
MIN_WEIGHT = 0.05
MAX_DISAGREEMENT = 0.4  # residual relative to contrast: with more, this is no still scene, or the path is lost


@dataclass(frozen=True)
class BlurDepths:
    """Inverse depths at the window's reference time as the pictures give them.

    ids       (N,) of the tracks at which the patches lie; negative between the tracks
    rays      (N, 2), ideal rays (x, y, 1) in the reference frame
    rho       (N,) 1/m, with its own ``variance`` (N,), and ``scale_variance`` of a relative error common to all
    c         the path's knots with which they were found
    """

    ids: IntArray
    rays: FloatArray
    rho: FloatArray
    variance: FloatArray
    scale_variance: float
    c: FloatArray


@dataclass(frozen=True)
class _Pictures:
    """The frames that are compared, by their place in the window, and with what they were taken."""

    views: dict[int, View]
    camera: Camera
    shutter: Shutter
    grid: KnotGrid
    lever_arm_m: FloatArray

    def anchor(self, k: int, raw: FloatArray) -> Anchor:
        offsets_s = ((np.arange(SUBSAMPLES) + 0.5) / SUBSAMPLES - 0.5) * self.shutter.exposure_ns * 1e-9
        return Anchor(self.views[k], raw, self.camera, self.shutter, self.grid, offsets_s)


class _Patches:
    """Patches at raw pixels of some frames, one frame after the other, and the pairs that they are compared in.

    rho  (N,) 1/m, in each patch's own anchor frame
    """

    def __init__(self, pictures: _Pictures, raw: dict[int, FloatArray], rho: FloatArray, c: FloatArray) -> None:
        self.rho, self._arm_m = rho, pictures.lever_arm_m
        self._anchors: list[tuple[Anchor, slice]] = []
        self._pairs: list[tuple[AnchoredPair, slice]] = []
        first = 0
        for k, pixels in raw.items():
            anchor, own = pictures.anchor(k, pixels), slice(first, first + len(pixels))
            first = own.stop
            self._anchors.append((anchor, own))
            for other, seen in pictures.views.items():
                if other != k:
                    self._pairs.append((AnchoredPair(anchor, seen, pictures.grid, c), own))

    def equations(self, c: FloatArray, path_too: bool) -> _Equations:
        """Tempered, robust normal equations of all pairs; ``path_too``: over the knots as well."""
        placed = {anchor: anchor.placed(c, self.rho[own], self._arm_m) for anchor, own in self._anchors}
        looks = [pair.compare(c, placed[pair.anchor], path_too) for pair, _ in self._pairs]
        rms, contrast = (
            np.concatenate([getattr(look, name)[look.seen] for look in looks]) for name in ("rms", "contrast")
        )
        median, disagreement = (float(np.median(v)) if len(v) else 0.0 for v in (rms, rms / contrast))
        floor = max(NOISE_FLOOR, NOISE_SHARE * median)
        e = _Equations.empty(len(self.rho), c.size if path_too else 0, disagreement)
        counted = np.zeros(len(self.rho))
        for (pair, own), look in zip(self._pairs, looks):
            robust, weight = _weights(look, floor)
            e.weights[own] += robust
            counted[own] += look.seen
            e.add(look, np.sqrt(weight).astype(np.float32), own, pair.columns() if path_too else None)
        e.weights[:] = np.maximum(e.weights / np.maximum(counted, 1), MIN_WEIGHT)
        return e

    def move(self, step: FloatArray) -> float:
        """Change the inverse depths, by so much that the equations still hold; the relative change of their median."""
        level = float(np.median(self.rho))
        reach = MAX_STEP * np.maximum(self.rho, level / START_RATIO)
        self.rho = np.clip(self.rho + np.clip(step, -reach, reach), *RHO_RANGE)
        return abs(float(np.median(self.rho)) / level - 1)

    def at_reference(self, c: FloatArray, variance: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Rays (N, 2), inverse depths (N,) and their variance, of the patches' own frames, carried to the reference."""
        found = [anchor.seen_from_reference(c, self.rho[own], self._arm_m) for anchor, own in self._anchors]
        rays, rho, ratio = (np.concatenate(part) for part in zip(*found))
        return rays, rho, variance * ratio**2


@dataclass
class _Equations:
    """H x + Xᵀ y = −g over the knots' changes x, X x + h y = −b over those of the inverse depths.

    weights (N,) mean robust weight of every patch; disagreement: median residual relative to contrast
    """

    H: FloatArray
    g: FloatArray
    h: FloatArray
    b: FloatArray
    X: FloatArray
    weights: FloatArray
    disagreement: float

    @classmethod
    def empty(cls, patches: int, unknowns: int, disagreement: float) -> _Equations:
        n, (h, b, weights) = unknowns, np.zeros((3, patches))
        return cls(np.zeros((n, n)), np.zeros(n), h, b, np.zeros((patches, n)), weights, disagreement)

    def add(
        self, look: AnchoredComparison, root: Float32Array, own: slice, columns: tuple[slice, slice] | None
    ) -> None:
        """One pair's patches ``own``, by the roots of their weights (P,)."""
        r, by_rho = look.residual * root[:, None], look.by_rho * root[:, None]
        self.h[own] += np.sum(by_rho**2, axis=1)
        self.b[own] += np.sum(by_rho * r, axis=1)
        if columns is None:
            return
        J = look.by_knots * root[:, None, None]
        flat = J.reshape(-1, J.shape[2])
        H, g, X = flat.T @ flat, flat.T @ r.ravel(), (by_rho[:, None] @ J)[:, 0]
        split = columns[0].stop - columns[0].start
        parts = tuple(zip((slice(0, split), slice(split, None)), columns))
        for some, at in parts:
            self.g[at] += g[some]
            self.X[own, at] += X[:, some]
            for other, other_at in parts:
                self.H[at, other_at] += H[some, other]


@dataclass(frozen=True)
class _Solution:
    """Knots c; of the patches' inverse depths their own variance (N,), the relative variance common to all, and the
    information that their steps were damped with; median residual relative to contrast."""

    c: FloatArray
    variance: FloatArray
    scale_variance: float
    damping: float
    disagreement: float


def blur_depths(
    images: Sequence[Grey], mid_s: FloatArray, ids: IntArray, raw: FloatArray, state: SplineState,
    rotation_precision: FloatArray, camera: Camera, shutter: Shutter, scale: int,
) -> BlurDepths | None:
    """Path and inverse depths of one window.

    images and mid_s (T,); ids (N,) and raw px (N, T, 2) of its tracks, in the order of ``state``, whose lever arm is
    known; rotation_precision (count, count) of one axis's knots; scale: how far pictures are reduced.
    None where too little can be compared or agrees. Raises LinAlgError for a singular system.
    """
    assert state.lever_arm_m is not None
    T = len(images)
    anchors = [int((k + 0.5) / ANCHORS * T) for k in range(ANCHORS)]
    compared = {*np.linspace(0, T - 1, COMPARED).round().astype(int).tolist(), *anchors}
    views = {k: view(images[k], scale, float(mid_s[k])) for k in sorted(compared)}
    pictures = _Pictures(views, camera, shutter, state.grid, state.lever_arm_m)
    members = _members(raw, views, anchors)
    chosen = np.concatenate(list(members.values()))
    if len(chosen) < MIN_PATCHES:
        return None
    level = max(float(np.median(state.rho[chosen])), RHO_RANGE[0])
    start = np.clip(state.rho[chosen], level / START_RATIO, level * START_RATIO)
    at_tracks = _Patches(pictures, {k: raw[j, k] for k, j in members.items() if len(j)}, start, state.c)
    solved = _path_and_depths(at_tracks, state, rotation_precision)
    if not solved.disagreement < MAX_DISAGREEMENT:
        return None
    rays, rho, variance = at_tracks.at_reference(solved.c, solved.variance)
    last = anchors[-1]
    more = _places_between(views[last], raw[members[last], last])
    if len(more):
        near = _nearest(more, rays * (camera.fx, camera.fy) + (camera.cx, camera.cy))
        between = _Patches(pictures, {last: more}, np.median(rho[near], axis=1), solved.c)
        found = between.at_reference(solved.c, _depths_alone(between, solved))
        rays, rho, variance = (np.concatenate(both) for both in zip((rays, rho, variance), found))
    ids = np.concatenate([ids[chosen], -1 - np.arange(len(more))])
    scale_variance = VARIANCE_SCALE * solved.scale_variance + SCALE_FLOOR_SD**2
    return BlurDepths(ids, rays, rho, VARIANCE_SCALE * variance, scale_variance, solved.c)


def _path_and_depths(patches: _Patches, state: SplineState, rotation_precision: FloatArray) -> _Solution:
    """Gauss–Newton from the state's knots; the patches' inverse depths move along."""
    gauge = state.grid.rows(np.array([state.ref_s]))
    prior = np.kron(rotation_precision + GAUGE_PRECISION * gauge.T @ gauge, np.eye(3))
    c, before = state.c, np.inf
    for _ in range(MAX_ITERATIONS):
        e = patches.equations(c, path_too=True)
        damping = max(DAMPING * float(np.median(e.h)), MIN_INFORMATION)
        h = e.h + damping
        coupling = e.X / h[:, None]
        factor = cho_factor(e.H - e.X.T @ coupling + prior)
        x = -cho_solve(factor, e.g - coupling.T @ e.b)
        c = c + x.reshape(-1, 3)
        moved = patches.move(-(e.b + e.X @ x) / h)
        if e.disagreement > SETTLED * before and moved < SETTLED_LEVEL:
            break
        before = e.disagreement
    # each patch's own variance and the path's, of which the part that moves all alike is kept apart
    own = 1 / (h * e.weights**2)
    pull = (1 / own) @ coupling / float(1 / own @ patches.rho)
    scale_variance = float(pull @ cho_solve(factor, pull))
    shared = np.einsum("nk,kn->n", coupling, cho_solve(factor, coupling.T))
    variance = own + np.maximum(shared - scale_variance * patches.rho**2, 0)
    return _Solution(c, variance, scale_variance, damping, e.disagreement)


def _depths_alone(patches: _Patches, solved: _Solution) -> FloatArray:
    """Gauss–Newton over the inverse depths on a known path; their own variance (N,)."""
    for _ in range(DENSE_ITERATIONS):
        e = patches.equations(solved.c, path_too=False)
        h = e.h + solved.damping
        patches.move(-e.b / h)
    return np.asarray(1 / (h * e.weights**2))


def _members(raw: FloatArray, views: dict[int, View], anchors: list[int]) -> dict[int, IntArray]:
    """Which tracks each anchor frame gets: the one with most contrast in each of TRACK_CELLS, every track once."""
    free = np.ones(len(raw), bool)
    members = {}
    for k in anchors:
        j = np.flatnonzero(free & np.isfinite(raw[:, k, 0]))
        contrast = _contrast(views[k], raw[j, k])
        cells = _cells(raw[j, k], views[k], TRACK_CELLS)
        order = np.lexsort((-contrast, cells))
        order = order[contrast[order] > MIN_CONTRAST]
        _, first = np.unique(cells[order], return_index=True)
        members[k] = j[order[first]]
        free[members[k]] = False
    return members


def _places_between(v: View, taken: FloatArray) -> FloatArray:
    """Raw pixels (M, 2) of the strongest place of every cell of a frame that has none of ``taken`` (N, 2)."""
    height, width = v.contrast.shape
    y, x = np.mgrid[REACH:height - REACH, REACH:width - REACH]
    at = (np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) / v.scale - 0.5
    contrast = v.contrast[REACH:height - REACH, REACH:width - REACH].ravel()
    cells = _cells(at, v, DENSE_CELLS)
    best = np.zeros(cells.max() + 1)
    np.maximum.at(best, cells, contrast)
    strongest = np.flatnonzero((contrast == best[cells]) & (contrast > MIN_CONTRAST))
    _, first = np.unique(cells[strongest], return_index=True)
    strongest = strongest[first]
    return at[strongest[~np.isin(cells[strongest], _cells(taken, v, DENSE_CELLS))]]


def _nearest(pixels: FloatArray, known: FloatArray) -> IntArray:
    """NEIGHBOURS of ``known`` (N, 2) for each of ``pixels`` (M, 2)."""
    distance2 = np.sum((pixels[:, None] - known) ** 2, axis=2)
    return np.argpartition(distance2, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]


def _cells(raw: FloatArray, v: View, count: int) -> IntArray:
    """In which of about ``count`` square cells raw pixels (N, 2) lie."""
    height, width = np.array(v.light.shape) / v.scale
    side = np.sqrt(height * width / count)
    columns = int(np.ceil(width / side))
    return (raw / side).astype(int) @ (1, columns)


def _contrast(v: View, raw: FloatArray) -> FloatArray:
    """Contrast of the patches at raw pixels (N, 2); 0 near the border."""
    at = ((raw + 0.5) * v.scale - 0.5).round().astype(int)
    high = np.array(v.contrast.shape[::-1]) - 1 - REACH
    inside = np.all((at > REACH) & (at < high), axis=1)
    at = np.clip(at, 0, high)
    return np.where(inside, v.contrast[at[:, 1], at[:, 0]], 0.0)


def _weights(look: AnchoredComparison, floor: float) -> tuple[FloatArray, FloatArray]:
    """Robust weights (P,) in [0, 1], and those of the squared residuals."""
    sigma2 = floor**2 + (CONTRAST_SHARE * look.contrast) ** 2
    robust = look.seen / (1 + look.rms**2 / sigma2 / KERNEL_SCALE2)
    return robust, robust / sigma2 / TEMPER
