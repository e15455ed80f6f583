"""A random hand: rates with the spectrum of real hand-held recordings, slow drift and the 5–12 Hz tremor.

The rate of each axis is a stationary Gaussian process with ``motion_prior.Spectrum``. Its five numbers are fitted here
to gyroscope recordings; docs/hand_motion.md tells which, how well, and the command:
``python -m perspblur_ros.sim.hand_motion DATA_DIR``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator
from scipy.optimize import least_squares
from scipy.signal import welch

from ..errors import BagError, ConfigError
from ..motion_prior import HAND, Spectrum
from .motion import STEP_S, MotionPath, from_rates, read_gyro_csv, time_grid

FloatArray = NDArray[np.float64]

BAND_HZ = (0.25, 40.0)  # what 4 s pieces resolve, up to where every recording still carries signal
FITTED_ON = ("broad_02_slow_rotation_B_286hz", "gopro_hero7_198hz", "lhaippp_phone_in_car_412hz")  # CC BY 4.0, MIT, MIT
CHECKED_ON = (
    "gyrodeblurnet_train_210hz",
    "kajilab_fastwalk_490hz",
    "kajilab_pdr0523_490hz",
    "kajilab_pdr0527_490hz",
    "kajilab_run_490hz",
    "kajilab_slowly_490hz",
    "zoltan_realsense_room_200hz",
)


def hand_motion(
    seed: int,
    duration_s: float,
    rate_rms_rad_s: float = 0.25,
    pivot_speed_rms_m_s: float = 0.0,
    spectrum: Spectrum = HAND,
) -> MotionPath:
    """A hand-held camera's path: the same seed gives the same motion.

    ``rate_rms_rad_s`` is the RMS of the rate vector (recordings: 0.16 standing in a room, 0.5 walking, 0.8 shaking);
    the three axes are alike and independent. The pivot moves with the same spectrum at ``pivot_speed_rms_m_s``; no
    recording tells that spectrum, so the default is a pivot at rest.
    """
    if not duration_s > 0:
        raise ConfigError(f"duration {duration_s} s is not positive")
    if rate_rms_rad_s < 0 or pivot_speed_rms_m_s < 0:
        raise ConfigError(f"rate {rate_rms_rad_s} rad/s or pivot speed {pivot_speed_rms_m_s} m/s is negative")
    rng = np.random.default_rng(seed)
    t = time_grid(duration_s)
    rates = rate_rms_rad_s / np.sqrt(3) * _coloured_noise(rng, len(t), spectrum)
    speed = pivot_speed_rms_m_s / np.sqrt(3) * _coloured_noise(rng, len(t), spectrum)
    return from_rates(t, rates, STEP_S * np.cumsum(speed, axis=0))


def _coloured_noise(rng: np.random.Generator, count: int, spectrum: Spectrum) -> FloatArray:
    """Three unit-variance processes at ``STEP_S``, (count, 3), cut from a period at least twice as long and 20 s."""
    n = max(2 * count, round(20 / STEP_S))
    f = np.fft.rfftfreq(n, STEP_S)
    inside = (f > 0) & (f <= BAND_HZ[1])
    amplitude = np.zeros(len(f))
    amplitude[inside] = np.sqrt(spectrum.density(f[inside]) * f[1])
    real, imaginary = rng.standard_normal((2, len(f), 3))
    return np.fft.irfft(n / 2 * amplitude[:, None] * (real + 1j * imaginary), n, axis=0)[:count]


def measured_density(csv: Path, piece_s: float = 4.0, rate_hz: float = 200.0) -> tuple[FloatArray, FloatArray]:
    """Spectrum of a recording's moving pieces: frequencies within ``BAND_HZ`` and density for unit variance.

    Pieces of 4 s, half overlapping, each normalised to its own variance; pieces below 0.03 rad/s RMS (the device at
    rest) are left out. The three axes are summed.
    """
    t, w = read_gyro_csv(csv)
    grid = np.arange(t[0], t[-1], 1 / rate_hz)
    rates = Akima1DInterpolator(t, w)(grid)
    n = round(piece_s * rate_hz)
    densities = []
    for first in range(0, len(grid) - n + 1, n // 2):
        piece = rates[first : first + n]
        if np.sqrt(piece.var(axis=0).sum()) < 0.03:
            continue
        f, power = welch(piece, rate_hz, nperseg=n, axis=0)
        inside = (f >= BAND_HZ[0]) & (f <= BAND_HZ[1])
        total = power[inside].sum(axis=1)
        densities.append(total / (total.sum() * (f[1] - f[0])))
    if not densities:
        raise BagError(f"gyro recording {csv} has no moving piece of {piece_s:g} s")
    return f[inside], np.mean(densities, axis=0)


def octave_bands(f_hz: FloatArray, density: FloatArray) -> FloatArray:
    """Mean density in third-octave-wide bands over ``BAND_HZ``, so that each octave weighs the same in a fit."""
    edges = np.geomspace(BAND_HZ[0], BAND_HZ[1] * 1.001, 19)
    band = np.digitize(f_hz, edges) - 1
    return np.array([density[band == k].mean() for k in range(len(edges) - 1) if np.any(band == k)])


def fit_spectrum(csv: Path) -> Spectrum:
    """Least squares of the log density's shape in equal-ratio bands; the tremor is sought at its 5 to 12 Hz."""
    f, density = measured_density(csv)
    target = np.log(octave_bands(f, density))

    def residual(x: FloatArray) -> FloatArray:
        difference = np.log(octave_bands(f, Spectrum(*x).density(f))) - target
        return difference - difference.mean()

    bounds = ([0.1, 1.0, 5.0, 1.0, 0.0], [4.0, 6.0, 12.0, 4.0, 1.0])
    fit = least_squares(residual, [0.7, 2.0, 8.0, 2.5, 0.2], bounds=bounds, x_scale=[1.0, 1.0, 8.0, 2.0, 0.2])
    return Spectrum(*(float(v) for v in fit.x))


def median_spectrum(spectra: Iterable[Spectrum]) -> Spectrum:
    """The typical recording: medians of the five numbers. Averaged densities would smear each hand's tremor peak."""
    return Spectrum(*(float(v) for v in np.median([astuple(s) for s in spectra], axis=0)))


def residual_db(csv: Path, spectrum: Spectrum = HAND) -> float:
    """RMS difference in decibel between the shapes of a recording's band densities and the model's."""
    f, density = measured_density(csv)
    difference = 10 * np.log10(octave_bands(f, density) / octave_bands(f, spectrum.density(f)))
    return float(np.std(difference))


def main(data_dir: Path) -> None:
    """Print the fit and its residual on every recording."""
    csvs = {name: data_dir / "gyro" / f"{name}.csv" for name in (*FITTED_ON, *CHECKED_ON)}
    fits = {name: fit_spectrum(csv) for name, csv in csvs.items()}
    median = median_spectrum(fits[name] for name in FITTED_ON)
    print(f"{'':39s}  f_d   p    f_t   w    a     own fit  median fit")
    for name, csv in csvs.items():
        use = "fitted " if name in FITTED_ON else "checked"
        own, common = residual_db(csv, fits[name]), residual_db(csv, median)
        print(f"{use} {name:31s} {_numbers(fits[name])}  {own:4.1f} dB  {common:4.1f} dB")
    print(f"{'median of the fitted':39s} {_numbers(median)}")
    print(f"{'shipped':39s} {_numbers(HAND)}")


def _numbers(spectrum: Spectrum) -> str:
    return " ".join(f"{v:5.2f}" for v in astuple(spectrum))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
