"""The learned path inside a frame: one Gauss–Newton step on the cross-blur equations, weighted by a small network.

What the pictures say about a frame k stands in the normal equations over the spline's knots, at the trajectory where
the step starts: the track spline, moved as the last frame's step moved it. All but the motion inside k − 1, k and k + 1
is marginalised out of them (``reduce``): 45 unknowns z, the cosine coefficients of the three paths and their three
means, in pixels, relative to the start. From what is known
without the pictures' gradients (``geometry``) a network says per axis how much to believe the pictures and the tracks,
and adds what hands usually do, a mean with its deviation; the weighted equations are solved, and the knots follow.
With the network's output at zero this is the plain Gauss–Newton step. docs/training.md tells what the weights gain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from . import detail_basis as db
from . import so3
from .camera import Camera
from .spline_state import SplineState

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

FRAMES = 3  # k − 1, k, k + 1
BEFORE, AFTER = 4, 2  # frames around k whose mean rotations the network sees
UNKNOWNS = FRAMES * db.PER_FRAME
COEFFICIENTS = FRAMES * db.ORDERS  # per axis
WEIGHTS = 3  # per axis: pictures, spline as the refinement trusts it, spline with all it knows
FINE_PX = 0.02  # two motions closer than this are the same: keeps short exposures, whose orders coincide, solvable
SCALE_FLOOR_PX = 0.3
FEATURE_LIMIT = 10.0  # of features that are counted in the motion's own scale
SIGNED = (BEFORE + AFTER) + 2 * COEFFICIENTS + 2 * UNKNOWNS // 3  # features that change sign with the motion, first
FEATURES = SIGNED + 3 * COEFFICIENTS + 19  # per axis
FAINT, MOST = -8.0, (1.0, 0.0, 0.0)  # log weights: the spline is never trusted more than the refinement does
LOG_SD_RANGE = (-5.0, 5.0)

Network = Callable[[Float32Array], tuple[Float32Array, Float32Array, Float32Array]]


class Photometry(NamedTuple):
    """The pictures' tempered information H and gradient g over (c, d) at the start, and how they agree there.

    rms, contrast  medians over the patches, grey levels in linear light; ratio of the two; patches compared
    """

    H: FloatArray
    g: FloatArray
    rms: float
    contrast: float
    ratio: float
    patches: int


@dataclass(frozen=True)
class Window:
    """The newest frames as the track spline sees them.

    state, start        the track spline, and where the step starts: the same grids
    mid_s               (T,) mid-exposures; frame k is the third from the end
    R_optics            (T, 3, 3) sparse orientations, any common reference
    information         over (c, d), all that the track spline knows
    trusted             over (c, d), the part of it that the refinement keeps
    blur_px, scale      length of the blur path, full-size pixels; reduction of the compared pictures
    sigma_px, energy    of the track spline
    tracks              their number
    """

    state: SplineState
    start: SplineState
    information: FloatArray
    trusted: FloatArray
    mid_s: FloatArray
    R_optics: FloatArray
    camera: Camera
    exposure_s: float
    period_s: float
    readout_s: float
    blur_px: float
    scale: int
    sigma_px: float
    energy: float
    tracks: int


@dataclass(frozen=True)
class Reduced:
    """What pictures and tracks say about z (45,), pixels.

    start, interpolated  (3, ORDERS, 3) coefficients of the three frames; z is relative to the start's
    steps                (6, 3) steps between the mean rotations of k − 4 … k + 2
    covariance, mean     of z after one plain Gauss–Newton step
    spline               (45,) z of the track spline
    trusted, known       (45, 45) covariances of z by the tracks alone: as the refinement trusts them, and in full
    """

    start: FloatArray
    interpolated: FloatArray
    steps: FloatArray
    covariance: FloatArray
    mean: FloatArray
    spline: FloatArray
    trusted: FloatArray
    known: FloatArray

    @property
    def scale_px(self) -> FloatArray:
        """Size of the motion per axis (3,): half the steps to the neighbours and the paths at the start."""
        steps = np.abs(self.steps[BEFORE - 1 : BEFORE + 1]).mean(axis=0)
        return SCALE_FLOOR_PX + 0.5 * steps + np.sqrt(np.mean(self.start**2, axis=(0, 1)))


@dataclass(frozen=True)
class Decoded:
    """Coefficients of frame k's path (ORDERS, 3) px and their sd; the whole spline moved along, and its information."""

    coefficients: FloatArray
    sd: FloatArray
    state: SplineState
    information: FloatArray


