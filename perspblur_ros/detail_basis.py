"""The motion inside a frame as a few cosine coefficients, and how a spline's knots move them.

The path of a frame is ψ(t) = log(R̄ᵀ R(t)), R̄ the frame's mean rotation, in pixel units (ψ_x f, ψ_y f, ψ_z W/3): what
an image point sees of it. Over the exposure it is a sum of amplitudes times cos(πk(i + ½)/n), k = 1 … ORDERS, i the
n even samples (DCT-II): free of mean by construction, and the same coefficients serve any number of samples.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from . import so3
from .camera import Camera
from .spline_state import SplineState

FloatArray = NDArray[np.float64]

ORDERS = 4
SAMPLES = 24  # over the exposure, where a path is analysed
PER_FRAME = 3 * (ORDERS + 1)  # coefficients of a frame: ORDERS × 3, then the 3 of its mean
MEAN_ITERATIONS = 3


@lru_cache(maxsize=64)
def synthesis(n: int) -> FloatArray:
    """Coefficients (ORDERS, ...) → n samples: the matrix (n, ORDERS)."""
    return np.cos(np.pi / n * (np.arange(n)[:, None] + 0.5) * np.arange(1, ORDERS + 1))


def analysis(n: int) -> FloatArray:
    """Samples (n, ...) → coefficients: the matrix (ORDERS, n), least squares for n > ORDERS."""
    return synthesis(n).T * (2 / n)


def pixel_units(camera: Camera) -> FloatArray:
    """Pixels per radian about x, y, z (3,): roll counts at a third of the width from the centre."""
    return np.array([camera.focal_px, camera.focal_px, camera.width / 3])


def sample_offsets_s(exposure_s: float) -> FloatArray:
    """Times of the ``SAMPLES`` even samples relative to the mid-exposure (SAMPLES,)."""
    return ((np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5) * exposure_s


def path_about_mean(R: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Rotations (..., n, 3, 3) → rotation vectors about their mean (..., n, 3), free of mean; the mean (..., 3, 3)."""
    mean = R[..., R.shape[-3] // 2, :, :]
    for _ in range(MEAN_ITERATIONS):
        mean = mean @ so3.exp(_about(mean, R).mean(axis=-2))
    return _about(mean, R), mean


def _about(mean: FloatArray, R: FloatArray) -> FloatArray:
    return so3.log(np.swapaxes(mean, -1, -2)[..., None, :, :] @ R)


def coefficients(R: FloatArray, px: FloatArray) -> FloatArray:
    """Rotations at n even samples of a frame's exposure (..., n, 3, 3) → (..., ORDERS, 3), pixel units ``px``."""
    return analysis(R.shape[-3]) @ path_about_mean(R)[0] * px


def knot_map(state: SplineState, mid_s: float, exposure_s: float, px: FloatArray) -> FloatArray:
    """Change of a frame's coefficients and of its mean rotation by the rotation knots, (PER_FRAME, 3 · count).

    First order about ``state``: a small δφ of the spline turns the camera by J_right(φ) δφ, in its own axes.
    """
    rows = state.grid.rows(mid_s + sample_offsets_s(exposure_s))
    parts = np.concatenate([analysis(SAMPLES) @ rows, rows.mean(axis=0, keepdims=True)])
    J = px[:, None] * so3.J_right(rows.mean(axis=0) @ state.c)
    moved: FloatArray = np.einsum("ok,ab->oakb", parts, J)
    return moved.reshape(PER_FRAME, -1)
