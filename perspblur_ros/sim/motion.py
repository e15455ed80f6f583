"""Rotation paths: where the camera points, and where its pivot is, at every instant.

Rates are body rates in the optical frame (x right, y down, z forward), rad/s. Times are seconds from the start of the
path, a difference and therefore a float. A path is sampled densely and interpolated along geodesics.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import Akima1DInterpolator

from .. import so3
from ..errors import BagError, ConfigError

FloatArray = NDArray[np.float64]

_MAX_GAP = 8  # of a recording, in median sampling intervals
STEP_S = 0.001  # of integration; 10 rad/s turns 10 mrad in it


@dataclass(frozen=True)
class MotionPath:
    """A sampled path. The reference ("ref") is the pose from which the scene's picture was taken.

    t_s              N, uniform from 0
    R_ref_from_cam   N × 3 × 3
    omega            N × 3, body rate, rad/s
    pivot_m          N × 3, displacement of the pivot from its place at the reference, metres, in the reference frame
    """

    t_s: FloatArray
    R_ref_from_cam: FloatArray
    omega: FloatArray
    pivot_m: FloatArray

    @cached_property
    def _steps(self) -> FloatArray:
        """Rotation vector from each sample to the next, (N − 1, 3)."""
        return so3.log(np.swapaxes(self.R_ref_from_cam[:-1], -1, -2) @ self.R_ref_from_cam[1:])

    @property
    def duration_s(self) -> float:
        return float(self.t_s[-1])

    def rotation(self, t_s: ArrayLike) -> FloatArray:
        """R_ref_from_cam at times of any shape (...) → (..., 3, 3); held beyond the ends."""
        t = np.asarray(t_s, float)
        i, alpha = self._locate(t)
        return self.R_ref_from_cam[i] @ so3.exp(alpha[..., None] * self._steps[i])

    def rate(self, t_s: ArrayLike) -> FloatArray:
        """Body rate (..., 3) rad/s, linear between the samples."""
        return self._linear(self.omega, t_s)

    def pivot(self, t_s: ArrayLike) -> FloatArray:
        """Displacement of the pivot (..., 3), metres, linear between the samples."""
        return self._linear(self.pivot_m, t_s)

    def centred(self, from_s: float, to_s: float) -> MotionPath:
        """The same motion with the reference at its mean pose over [from_s, to_s]: keeps the view near the picture."""
        inside = (self.t_s >= from_s) & (self.t_s <= to_s)
        R_old_from_new = so3.mean(self.R_ref_from_cam[inside])
        pivot = (self.pivot_m - self.pivot_m[inside].mean(axis=0)) @ R_old_from_new
        return replace(self, R_ref_from_cam=R_old_from_new.T @ self.R_ref_from_cam, pivot_m=pivot)

    def reversed(self) -> MotionPath:
        """The same poses visited in the opposite order."""
        return MotionPath(
            self.t_s, self.R_ref_from_cam[::-1].copy(), -self.omega[::-1], self.pivot_m[::-1].copy()
        )

    def _linear(self, values: FloatArray, t_s: ArrayLike) -> FloatArray:
        i, alpha = self._locate(np.asarray(t_s, float))
        return values[i] + alpha[..., None] * (values[i + 1] - values[i])

    def _locate(self, t: FloatArray) -> tuple[NDArray[np.intp], FloatArray]:
        i = np.clip(np.searchsorted(self.t_s, t, side="right") - 1, 0, len(self.t_s) - 2)
        alpha = np.clip((t - self.t_s[i]) / (self.t_s[i + 1] - self.t_s[i]), 0.0, 1.0)
        return i, alpha


def from_rates(t_s: ArrayLike, omega: ArrayLike, pivot_m: ArrayLike | None = None) -> MotionPath:
    """Integrate body rates on SO(3).

    t_s (N,) uniform from 0; omega (N, 3) rad/s. Each step is the exponential of the mean rate of its two ends, so the
    path is exact for rates constant over a step. pivot_m (N, 3) defaults to a pivot at rest.
    """
    t = np.asarray(t_s, float)
    w = np.asarray(omega, float)
    steps = so3.exp(0.5 * (w[:-1] + w[1:]) * np.diff(t)[:, None])
    R = np.empty((len(t), 3, 3))
    R[0] = np.eye(3)
    for k, step in enumerate(steps):
        R[k + 1] = R[k] @ step
    R = so3.from_quat_xyzw(so3.to_quat_xyzw(R))  # rounding of a long product
    return MotionPath(t, R, w, np.zeros_like(w) if pivot_m is None else np.asarray(pivot_m, float))


def constant_rate(omega: ArrayLike, duration_s: float) -> MotionPath:
    """A steady turn with body rate ``omega`` (3,) rad/s."""
    t = time_grid(duration_s)
    return from_rates(t, np.broadcast_to(np.asarray(omega, float), (len(t), 3)))


def time_grid(duration_s: float) -> FloatArray:
    """Sample times from 0 to at least ``duration_s``, every ``STEP_S``."""
    return STEP_S * np.arange(int(np.ceil(duration_s / STEP_S - 1e-9)) + 1, dtype=float)


def read_gyro_csv(path: Path) -> tuple[FloatArray, FloatArray]:
    """Times (N,) s and rates (N, 3) rad/s of a recording ``t_s,wx,wy,wz`` with one header line."""
    if not path.is_file():
        raise BagError(f"gyro recording {path} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns of an empty file, which is refused below
            rows = np.loadtxt(path, delimiter=",", skiprows=1, usecols=(0, 1, 2, 3), ndmin=2)
    except (ValueError, UnicodeDecodeError, IndexError):
        raise BagError(f"gyro recording {path} is not a CSV of four numbers per line after one header line") from None
    if len(rows) < 8:
        raise BagError(f"gyro recording {path} has {len(rows)} samples, too few for a path")
    if not np.all(np.isfinite(rows)):
        raise BagError(f"gyro recording {path} has a value that is not finite in line {_first_bad(rows) + 2}")
    if np.any(np.diff(rows[:, 0]) <= 0):
        line = int(np.argmax(np.diff(rows[:, 0]) <= 0)) + 3
        raise BagError(f"gyro recording {path} goes back in time at line {line}")
    return rows[:, 0], rows[:, 1:]


def _first_bad(rows: FloatArray) -> int:
    return int(np.argmax(~np.all(np.isfinite(rows), axis=1)))


def from_gyro_csv(
    path: Path,
    start_s: float = 0.0,
    duration_s: float | None = None,
    axes: str = "+x+y+z",
    amplitude: float = 1.0,
    remove_mean: bool = False,
) -> MotionPath:
    """A stretch of a gyro recording as a path, starting ``start_s`` after the recording's first sample.

    Rates between the samples follow Akima's interpolation, which does not ring. ``axes`` names the recording's axis
    behind each optical axis ("-y-x-z": optical x = −recorded y, …). ``amplitude`` scales the rates; ``remove_mean``
    takes off their mean over the stretch, so that a pan does not leave the picture.
    """
    t, w = read_gyro_csv(Path(path))
    t = t - t[0]
    if duration_s is None:
        duration_s = t[-1] - start_s
    if start_s < 0 or duration_s <= 0 or start_s + duration_s > t[-1] + 1e-9:
        raise BagError(
            f"{start_s:g} s + {duration_s:g} s is not inside the {t[-1]:.2f} s of the gyro recording {path}"
        )
    inside = (t >= start_s) & (t <= start_s + duration_s)
    gap_s = np.max(np.diff(t[inside]), initial=0.0)
    if gap_s > _MAX_GAP * np.median(np.diff(t)):
        raise BagError(
            f"gyro recording {path} has a gap of {1e3 * gap_s:.0f} ms within {duration_s:g} s from {start_s:g} s"
        )
    grid = time_grid(duration_s)
    rates = Akima1DInterpolator(t, w)(np.minimum(start_s + grid, t[-1])) @ axis_matrix(axes).T
    if remove_mean:
        rates = rates - rates.mean(axis=0)
    return from_rates(grid, amplitude * rates)


def axis_matrix(axes: str) -> FloatArray:
    """"-y-x-z" → the 3 × 3 matrix that turns recorded rates into optical ones."""
    signs, names = axes[0::2], axes[1::2]
    if len(axes) != 6 or set(signs) - set("+-") or sorted(names) != list("xyz"):
        raise ConfigError(f"axes '{axes}' is not a signed permutation of x, y, z such as '+x-y-z'")
    M = np.zeros((3, 3))
    for row, (sign, name) in enumerate(zip(signs, names)):
        M[row, "xyz".index(name)] = 1.0 if sign == "+" else -1.0
    return M
