"""The cross-blur residual between an anchor frame and another one, with its derivative by path and inverse depths.

Every patch is anchored at a pixel of frame a, whose ray m (at a's mean rotation R_a) and inverse depth ρ it keeps. With
the lever arm r (pivot → optical centre) its point is seen at any time from

    Y(t) = R(t)ᵀ R_a (m + ρ r) − ρ r,   x = π(K Y).

Unlike ``PairTerm`` it compares frames far apart, and ρ is an unknown. The patch is warped from a to b by the turn
between them, M = ∂x_b/∂x_a, without which a wide lens biases every comparison by tenths of a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import so3
from ..bspline import KnotGrid
from ..camera import Camera, Shutter
from ..displacement import J_rotation, J_translation
from .pair import compared, inverse, sampled, turn_of_picture
from .pictures import View

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

STEP = 2  # working pixels between the places of a patch: pictures are smooth over that distance
PLACES = 5  # of a patch, each way
REACH = PLACES // 2 * STEP + 2  # working pixels from a patch's centre that must lie in the picture
AHEAD = 0.2  # least depth, in units of the depth in the anchor frame

_q = (np.arange(PLACES) - PLACES // 2) * float(STEP)
OFFSETS = np.stack(np.meshgrid(_q, _q), axis=-1).reshape(-1, 2).astype(np.float32)  # (n, 2) working pixels


@dataclass(frozen=True)
class Exposure:
    """One frame's exposure as every patch's row has it: values of the knots that act (P, S, K), and their means."""

    knots: slice
    rows: FloatArray
    mean: FloatArray

    @classmethod
    def of(cls, grid: KnotGrid, t_s: FloatArray) -> Exposure:
        knots = grid.span(float(t_s.min()), float(t_s.max()))
        rows = grid.rows(t_s, knots)
        return cls(knots, rows, rows.mean(axis=1))


@dataclass(frozen=True)
class Sight:
    """Where points are seen along an exposure.

    R        (P, 3, 3) mean rotation, and its J_right (P, 3, 3)
    pixels   (P, S, 2) ideal, and their mean (P, 2)
    by_rho   (P, S, 2) their derivative by the inverse depth in the anchor frame
    by_turn  (P, 2, 3) pixels per radian of the camera's turn about its pivot, at the mean
    z        (P,) mean depth in units of that in the anchor frame
    """

    R: FloatArray
    J_right: FloatArray
    pixels: FloatArray
    mean: FloatArray
    by_rho: FloatArray
    by_turn: FloatArray
    z: FloatArray

    @property
    def about_mean(self) -> FloatArray:
        return self.pixels - self.mean[:, None]


@dataclass(frozen=True)
class Points:
    """Points m + ρ r and lever arms r as an anchor frame has them, turned into the reference: (P, 3) each."""

    camera: Camera
    lever_arm_m: FloatArray
    rho: FloatArray
    from_pivot: FloatArray
    arm: FloatArray

    def along(self, exposure: Exposure, c: FloatArray) -> Sight:
        """Where they are seen during an exposure of some frame."""
        r, camera, rho = self.lever_arm_m, self.camera, self.rho[:, None]
        knots = c[exposure.knots]
        phi, mean_phi = exposure.rows @ knots, exposure.mean @ knots
        Y = so3.rotate(-phi, self.from_pivot[:, None]) - rho[..., None] * r
        Y[..., 2] = np.maximum(Y[..., 2], AHEAD)
        moved = so3.rotate(-phi, self.arm[:, None]) - r
        slope = Y[..., :2] / Y[..., 2:]
        by_rho = (moved[..., :2] - slope * moved[..., 2:]) / Y[..., 2:] * (camera.fx, camera.fy)
        pixels = slope * (camera.fx, camera.fy) + (camera.cx, camera.cy)
        mean, z = pixels.mean(axis=1), Y[..., 2].mean(axis=1)
        by_turn = J_rotation(camera, mean) - (rho / z[:, None])[..., None] * (J_translation(camera, mean) @ so3.hat(r))
        return Sight(so3.exp(mean_phi), so3.J_right(mean_phi), pixels, mean, by_rho, by_turn, z)


@dataclass(frozen=True)
class Placed:
    """An anchor's points on a path, and where its own exposure sees them."""

    points: Points
    own: Sight


