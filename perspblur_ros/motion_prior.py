"""What hand motion looks like: the Gaussian prior on a rotation spline's knots.

The rate of a hand-held camera is taken as a stationary Gaussian process, equal on the three axes: slow drift with a
roll-off, and the tremor. Its power spectral density is

    S(f) ∝ (1 − a) D(f) + a T(f),   D = 1 / (1 + (f/f_d)^p),   T = exp(−½ ((f − f_t)/w)²)     (D, T of unit area)

A small white floor keeps faster motion possible. Only differences matter: a constant rotation is free.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

FLOOR_SHARE = 1e-6  # white variance of the knots, relative to their mean variance


@dataclass(frozen=True)
class Spectrum:
    """drift_corner_hz f_d, drift_slope p, tremor_centre_hz f_t, tremor_width_hz w, tremor_share a of the variance."""

    drift_corner_hz: float
    drift_slope: float
    tremor_centre_hz: float
    tremor_width_hz: float
    tremor_share: float

    def density(self, f_hz: NDArray[np.floating]) -> FloatArray:
        """Power spectral density for unit variance on the uniform grid ``f_hz``, 1/Hz."""
        df = f_hz[1] - f_hz[0]
        drift = 1.0 / (1.0 + (f_hz / self.drift_corner_hz) ** self.drift_slope)
        tremor = np.exp(-0.5 * ((f_hz - self.tremor_centre_hz) / self.tremor_width_hz) ** 2)
        return (1 - self.tremor_share) * drift / (drift.sum() * df) + self.tremor_share * tremor / (tremor.sum() * df)


HAND = Spectrum(1.33, 1.80, 5.00, 3.33, 0.32)  # fitted by sim/hand_motion.py; docs/hand_motion.md tells on what


@lru_cache(maxsize=64)
def knot_precision(count: int, spacing_s: float) -> FloatArray:
    """Precision matrix (count × count) of one axis's knots for a rate of 1 rad/s RMS; constants are free."""
    t = np.arange(count) * spacing_s
    step_hz = 0.1 / max(1.0, count * spacing_s)  # much finer than the window resolves, or the prior has blind spots
    f_hz = np.arange(0.5 * step_hz, 50.0, step_hz)
    angle_sd = np.sqrt(HAND.density(f_hz) * step_hz) / (2 * np.pi * f_hz)
    phase = 2 * np.pi * t[:, None] * f_hz
    basis = np.concatenate([np.cos(phase) - 1, np.sin(phase)], axis=1) * np.tile(angle_sd, 2)
    basis -= basis.mean(axis=0)
    covariance = basis @ basis.T
    level = np.trace(covariance) / count
    covariance += np.eye(count) * level * FLOOR_SHARE + 100 * level
    return np.linalg.inv(covariance)


def translation_precision(count: int, spacing_s: float, speed_m_s: float, acceleration_m_s2: float) -> FloatArray:
    """Precision of one axis's translation knots: small velocities and accelerations; an empirical regulariser.

    Its strength is per window, not per knot, so that it does not depend on the spacing.
    """
    velocity = np.diff(np.eye(count), axis=0) / spacing_s
    acceleration = np.diff(np.eye(count), n=2, axis=0) / spacing_s**2
    return (
        velocity.T @ velocity * (4.0 / (count * speed_m_s**2))
        + acceleration.T @ acceleration * (spacing_s / 0.04 / acceleration_m_s2**2)
    )