def decode(window: Window, photometry: Photometry, network: Network) -> Decoded:
    """The learned step. LinAlgError where the equations have no solution; at least BEFORE + AFTER + 1 frames."""
    reduced, step, spread = reduce(window, photometry)
    outputs = network(geometry(window, photometry, reduced).astype(np.float32)[None])
    mean, covariance = solve(reduced, *(np.asarray(output, float)[0] for output in outputs))
    # all other knots follow: their expectation given z
    fine = np.eye(UNKNOWNS) * FINE_PX**2
    step = step + spread @ np.linalg.solve(reduced.covariance + fine, mean - reduced.mean)
    state = _moved(window.start, step)
    middle = slice(db.PER_FRAME, 2 * db.PER_FRAME - 3)
    sure = np.trace(reduced.covariance[middle, middle]) / np.trace(covariance[middle, middle])
    return Decoded(
        reduced.start[1] + mean[middle].reshape(db.ORDERS, 3),
        np.sqrt(np.diag(covariance)[middle]).reshape(db.ORDERS, 3),
        state,
        (photometry.H + window.trusted) * sure,
    )


def reduce(window: Window, photometry: Photometry) -> tuple[Reduced, FloatArray, FloatArray]:
    """The plain Gauss–Newton step seen by z, the step itself (n,), and its covariance with z (n, 45)."""
    posterior = cho_factor(photometry.H + window.trusted)
    spline = _flat(window.state) - _flat(window.start)
    step = cho_solve(posterior, window.trusted @ spline - photometry.g)
    M = unknowns_by_knots(window)
    spread = cho_solve(posterior, M.T)
    return _reduced(window, M, M @ spread, M @ step, M @ spline), step, spread


def unknowns_by_knots(window: Window) -> FloatArray:
    """∂z/∂(c, d) (45, n): frame by frame the coefficients, order by order the axes, then the mean; d has no part."""
    px = db.pixel_units(window.camera)
    rows = [db.knot_map(window.start, t, window.exposure_s, px) for t in window.mid_s[-FRAMES - 1 : -1]]
    M = np.concatenate(rows)
    return np.concatenate([M, np.zeros((len(M), len(window.information) - M.shape[1]))], axis=1)


def _reduced(window: Window, M: FloatArray, covariance: FloatArray, mean: FloatArray, spline: FloatArray) -> Reduced:
    px = db.pixel_units(window.camera)
    t = window.mid_s[-FRAMES - 1 : -1, None] + db.sample_offsets_s(window.exposure_s)
    seen = slice(-FRAMES - 2, None)
    paths = np.array([window.start.rotation(t), so3.interpolate(t, window.mid_s[seen], window.R_optics[seen])])
    start, interpolated = db.coefficients(paths, px)
    phi = window.state.grid.mean_rows(window.mid_s[-BEFORE - AFTER - 1 :], window.exposure_s) @ window.state.c
    R = so3.exp(phi)
    means = so3.log(R[BEFORE].T @ R) * px
    known, trusted = (M @ cho_solve(cho_factor(L), M.T) for L in (window.information, window.trusted))
    return Reduced(
        start, interpolated, np.diff(means, axis=0), covariance, mean, spline, trusted, known
    )


def geometry(window: Window, photometry: Photometry, reduced: Reduced) -> FloatArray:
    """What the network sees, (3 · FEATURES,), axis by axis: first the SIGNED ones, in the motion's own scale."""
    scale = reduced.scale_px
    log_scale = np.log(scale)
    common = [
        10 * window.exposure_s,
        10 * window.period_s,
        window.exposure_s / window.period_s,
        10 * window.readout_s,
        np.log(window.camera.focal_px / window.camera.width),
        np.log(window.blur_px + 0.5),
        window.scale / 2 - 1,
        np.log(window.sigma_px),
        np.log(photometry.rms + 0.1),
        np.log(photometry.contrast + 0.1),
        np.log(photometry.ratio + 0.01),
        photometry.patches / 200,
        float(window.state.lever_arm_m is not None),
        np.log(window.energy + 0.01),
        np.log(window.tracks / 100),
    ]
    sd = [np.sqrt(np.diag(C)).reshape(FRAMES, -1, 3)[:, : db.ORDERS] for C in
          (reduced.covariance, reduced.trusted, reduced.known)]
    step, spline = (z.reshape(FRAMES, -1, 3) for z in (reduced.mean, reduced.spline))
    out = []
    for axis, s in enumerate(scale):
        signed = [reduced.steps, reduced.interpolated - reduced.start, reduced.start, step, spline]
        own = np.concatenate([part[..., axis].ravel() for part in signed]) / s
        sure = np.concatenate([np.log(part[..., axis].ravel() / s + 1e-3) for part in sd])
        turned = np.roll(log_scale, -axis)
        out += [np.clip(own, -FEATURE_LIMIT, FEATURE_LIMIT), sure, turned, common, [float(axis == 2)]]
    return np.concatenate(out)