class Anchor:
    """Patches of one frame: raw pixels (P, 2), and their points as the path's knots c (count, 3) place them.

    offsets_s  (S,) sub-samples of an exposure about its middle
    """

    def __init__(
        self, view: View, raw: FloatArray, camera: Camera, shutter: Shutter, grid: KnotGrid, offsets_s: FloatArray
    ) -> None:
        self.view, self.raw, self.camera, self.shutter, self.offsets_s = view, raw, camera, shutter, offsets_s
        self.rays = camera.rays(camera.undistort(raw))
        row_s = shutter.row_offset_s(raw[:, 1], camera.height)
        self.exposure = Exposure.of(grid, view.mid_s + row_s[:, None] + offsets_s)

    def placed(self, c: FloatArray, rho: FloatArray, lever_arm_m: FloatArray) -> Placed:
        """The patches' points on a path; rho (P,), 1/m in the anchor frame."""
        phi = self.exposure.mean @ c[self.exposure.knots]
        from_pivot, arm = so3.rotate(phi, self.rays + rho[:, None] * lever_arm_m), so3.rotate(phi, lever_arm_m)
        points = Points(self.camera, lever_arm_m, rho, from_pivot, arm)
        return Placed(points, points.along(self.exposure, c))

    def seen_from_reference(self, c: FloatArray, rho: FloatArray, lever_arm_m: FloatArray) -> tuple[FloatArray, ...]:
        """Rays (P, 2) and inverse depths (P,) at the reference, and their ratio to those in the anchor frame."""
        v = self.placed(c, rho, lever_arm_m).points.from_pivot - rho[:, None] * lever_arm_m
        ratio = 1 / np.maximum(v[:, 2], AHEAD)
        return v[:, :2] * ratio[:, None], rho * ratio, ratio


@dataclass(frozen=True)
class AnchoredComparison:
    """Patches blurred alike, without mean and at one contrast.

    residual  (P, n)
    contrast  (P,) RMS before, the mean of both
    by_knots  (P, n, columns); no columns where they were not asked for
    by_rho    (P, n)
    seen      (P,) whether the patch lies in both pictures
    """

    residual: Float32Array
    contrast: Float32Array
    by_knots: Float32Array
    by_rho: Float32Array
    seen: NDArray[np.bool_]

    @property
    def rms(self) -> Float32Array:
        return np.sqrt((self.residual**2).mean(axis=1))


@dataclass(frozen=True)
class _Reading:
    """Where the patches of one frame are read, working pixels, and what becomes of the samples.

    centres  (P, S, 2), along the other frame's path
    warp     (P, 2, 2) of a patch's places, or None
    by       (P, 3 S, 1 + columns): takes samples of light and gradients to the mean light and its derivatives
    """

    view: View
    centres: FloatArray
    warp: FloatArray | None
    by: Float32Array

    def sampled(self) -> Float32Array:
        """Light and gradients of the patches (P, n, S, 3)."""
        q = OFFSETS if self.warp is None else OFFSETS @ np.swapaxes(self.warp.astype(np.float32), 1, 2)
        return sampled(self.view.picture, self.centres.astype(np.float32), q)


