"""The cross-blur residual of two neighbouring frames, and its derivative by the spline's knots."""

from __future__ import annotations

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
    held_out: NDArray[np.bool_]


@dataclass(frozen=True)
class Geometry:
    """Both frames' paths for every patch, displacements (P, S, 2) raw px, and what moves them.

    path_a  about its mean; path_b about the anchor, the tracked point in the first frame
    G_a, G_b (P, 2, 3) px per rad; T_a, T_b (P, 2, 3) px per m, None where the lever arm ties translation to rotation
    """

    path_a: FloatArray
    path_b: FloatArray
    G_a: FloatArray
    G_b: FloatArray
    T_a: FloatArray | None
    T_b: FloatArray | None


@dataclass(frozen=True)
class Comparison:
    """Both blurred patches of every place, without mean and at one contrast.

    a, b                 (P, n)
    contrast             (P,) RMS before, the mean of both
    power                (P,) mean square that both were brought to
    gain                 (P,) what the first was multiplied by, and the second divided by
    sampled_a, sampled_b (P, n, S, 3) light and its two gradients; mean_b (P, n, 3) the second's mean
    """

    a: Float32Array
    b: Float32Array
    contrast: Float32Array
    power: Float32Array
    gain: Float32Array
    sampled_a: Float32Array
    sampled_b: Float32Array
    mean_b: Float32Array

    @property
    def residual(self) -> Float32Array:
        return self.a - self.b

    @property
    def rms(self) -> Float32Array:
        return np.sqrt(((self.a - self.b) ** 2).mean(axis=1))

    @property
    def disagreement(self) -> FloatArray:
        """Residual relative to contrast (P,)."""
        return _disagreement(self.a, self.b, self.power)


@dataclass(frozen=True)
class _Basis:
    """Values of one spline's basis functions (P, S, K) over both exposures, and what the Jacobian needs of them.

    Paths are about frame a's mean: ``about_a`` and ``about_b`` (P, K, S) are about each frame's own mean, ``shift``
    (P, K) is from a's mean to b's.
    """

    rows_a: FloatArray
    rows_b: FloatArray
    mean_a: FloatArray
    about_a: Float32Array
    about_b: Float32Array
    shift: Float32Array

    @classmethod
    def of(cls, grid: KnotGrid, t_a: FloatArray, t_b: FloatArray, knots: slice | None = None) -> _Basis:
        rows_a, rows_b = grid.rows(t_a, knots), grid.rows(t_b, knots)
        mean_a, mean_b = rows_a.mean(axis=1), rows_b.mean(axis=1)
        about_a, about_b = (
            np.ascontiguousarray((rows - mean[:, None]).transpose(0, 2, 1), np.float32)
            for rows, mean in ((rows_a, mean_a), (rows_b, mean_b))
        )
        return cls(rows_a, rows_b, mean_a, about_a, about_b, (mean_b - mean_a).astype(np.float32))


