"""The cross-blur residual of two neighbouring frames, and its derivative by the spline's knots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .. import so3
from ..bspline import KnotGrid
from ..camera import Camera
from ..displacement import J_rotation, J_translation
from ..spline_state import SplineState
from .pictures import PATCH, View

AT_A_TIME = 32  # patches that are compared together: what fits into the processor's cache

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

@dataclass(frozen=True)
class Patches:
    """Tracks seen in two frames, the later last.

    tracks (P,) rows of the track window; raw, ideal (P, 2) pixels in the first frame
    row_s (P, 2) row times in both frames, relative to the frames' own
    """

    tracks: NDArray[np.int64]
    raw: FloatArray
    ideal: FloatArray
    row_s: FloatArray


@dataclass(frozen=True)
class Geometry:
    """Both frames' paths for every patch, displacements (P, S, 2) raw px, and what moves them.

    path_a  about its mean; path_b about the anchor, the tracked point in the first frame
    warp    (P, 2, 2) ∂x_b/∂x_a of a patch: the turn between the frames
    G_a, G_b (P, 2, 3) px per rad; T_a, T_b (P, 2, 3) px per m, None where the lever arm ties translation to rotation
    """

    path_a: FloatArray
    path_b: FloatArray
    warp: FloatArray
    G_a: FloatArray
    G_b: FloatArray
    T_a: FloatArray | None
    T_b: FloatArray | None


@dataclass(frozen=True)
class Comparison:
    """Both blurred patches of every place, brought to no mean and one contrast.

    residual  (P, n) their difference
    contrast  (P,) RMS before, the mean of both
    jacobian  (P, n, 3·knots + 3·translation knots) of the residual, axis by axis: ``PairTerm.columns``
    """

    residual: Float32Array
    contrast: Float32Array
    jacobian: Float32Array

    @property
    def rms(self) -> Float32Array:
        return np.sqrt((self.residual**2).mean(axis=1))


@dataclass(frozen=True)
class _Basis:
    """Values of one spline's basis functions (P, S, K) over both exposures, and how they move the places of reading.

    Paths are about frame a's mean: ``about_a`` and ``about_b`` (P, S, K) are about each frame's own mean, ``shift``
    (P, K) is from a's mean to b's. ``knots``: those that act in either exposure.
    """

    knots: slice
    rows_a: FloatArray
    rows_b: FloatArray
    mean_a: FloatArray
    about_a: Float32Array
    about_b: Float32Array
    shift: Float32Array

    @classmethod
    def of(cls, grid: KnotGrid, t_a: FloatArray, t_b: FloatArray) -> _Basis:
        knots = grid.span(float(t_a.min()), float(t_b.max()))
        rows_a, rows_b = grid.rows(t_a, knots), grid.rows(t_b, knots)
        mean_a, mean_b = rows_a.mean(axis=1), rows_b.mean(axis=1)
        about_a, about_b = (
            (rows - mean[:, None]).astype(np.float32) for rows, mean in ((rows_a, mean_a), (rows_b, mean_b))
        )
        return cls(knots, rows_a, rows_b, mean_a, about_a, about_b, (mean_b - mean_a).astype(np.float32))


class PairTerm:
    """The cross-blur residual of one pair of neighbouring frames, for splines on the grids of ``like``."""

    def __init__(
        self, a: View, b: View, patches: Patches, camera: Camera, exposure_s: float, subsamples: int, like: SplineState
    ) -> None:
        self.a, self.b, self.patches, self.camera = a, b, patches, camera
        self.offsets_s = ((np.arange(subsamples) + 0.5) / subsamples - 0.5) * exposure_s
        t_a = a.mid_s + patches.row_s[:, 0, None] + self.offsets_s
        t_b = b.mid_s + patches.row_s[:, 1, None] + self.offsets_s
        self._turning = _Basis.of(like.grid, t_a, t_b)
        self._moving = _Basis.of(like.translation_grid, t_a, t_b) if like.lever_arm_m is None else None
        self.rays = camera.rays(patches.ideal)
        self._anchor = (patches.raw + 0.5) * a.scale - 0.5
        q = np.arange(PATCH) - PATCH // 2
        self._q = np.stack(np.meshgrid(q, q), axis=-1).reshape(-1, 2).astype(np.float32)

    def geometry(self, state: SplineState) -> Geometry:
        """``geometries`` of this pair alone."""
        return geometries([self], state)[0]

    def motion(self, state: SplineState) -> tuple[FloatArray, ...]:
        """Rotation vectors along both exposures (P, S, 3), frame a's mean (P, 3), and, where translation is free,
        camera positions along both (P, S, 3) metres; all in the reference frame."""
        basis, c = self._turning, state.c[self._turning.knots]
        turning = basis.rows_a @ c, basis.rows_b @ c, basis.mean_a @ c
        if self._moving is None:
            return turning
        d = state.d[self._moving.knots]
        return *turning, self._moving.rows_a @ d, self._moving.rows_b @ d

    def compare(self, g: Geometry) -> Comparison:
        """Both blurred patches compared, and the derivative of their residual by the knots.

        The places of reading x_s move with the knots, so each blurred patch has ∂ mean_s I(x_s) = mean_s ∇I(x_s) ∂x_s;
        light and derivative come out of one product per patch.
        """
        at_a, at_b = self._centres(g)
        q_b = self._warped(g)
        by_a, by_b = self._reading(g)
        parts = []
        for some in (slice(k, k + AT_A_TIME) for k in range(0, len(at_a), AT_A_TIME)):
            a = sampled(self.a.picture, at_a[some], self._q)
            b = sampled(self.b.picture, at_b[some], q_b[some])
            parts.append(compared(a, by_a[some], b, by_b[some]))
        return Comparison(*(np.concatenate(part) for part in zip(*parts)))

    def disagreement(self, g: Geometry) -> FloatArray:
        """RMS residual relative to contrast (P,): a long path averages both away, and that proves nothing."""
        at_a, at_b = self._centres(g)
        light_a = sampled(self.a.light, at_a, self._q).mean(axis=2)
        light_b = sampled(self.b.light, at_b, self._warped(g)).mean(axis=2)
        a, b, _, power, _ = _normalised(light_a, light_b)
        return np.sqrt(np.asarray(((a - b) ** 2).mean(axis=1) / power, float))

    def _centres(self, g: Geometry) -> tuple[Float32Array, Float32Array]:
        """Where the patches of both frames are read, (P, S, 2) working pixels: each along the other's path."""
        s = self.a.scale
        mean_b = g.path_b.mean(axis=1)
        at_a = self._anchor[:, None] - (g.path_b - mean_b[:, None]) @ np.swapaxes(inverse(g.warp), 1, 2) * s
        at_b = (self._anchor + mean_b * s)[:, None] - g.path_a @ np.swapaxes(g.warp, 1, 2) * s
        return at_a.astype(np.float32), at_b.astype(np.float32)

    def _warped(self, g: Geometry) -> Float32Array:
        """A patch's pixels about its centre as frame b shows them (P, n, 2)."""
        return np.asarray(self._q @ np.swapaxes(g.warp, 1, 2).astype(np.float32))

    def _reading(self, g: Geometry) -> tuple[Float32Array, Float32Array]:
        """What takes the samples of a blurred patch, light and gradients (3 S), to its light and its derivative."""
        s = np.float32(self.a.scale / len(self.offsets_s))
        bases = [(self._turning, g.G_a, g.G_b)]
        if self._moving is not None and g.T_a is not None and g.T_b is not None:
            bases.append((self._moving, g.T_a, g.T_b))
        by_a, by_b = [], []
        for basis, G_a, G_b in bases:
            in_a, in_b, mean_b = (
                s * G.astype(np.float32)[:, None, :, :, None] for G in (inverse(g.warp) @ G_b, g.warp @ G_a, G_b)
            )
            by_a.append(-basis.about_b[:, :, None, None] * in_a)
            by_b.append(basis.shift[:, None, None, None] * mean_b - basis.about_a[:, :, None, None] * in_b)
        return _with_light(by_a), _with_light(by_b)

    def columns(self, translation_from: int) -> NDArray[np.int64]:
        """Where the Jacobian's columns belong among the unknowns (c, d), which are ordered knot by knot."""
        axes = np.arange(3)[:, None]
        turning, moving = self._turning.knots, self._moving.knots if self._moving else slice(0, 0)
        return np.concatenate([
            (3 * np.arange(turning.start, turning.stop) + axes).ravel(),
            (translation_from + 3 * np.arange(moving.start, moving.stop) + axes).ravel(),
        ])