class AnchoredPair:
    """An anchor's patches against another frame, for paths near the knots ``c`` (count, 3)."""

    def __init__(self, anchor: Anchor, view: View, grid: KnotGrid, c: FloatArray) -> None:
        self.anchor, self.view, self.camera = anchor, view, anchor.camera
        phi, own = grid.rows(np.array([view.mid_s])) @ c, anchor.exposure
        far = so3.rotate(-phi, so3.rotate(own.mean @ c[own.knots], anchor.rays))
        rows = np.clip(self.camera.project(far)[:, 1], 0, self.camera.height - 1)
        row_s = anchor.shutter.row_offset_s(rows, self.camera.height)
        self.exposure = Exposure.of(grid, view.mid_s + row_s[:, None] + anchor.offsets_s)

    def columns(self) -> tuple[slice, slice]:
        """Where the columns of ``by_knots`` belong among the unknowns, knot by knot: the anchor's, then the other's."""
        a, b = self.anchor.exposure.knots, self.exposure.knots
        return slice(3 * a.start, 3 * a.stop), slice(3 * b.start, 3 * b.stop)

    def compare(self, c: FloatArray, placed: Placed, path_too: bool = True) -> AnchoredComparison:
        """The anchor's points ``placed`` on the path c; ``path_too``: with the derivative by the knots."""
        of_a, of_b, seen = self._readings(placed.own, placed.points.along(self.exposure, c), path_too)
        residual, contrast, J = compared(of_a.sampled(), of_a.by, of_b.sampled(), of_b.by)
        return AnchoredComparison(residual, contrast, J[:, :, 1:], J[:, :, 0], seen)

    def _readings(self, a: Sight, b: Sight, path_too: bool) -> tuple[_Reading, _Reading, NDArray[np.bool_]]:
        """How both frames are read, and which patches lie in both.

        With the paths about their means, u_a and u_b, frame a is read at x_a + q − M⁻¹ u_b(s), and frame b at
        x_b + M (q − u_a(s)): only b's mean place moves with path and depth, for the point stays where it is in a.
        """
        b_from_a = np.swapaxes(b.R, 1, 2) @ a.R
        warp = turn_of_picture(self.camera, b.mean, b.z, b_from_a)
        raw_a, lens_a = _through_lens(self.camera, a.mean)
        raw_b, lens_b = _through_lens(self.camera, b.mean)
        lens_a, lens_b = lens_a * self.anchor.view.scale, lens_b * self.view.scale
        on_a, on_b = -lens_a @ inverse(warp), -lens_b @ warp
        at_a, at_b = _working(raw_a, self.anchor.view), _working(raw_b, self.view)

        own, other = self.anchor.exposure, self.exposure
        knots_a, knots_b = (3 * e.rows.shape[2] if path_too else 0 for e in (own, other))
        (P, S), columns = a.pixels.shape[:2], 2 + knots_a + knots_b
        by_a, by_b = np.zeros((2, P, S, 3, columns), np.float32)
        by_a[:, :, 0, 0] = by_b[:, :, 0, 0] = 1
        b_by_rho = b.by_rho.mean(axis=1, keepdims=True)
        by_a[:, :, 1:, 1] = _turned(on_a, b.by_rho - b_by_rho)
        by_b[:, :, 1:, 1] = _turned(on_b, a.by_rho - a.by_rho.mean(axis=1, keepdims=True)) + _turned(lens_b, b_by_rho)
        if path_too:
            of_a, of_b = slice(2, 2 + knots_a), slice(2 + knots_a, columns)
            by_a[:, :, 1:, of_b] = _by_knots(other.rows - other.mean[:, None], on_a @ b.by_turn @ b.J_right)
            by_b[:, :, 1:, of_a] = _by_knots(own.rows - own.mean[:, None], on_b @ a.by_turn @ a.J_right)
            by_b[:, :, 1:, of_a] -= _by_knots(own.mean[:, None], lens_b @ b.by_turn @ b_from_a @ a.J_right)
            by_b[:, :, 1:, of_b] = _by_knots(other.mean[:, None], lens_b @ b.by_turn @ b.J_right)
        by_a, by_b = (by.reshape(P, 3 * S, columns) / np.float32(S) for by in (by_a, by_b))
        return (
            _Reading(self.anchor.view, at_a[:, None] + _turned(on_a, b.about_mean), None, by_a),
            _Reading(self.view, at_b[:, None] + _turned(on_b, a.about_mean), lens_b @ warp @ inverse(lens_a), by_b),
            _inside(at_a, self.anchor.view) & _inside(at_b, self.view),
        )


def _by_knots(rows: FloatArray, G: FloatArray) -> Float32Array:
    """Splines' rows (P, S, K) and derivatives by their value (P, 2, 3) → (P, S, 2, 3 K), knot by knot."""
    out = rows.astype(np.float32)[:, :, None, :, None] * G.astype(np.float32)[:, None, :, None, :]
    return out.reshape(*out.shape[:3], -1)


def _turned(matrices: FloatArray, vectors: FloatArray) -> FloatArray:
    """(P, 2, 2) times (P, S, 2)."""
    return np.asarray(vectors @ np.swapaxes(matrices, 1, 2))


def _through_lens(camera: Camera, ideal: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Raw pixels (P, 2), NaN where the lens model folds, and their derivative by the ideal ones (P, 2, 2)."""
    if not any(camera.distortion):
        return ideal, np.broadcast_to(np.eye(2), (len(ideal), 2, 2))
    steps = [camera.distort(ideal + step) for step in ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))]
    return camera.distort(ideal), np.stack([steps[0] - steps[1], steps[2] - steps[3]], axis=2)


def _working(raw: FloatArray, view: View) -> FloatArray:
    return (raw + 0.5) * view.scale - 0.5


def _inside(at: FloatArray, view: View) -> NDArray[np.bool_]:
    high = np.array(view.light.shape[::-1]) - 1 - REACH
    return np.asarray(np.all((at > REACH) & (at < high), axis=1))
