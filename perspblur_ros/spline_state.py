"""The continuous-time trajectory of one window: rotation and translation splines about a reference time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import so3
from .bspline import KnotGrid

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class SplineState:
    """A solved (or guessed) window: the trajectory relative to the reference time, and the landmarks.

    c (count × 3) rotation knots, rad; d (count × 3) translation knots, m; ray (N, 2); rho (N,) 1/m.
    """

    grid: KnotGrid
    c: FloatArray
    translation_grid: KnotGrid
    d: FloatArray
    ids: NDArray[np.int64]
    ray: FloatArray
    rho: FloatArray
    ref_s: float
    lever_arm_m: FloatArray | None

    def rotation(self, t_s: FloatArray) -> FloatArray:
        """R_ref_from_cam at ``t_s`` (...), (..., 3, 3)."""
        return so3.exp(self.grid.rows(t_s) @ self.c)

    def rate(self, t_s: FloatArray) -> FloatArray:
        """Body rate ω = J_right(φ) φ̇ at ``t_s``, rad/s, (M, 3)."""
        phi, phi_dot = self.grid.rows(t_s) @ self.c, self.grid.rate_rows(t_s) @ self.c
        return np.einsum("nij,nj->ni", so3.J_right(phi), phi_dot)

    def position(self, rows: FloatArray, R: FloatArray) -> FloatArray:
        """Camera position in the reference frame, metres; ``rows`` are translation-basis rows (M, count)."""
        if self.lever_arm_m is not None:
            return R @ self.lever_arm_m - self.lever_arm_m
        return rows @ self.d