def untrained(geometry: Float32Array) -> tuple[Float32Array, Float32Array, Float32Array]:
    """The network that leaves the plain Gauss–Newton step as it is."""
    nothing = np.zeros((1, 3 * COEFFICIENTS), np.float32)
    weights = np.tile(np.array([0, 0, FAINT], np.float32), 3)
    return nothing, np.full_like(nothing, LOG_SD_RANGE[1]), weights[None]


class Equations(NamedTuple):
    """Information about z in the motion's own scale, (45, 45) each: of the pictures alone, and of the tracks.

    pull    (45,) the pictures' information times where they alone would put z
    spline  (45,) where the tracks put it
    """

    pictures: FloatArray
    trusted: FloatArray
    known: FloatArray
    pull: FloatArray
    spline: FloatArray


def equations(reduced: Reduced) -> Equations:
    """The pictures' information is what the plain step knows more than the tracks do."""
    scale = np.tile(reduced.scale_px, UNKNOWNS // 3)
    fine = np.eye(UNKNOWNS) * FINE_PX**2
    trusted, known, after = (
        np.linalg.inv(C + fine) * np.outer(scale, scale) for C in (reduced.trusted, reduced.known, reduced.covariance)
    )
    mean, spline = reduced.mean / scale, reduced.spline / scale
    return Equations(after - trusted, trusted, known, after @ mean - trusted @ spline, spline)


def solve(
    reduced: Reduced, mean: FloatArray, log_sd: FloatArray, log_weight: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mean (45,) and covariance (45, 45) of z, pixels, under the network's weights.

    mean, log_sd (3 · COEFFICIENTS,), log_weight (3 · WEIGHTS,): axis by axis, in the motion's own scale. The weight of
    an axis multiplies its rows and columns by its root: equal weights scale the whole.
    """
    roots = np.exp(0.5 * np.clip(log_weight.reshape(3, WEIGHTS), FAINT, MOST))
    by = [np.tile(root, UNKNOWNS // 3) for root in roots.T]
    own = _unknowns(np.exp(-2 * np.clip(log_sd, *LOG_SD_RANGE)))
    *matrices, pull, spline = equations(reduced)
    pictures, trusted, known = (L * np.outer(w, w) for L, w in zip(matrices, by))
    covariance = np.linalg.inv(pictures + trusted + known + np.diag(own))
    z = covariance @ (by[0] ** 2 * pull + (trusted + known) @ spline + own * _unknowns(mean))
    scale = np.tile(reduced.scale_px, UNKNOWNS // 3)
    return z * scale, covariance * np.outer(scale, scale)


def _unknowns(per_axis: FloatArray) -> FloatArray:
    """Coefficients (3 axes · 3 frames · ORDERS) as unknowns (45,), zero for the frames' means."""
    values = per_axis.reshape(3, FRAMES, db.ORDERS).transpose(1, 2, 0)
    return np.concatenate([values, np.zeros((FRAMES, 1, 3))], axis=1).ravel()


def _flat(state: SplineState) -> FloatArray:
    free = [] if state.lever_arm_m is not None else [state.d.ravel()]
    return np.concatenate([state.c.ravel(), *free])


def _moved(state: SplineState, step: FloatArray) -> SplineState:
    n_rot = state.c.size
    d = state.d if state.lever_arm_m is not None else state.d + step[n_rot:].reshape(-1, 3)
    return replace(state, c=state.c + step[:n_rot].reshape(-1, 3), d=d)