def geometries(pairs: Sequence[PairTerm], state: SplineState) -> list[Geometry]:
    """Where every patch's point is seen along both exposures, x = π(K Rᵀ(m̄ − ρ(p − p̄))), about frame a's mean.

    All pairs at once, for each is small.
    """
    camera = pairs[0].camera
    phi_a, phi_b, phi_mean, *free = (np.concatenate(part) for part in zip(*(pair.motion(state) for pair in pairs)))
    rays, ideal, tracks = (
        np.concatenate(part) for part in zip(*((p.rays, p.patches.ideal, p.patches.tracks) for p in pairs))
    )
    if state.lever_arm_m is None:
        p_a, p_b = free
    else:
        p_a, p_b = (so3.rotate(phi, state.lever_arm_m) - state.lever_arm_m for phi in (phi_a, phi_b))
    p_mean = p_a.mean(axis=1)
    anchor, rho = so3.rotate(phi_mean, rays), _rho_in_a(state, tracks, phi_mean, p_mean)

    def seen(phi: FloatArray, p: FloatArray) -> FloatArray:
        return camera.project(so3.rotate(-phi, anchor[:, None] - rho[:, None, None] * (p - p_mean[:, None])))

    x_a, x_b = seen(phi_a, p_a), seen(phi_b, p_b)
    x_mean = x_a.mean(axis=1)
    by_a = _sensitivity(camera, x_mean, rho, phi_mean, state)
    phi_middle = phi_b[:, phi_b.shape[1] // 2]
    by_b = _sensitivity(camera, x_b.mean(axis=1), rho, phi_middle, state)
    R_b_from_a = np.swapaxes(so3.exp(phi_middle), 1, 2) @ so3.exp(phi_mean)
    warp = turn_of_picture(camera, x_b.mean(axis=1), (R_b_from_a[:, 2] * rays).sum(axis=1), R_b_from_a)
    parts = (x_a - x_mean[:, None], x_b - ideal[:, None], warp, by_a[0], by_b[0], by_a[1], by_b[1])
    ends = np.cumsum([len(pair.rays) for pair in pairs])
    return [
        Geometry(*(part if part is None else part[end - len(pair.rays) : end] for part in parts))  # type: ignore[arg-type]
        for pair, end in zip(pairs, ends)
    ]


def turn_of_picture(camera: Camera, ideal: FloatArray, z: FloatArray, R_b_from_a: FloatArray) -> FloatArray:
    """∂x_b/∂x_a (P, 2, 2) at constant depth; ideal (P, 2) px in b, z (P,) depth in b in units of that in a."""
    per_ray = J_translation(camera, ideal) @ R_b_from_a[:, :, :2] / -z[:, None, None]
    return np.asarray(per_ray / (camera.fx, camera.fy))


def sampled(picture: Float32Array, centres: Float32Array, q: Float32Array) -> Float32Array:
    """Pixels q (n, 2) or (P, n, 2) about centres (P, S, 2): (P, n, S), or (P, n, S, channels)."""
    P, S = centres.shape[:2]
    at = (centres[:, None] + q[..., None, :]).reshape(P, -1, 2)
    nothing: Any = None  # both coordinates are in the first map
    out: NDArray[Any] = cv2.remap(picture, at, nothing, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return out.reshape(P, q.shape[-2], S, *picture.shape[2:])


def inverse(m: FloatArray) -> FloatArray:
    """Of matrices (P, 2, 2); far faster than the general one."""
    (a, b), (c, d) = np.moveaxis(m, 0, -1)
    return np.moveaxis(np.array([[d, -b], [-c, a]]) / (a * d - b * c), -1, 0)


def _rho_in_a(state: SplineState, tracks: NDArray[np.int64], phi: FloatArray, p: FloatArray) -> FloatArray:
    """Inverse depth of every patch in frame a."""
    m = np.concatenate([state.ray[tracks], np.ones((len(tracks), 1))], axis=1) - state.rho[tracks, None] * p
    return state.rho[tracks] / np.maximum(so3.rotate(-phi, m)[:, 2], 0.2)


def _sensitivity(
    camera: Camera, ideal: FloatArray, rho: FloatArray, phi: FloatArray, state: SplineState
) -> tuple[FloatArray, FloatArray | None]:
    """Pixels per radian of the rotation spline and per metre of the translation spline."""
    A = J_translation(camera, ideal) * rho[:, None, None]
    G = J_rotation(camera, ideal)
    if state.lever_arm_m is not None:
        return G - A @ so3.hat(state.lever_arm_m), None
    return G, A @ np.swapaxes(so3.exp(phi), 1, 2)


def _with_light(moved: list[Float32Array]) -> Float32Array:
    """∂x_s / S by each spline's knots, (P, S, 2, 3, K) → (P, 3 S, 1 + columns): the first column takes the light."""
    P, S = moved[0].shape[:2]
    flat = [part.reshape(P, S, 2, -1) for part in moved]
    out = np.zeros((P, S, 3, 1 + sum(part.shape[3] for part in flat)), np.float32)
    out[:, :, 0, 0] = 1 / S
    first = 1
    for part in flat:
        out[:, :, 1:, first : first + part.shape[3]] = part
        first += part.shape[3]
    return out.reshape(P, 3 * S, -1)


def compared(
    sampled_a: Float32Array, by_a: Float32Array, sampled_b: Float32Array, by_b: Float32Array
) -> tuple[Float32Array, ...]:
    """Residual, contrast and Jacobian of a ``Comparison`` from the samples (P, n, S, 3) of both patches.

    by_a, by_b (P, 3 S, 1 + columns) take the samples to light and its derivatives. Both patches are brought to one
    contrast, r = a √(n_b/n_a) − b √(n_a/n_b) with n = √(mean i² + 1), and n moves as well.
    """
    P, n = sampled_a.shape[:2]
    blurred_a, blurred_b = sampled_a.reshape(P, n, -1) @ by_a, sampled_b.reshape(P, n, -1) @ by_b
    a, b, contrast, power, gain = _normalised(blurred_a[..., 0], blurred_b[..., 0])
    J_a, J_b = blurred_a[..., 1:], blurred_b[..., 1:]
    J_a *= gain[:, None, None]
    J_b /= gain[:, None, None]
    brighter = b[:, None] @ J_b - a[:, None] @ J_a
    J = np.subtract(J_a, J_b)
    mean = np.full((1, n), np.float32(1 / n)) @ J
    common = (a + b) * (0.5 / (n * power))[:, None]
    J += np.stack([np.full_like(a, -1), common], axis=2) @ np.concatenate([mean, brighter], axis=1)
    return a - b, contrast, J


def _normalised(
    i_a: Float32Array, i_b: Float32Array
) -> tuple[Float32Array, Float32Array, Float32Array, Float32Array, Float32Array]:
    """Patches (P, n) brought to no mean and one contrast; RMS contrast before, common power, first's gain (P,)."""
    i_a, i_b = i_a - i_a.mean(axis=1, keepdims=True), i_b - i_b.mean(axis=1, keepdims=True)
    power_a, power_b = (i_a**2).mean(axis=1), (i_b**2).mean(axis=1)
    gain = ((power_b + 1) / (power_a + 1)) ** 0.25
    power = np.sqrt((power_a + 1) * (power_b + 1))
    return i_a * gain[:, None], i_b / gain[:, None], np.sqrt((power_a + power_b) / 2), power, gain
