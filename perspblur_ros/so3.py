"""Rotations in three dimensions: exponential, logarithm, Jacobians, interpolation.

Rotation vectors φ are radians; R = exp(φ). Increments are on the right (body frame): R ← R exp(δ).
Batches lead: φ is (..., 3), R is (..., 3, 3). scipy's ``Rotation`` does the conversions where it is as direct.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

FloatArray = NDArray[np.float64]

_SMALL_RAD2 = 1e-8  # below this squared angle the Taylor series is exact to double precision
_NEARLY_REVERSED = -0.9  # cos θ below which the logarithm is left to scipy


def hat(v: ArrayLike) -> FloatArray:
    """Skew matrix [v]× with [v]× w = v × w; (..., 3) → (..., 3, 3)."""
    v = np.asarray(v, float)
    out = np.zeros((*v.shape, 3))
    out[..., 0, 1], out[..., 0, 2] = -v[..., 2], v[..., 1]
    out[..., 1, 0], out[..., 1, 2] = v[..., 2], -v[..., 0]
    out[..., 2, 0], out[..., 2, 1] = -v[..., 1], v[..., 0]
    return out


def rotate(phi: ArrayLike, v: ArrayLike) -> FloatArray:
    """exp(φ) v without the matrices; φ and v (..., 3), broadcast against each other."""
    phi, v = np.asarray(phi, float), np.asarray(v, float)
    a, b = _rodrigues(np.einsum("...i,...i->...", phi, phi)[..., None])
    once = _cross(phi, v)
    return v + a * once + b * _cross(phi, once)


def _cross(a: FloatArray, b: FloatArray) -> FloatArray:
    out = np.empty(np.broadcast_shapes(a.shape, b.shape))
    ax, ay, az = a[..., 0], a[..., 1], a[..., 2]
    bx, by, bz = b[..., 0], b[..., 1], b[..., 2]
    out[..., 0] = ay * bz - az * by
    out[..., 1] = az * bx - ax * bz
    out[..., 2] = ax * by - ay * bx
    return out


def exp(phi: ArrayLike) -> FloatArray:
    """Rotation matrix of a rotation vector (Rodrigues); (..., 3) → (..., 3, 3)."""
    phi = np.asarray(phi, float)
    x, y, z = phi[..., 0], phi[..., 1], phi[..., 2]
    angle2 = x * x + y * y + z * z
    a, b = _rodrigues(angle2)
    return _about(phi, 1.0 - b * angle2, b, a)


def _rodrigues(angle2: FloatArray) -> tuple[FloatArray, FloatArray]:
    """sin θ / θ and (1 − cos θ) / θ² of squared angles."""
    small = angle2 < _SMALL_RAD2
    safe2 = np.where(small, 1.0, angle2)
    angle = np.sqrt(safe2)
    a = np.where(small, 1.0 - angle2 / 6.0, np.sin(angle) / angle)
    b = np.where(small, 0.5 - angle2 / 24.0, (1.0 - np.cos(angle)) / safe2)
    return a, b


def _about(phi: FloatArray, c: FloatArray, b: FloatArray, a: FloatArray) -> FloatArray:
    """c I + b φφᵀ + a [φ]×, written out."""
    x, y, z = phi[..., 0], phi[..., 1], phi[..., 2]
    bx, by, bz, ax, ay, az = b * x, b * y, b * z, a * x, a * y, a * z
    R = np.empty((*phi.shape[:-1], 3, 3))
    R[..., 0, 0], R[..., 0, 1], R[..., 0, 2] = c + bx * x, bx * y - az, bx * z + ay
    R[..., 1, 0], R[..., 1, 1], R[..., 1, 2] = bx * y + az, c + by * y, by * z - ax
    R[..., 2, 0], R[..., 2, 1], R[..., 2, 2] = bx * z - ay, by * z + ax, c + bz * z
    return R


def log(R: ArrayLike) -> FloatArray:
    """Rotation vector of a rotation matrix, angle in [0, π]; (..., 3, 3) → (..., 3)."""
    R = np.asarray(R, float)
    v = np.empty(R.shape[:-1])  # the axis times sin θ
    v[..., 0] = R[..., 2, 1] - R[..., 1, 2]
    v[..., 1] = R[..., 0, 2] - R[..., 2, 0]
    v[..., 2] = R[..., 1, 0] - R[..., 0, 1]
    v *= 0.5
    cos = 0.5 * (R[..., 0, 0] + R[..., 1, 1] + R[..., 2, 2] - 1.0)
    sin2 = np.einsum("...i,...i->...", v, v)
    small = sin2 < _SMALL_RAD2
    sin = np.sqrt(np.where(small, 1.0, sin2))
    phi: FloatArray = v * np.where(small, 1.0 + sin2 / 6.0, np.arctan2(sin, cos) / sin)[..., None]
    far = cos < _NEARLY_REVERSED
    if far.any():  # sin θ no longer tells the axis
        phi[far] = Rotation.from_matrix(R[far]).as_rotvec()
    return phi


def J_right(phi: ArrayLike) -> FloatArray:
    """Right Jacobian: exp(φ + δ) ≈ exp(φ) exp(J_right(φ) δ); also ω_body = J_right(φ) dφ/dt."""
    phi = np.asarray(phi, float)
    x, y, z = phi[..., 0], phi[..., 1], phi[..., 2]
    angle2 = x * x + y * y + z * z
    small = angle2 < _SMALL_RAD2
    safe2 = np.where(small, 1.0, angle2)
    angle = np.sqrt(safe2)
    b = np.where(small, 0.5 - angle2 / 24.0, (1.0 - np.cos(angle)) / safe2)
    c = np.where(small, 1.0 / 6.0 - angle2 / 120.0, (angle - np.sin(angle)) / (safe2 * angle))
    return _about(phi, 1.0 - c * angle2, c, -b)


def J_right_inv(phi: ArrayLike) -> FloatArray:
    """Inverse of ``J_right``: log(exp(φ) exp(δ)) ≈ φ + J_right_inv(φ) δ. Valid below a full turn."""
    return np.asarray(np.linalg.inv(J_right(phi)), float).astype(float)


def mean(R: FloatArray, weights: ArrayLike | None = None) -> FloatArray:
    """Chordal L2 mean of rotations (N, 3, 3) → (3, 3)."""
    return Rotation.from_matrix(R).mean(weights=weights).as_matrix()


def to_quat_xyzw(R: ArrayLike) -> FloatArray:
    """(..., 3, 3) → (..., 4) unit quaternions x y z w."""
    R = np.asarray(R, float)
    return Rotation.from_matrix(R.reshape(-1, 3, 3)).as_quat().reshape(*R.shape[:-2], 4)


def from_quat_xyzw(q: ArrayLike) -> FloatArray:
    """(..., 4) quaternions x y z w → (..., 3, 3)."""
    q = np.asarray(q, float)
    return Rotation.from_quat(q.reshape(-1, 4)).as_matrix().reshape(*q.shape[:-1], 3, 3)


def interpolate(t_s: ArrayLike, knots_s: ArrayLike, R_knots: FloatArray) -> FloatArray:
    """Piecewise geodesic interpolation (slerp); times outside are held at the ends.

    t_s (...), knots_s (N,) strictly increasing, R_knots (N, 3, 3) → (..., 3, 3).
    """
    t = np.asarray(t_s, float)
    knots = np.asarray(knots_s, float)
    if len(knots) == 1:
        return np.broadcast_to(R_knots[0], (*t.shape, 3, 3)).copy()
    i = np.clip(np.searchsorted(knots, t, side="right") - 1, 0, len(knots) - 2)
    alpha = np.clip((t - knots[i]) / (knots[i + 1] - knots[i]), 0.0, 1.0)
    step = log(np.swapaxes(R_knots[:-1], -1, -2) @ R_knots[1:])
    return R_knots[i] @ exp(alpha[..., None] * step[i])