class PairTerm:
    """The cross-blur residual of one pair of neighbouring frames, for splines on the grids of ``like``."""

    def __init__(
        self, a: View, b: View, patches: Patches, camera: Camera, exposure_s: float, subsamples: int, like: SplineState
    ) -> None:
        self.a, self.b, self.patches, self.camera = a, b, patches, camera
        self.offsets_s = ((np.arange(subsamples) + 0.5) / subsamples - 0.5) * exposure_s
        t_a = a.mid_s + patches.row_s[:, 0, None] + self.offsets_s
        t_b = b.mid_s + patches.row_s[:, 1, None] + self.offsets_s
        self.knots = like.grid.span(float(t_a.min()), float(t_b.max()))
        self._turning = _Basis.of(like.grid, t_a, t_b, self.knots)
        self._free_translation = like.lever_arm_m is None
        self._moving = _Basis.of(like.translation_grid, t_a, t_b) if self._free_translation else None
        self._rays = camera.rays(patches.ideal)
        self._anchor = (patches.raw + 0.5) * a.scale - 0.5
        q = np.arange(PATCH) - PATCH // 2
        self._q = np.stack(np.meshgrid(q, q), axis=-1).reshape(-1, 2).astype(np.float32)

    def geometry(self, state: SplineState) -> Geometry:
        """Where every patch's point is seen along both exposures: x = π(K Rᵀ(m̄ − ρ(p − p̄))), about frame a's mean."""
        basis, c = self._turning, state.c[self.knots]
        phi_a, phi_b = basis.rows_a @ c, basis.rows_b @ c
        phi_mean = basis.mean_a @ c
        p_a, p_b = self._positions(state, phi_a, phi_b)
        p_mean = p_a.mean(axis=1)
        anchor = so3.rotate(phi_mean, self._rays)
        rho = self._rho_in_a(state, phi_mean, p_mean)

        def seen(phi: FloatArray, p: FloatArray) -> FloatArray:
            v = anchor[:, None] - rho[:, None, None] * (p - p_mean[:, None])
            return self.camera.project(so3.rotate(-phi, v))

        x_a, x_b = seen(phi_a, p_a), seen(phi_b, p_b)
        G_a, T_a = self._sensitivity(x_a.mean(axis=1), rho, phi_mean, state)
        G_b, T_b = self._sensitivity(x_b.mean(axis=1), rho, phi_b[:, len(self.offsets_s) // 2], state)
        return Geometry(
            x_a - x_a.mean(axis=1, keepdims=True), x_b - self.patches.ideal[:, None], G_a, G_b, T_a, T_b
        )

    def _positions(self, state: SplineState, phi_a: FloatArray, phi_b: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Camera positions in the reference frame along both exposures, (P, S, 3) metres."""
        if self._moving is not None:
            return self._moving.rows_a @ state.d, self._moving.rows_b @ state.d
        r = np.asarray(state.lever_arm_m, float)
        return so3.rotate(phi_a, r) - r, so3.rotate(phi_b, r) - r

    def _rho_in_a(self, state: SplineState, phi: FloatArray, p: FloatArray) -> FloatArray:
        """Inverse depth of every patch in frame a."""
        j = self.patches.tracks
        m = np.concatenate([state.ray[j], np.ones((len(j), 1))], axis=1) - state.rho[j, None] * p
        return state.rho[j] / np.maximum(so3.rotate(-phi, m)[:, 2], 0.2)

    def _sensitivity(
        self, ideal: FloatArray, rho: FloatArray, phi: FloatArray, state: SplineState
    ) -> tuple[FloatArray, FloatArray | None]:
        """Pixels per radian of the rotation spline and per metre of the translation spline."""
        A = J_translation(self.camera, ideal) * rho[:, None, None]
        G = J_rotation(self.camera, ideal)
        if state.lever_arm_m is not None:
            return G - A @ so3.hat(state.lever_arm_m), None
        return G, A @ np.swapaxes(so3.exp(phi), 1, 2)

    def compare(self, g: Geometry) -> Comparison:
        """Both blurred patches compared, with what their gradients contribute."""
        at_a, at_b = self._centres(g)
        sampled_a, sampled_b = self._sampled(self.a.picture, at_a), self._sampled(self.b.picture, at_b)
        mean_a, mean_b = _mean_along(sampled_a), _mean_along(sampled_b)
        return Comparison(*_normalised(mean_a[..., 0], mean_b[..., 0]), sampled_a, sampled_b, mean_b)

    def disagreement(self, g: Geometry) -> FloatArray:
        """``Comparison.disagreement`` without the gradients (P,)."""
        at_a, at_b = self._centres(g)
        light_a = self._sampled(self.a.light, at_a).mean(axis=2)
        light_b = self._sampled(self.b.light, at_b).mean(axis=2)
        a, b, _, power, _ = _normalised(light_a, light_b)
        return _disagreement(a, b, power)

    def _centres(self, g: Geometry) -> tuple[Float32Array, Float32Array]:
        """Where the patches of both frames are read, (P, S, 2) working pixels: each along the other's path."""
        s = self.a.scale
        mean_b = g.path_b.mean(axis=1)
        at_a = self._anchor[:, None] - (g.path_b - mean_b[:, None]) * s
        at_b = (self._anchor + mean_b * s)[:, None] - g.path_a * s
        return at_a.astype(np.float32), at_b.astype(np.float32)

    def _sampled(self, picture: Float32Array, centres: Float32Array) -> Float32Array:
        """Patches around centres (P, S, 2): (P, n, S), or (P, n, S, channels)."""
        P, S = centres.shape[:2]
        at = (centres[:, None] + self._q[:, None]).reshape(P, -1, 2)
        nothing: Any = None  # both coordinates are in the first map
        out: NDArray[Any] = cv2.remap(picture, at, nothing, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return out.reshape(P, len(self._q), S, *picture.shape[2:])

    def jacobian(self, g: Geometry, compared: Comparison, patches: NDArray[np.int64]) -> Float32Array:
        """∂residual of some patches (patches, n, 3·knots + 3·translation knots), axis by axis: ``columns``.

        With E_a = −∇I_a G_b and E_b = −∇I_b G_a along each other's paths, ∂a = mean_s b_b(s) E_a(s) and
        ∂b = mean_s b_a(s) E_b(s) + (b̄_b − b̄_a) mean_s ∇I_b G_b; mean and contrast are taken off E, which is smaller.
        """
        J = self._by_knots(g.G_a, g.G_b, self._turning, compared, patches)
        if self._moving is None or g.T_a is None or g.T_b is None:
            return J
        return np.concatenate([J, self._by_knots(g.T_a, g.T_b, self._moving, compared, patches)], axis=2)

    def columns(self, translation_from: int) -> NDArray[np.int64]:
        """Where the Jacobian's columns belong among the unknowns (c, d), which are ordered knot by knot."""
        axes = np.arange(3)[:, None]
        turning = (3 * np.arange(self.knots.start, self.knots.stop) + axes).ravel()
        if self._moving is None:
            return turning
        moving = (translation_from + 3 * np.arange(self._moving.rows_a.shape[2]) + axes).ravel()
        return np.concatenate([turning, moving])

    def _by_knots(
        self, G_a: FloatArray, G_b: FloatArray, basis: _Basis, compared: Comparison, patches: NDArray[np.int64]
    ) -> Float32Array:
        P, n, S = len(patches), len(self._q), compared.sampled_a.shape[2]
        gain = (compared.gain[patches] * np.float32(self.a.scale))[:, None, None]
        other_gain = np.float32(self.a.scale) ** 2 / gain
        E = np.empty((P, n, 3, 2 * S + 1), np.float32)
        _along(compared.sampled_a[patches], G_b[patches] / -S * gain, out=E[..., :S])
        _along(compared.sampled_b[patches], G_a[patches] / S * other_gain, out=E[..., S : 2 * S])
        _along(compared.mean_b[patches, :, None], -G_b[patches] * other_gain, out=E[..., 2 * S :])
        # bringing both to one contrast: r = a √(n_b/n_a) − b √(n_a/n_b), n = √(mean i² + 1)
        a, b = compared.a[patches], compared.b[patches]
        common = (a + b) * (0.5 / (n * compared.power[patches]))[:, None]
        flat = E.reshape(P, n, -1)
        changes = np.stack([np.full_like(a, 1 / n), a, b], axis=1) @ flat  # (P, 3, 3 · 2S+1): means, and of contrasts
        changes = changes.reshape(P, 3, 3, -1)
        contrast = np.concatenate([changes[:, 1, :, :S], changes[:, 2, :, S:]], axis=2).reshape(P, 1, -1)
        flat -= changes[:, 0].reshape(P, 1, -1)
        flat -= common[:, :, None] * contrast
        rows = np.concatenate([basis.about_b[patches], basis.about_a[patches], basis.shift[patches, :, None]], axis=2)
        return (E.reshape(P, 3 * n, -1) @ rows.transpose(0, 2, 1)).reshape(P, n, -1)


def _mean_along(sampled: Float32Array) -> Float32Array:
    """Mean over the path: (P, n, S, 3) → (P, n, 3), as one matrix product."""
    P, n, S, channels = sampled.shape
    mean = np.tile(np.eye(channels, dtype=np.float32) / S, (S, 1))
    return (sampled.reshape(P * n, S * channels) @ mean).reshape(P, n, channels)


def _along(sampled: Float32Array, G: FloatArray, out: Float32Array) -> None:
    """The gradients of ``sampled`` (P, n, S, 3) times G (P, 2, 3), into (P, n, 3, S)."""
    by_x, by_y = (G[:, axis, None, :, None].astype(np.float32) for axis in (0, 1))
    np.multiply(sampled[:, :, None, :, 1], by_x, out=out)
    out += sampled[:, :, None, :, 2] * by_y


def _normalised(
    i_a: Float32Array, i_b: Float32Array
) -> tuple[Float32Array, Float32Array, Float32Array, Float32Array, Float32Array]:
    """Patches (P, n) brought to no mean and one contrast; RMS contrast before, common power, first's gain (P,)."""
    i_a, i_b = i_a - i_a.mean(axis=1, keepdims=True), i_b - i_b.mean(axis=1, keepdims=True)
    power_a, power_b = (i_a**2).mean(axis=1), (i_b**2).mean(axis=1)
    gain = ((power_b + 1) / (power_a + 1)) ** 0.25
    power = np.sqrt((power_a + 1) * (power_b + 1))
    return i_a * gain[:, None], i_b / gain[:, None], np.sqrt((power_a + power_b) / 2), power, gain


def _disagreement(a: Float32Array, b: Float32Array, power: Float32Array) -> FloatArray:
    """RMS difference relative to contrast (P,): a long path averages both away, and that proves nothing."""
    return np.sqrt(np.asarray(((a - b) ** 2).mean(axis=1) / power, float))
