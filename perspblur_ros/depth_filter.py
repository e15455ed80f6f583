"""Depth maps from tracked points: Gaussian-process regression of inverse depth over the picture.

Between the points a map is an interpolation that knows its own uncertainty. The kernel is exponential in the distance
(what real depth pictures show: the semivariogram of inverse depth grows in proportion to the distance), its amplitude
relative to the scene's own inverse depth; the mean is unknown. The points' errors enter as the solver states them, as
variances or as a full covariance: errors that all points share (the scale) then do not average out.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

UNMEASURED_VARIANCE = 1e4  # of the log depth, where nothing is known
MIN_RHO = 0.01  # 1/m: farther than 100 m is as good as 100 m
SPREAD = 0.45  # standard deviation of inverse depth about its mean, relative to the median point's
REACH = 0.6  # picture widths over which depths forget each other
MAX_CELLS = 1024  # more are interpolated
JITTER = 1e-9


@dataclass(frozen=True)
class Grid:
    """A map of ``height`` × ``width`` cells that divide a picture of ``picture_height`` × ``picture_width`` pixels."""

    height: int
    width: int
    picture_height: int
    picture_width: int

    def centres(self) -> FloatArray:
        """Pixels (u, v) of the cells' centres, (height · width, 2), row by row."""
        u = (np.arange(self.width) + 0.5) * self.picture_width / self.width - 0.5
        v = (np.arange(self.height) + 0.5) * self.picture_height / self.height - 0.5
        return np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)

    def lattice(self) -> Grid:
        """The same picture in at most MAX_CELLS cells."""
        coarser = max(1.0, np.sqrt(self.height * self.width / MAX_CELLS))
        return Grid(int(self.height / coarser), int(self.width / coarser), self.picture_height, self.picture_width)


def rasterise(pixels: ArrayLike, rho: ArrayLike, variance: ArrayLike, grid: Grid) -> NDArray[np.float32]:
    """Log depth (log m) and its variance on a grid, (2, height, width), from N points.

    pixels (N, 2) in the picture; rho (N,) inverse depth 1/m; variance (N,), or the covariance (N, N), of rho. Points
    that are not finite are left out. Where nothing is known the variance is UNMEASURED_VARIANCE, the log depth 0.
    Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), eqs. 2.25, 2.26 and 2.41.
    """
    x, y, noise = np.asarray(pixels, float) / grid.picture_width, np.asarray(rho, float), np.asarray(variance, float)
    noise = np.diag(noise) if noise.ndim == 1 else noise
    known = np.isfinite(x).all(axis=1) & np.isfinite(y) & np.isfinite(noise.diagonal())
    if not known.any():
        return _unmeasured(grid)
    x, y, noise = x[known], y[known], noise[np.ix_(known, known)]
    level = max(MIN_RHO, _weighted_median(y, 1 / noise.diagonal()))
    lattice = grid.lattice()
    mean, spread = (
        _resized(part.reshape(lattice.height, lattice.width), grid)
        for part in _regress(x, y / level, noise / level**2, lattice.centres() / grid.picture_width)
    )
    mean = np.maximum(mean, MIN_RHO / level)
    log_variance = np.minimum(spread / mean**2, UNMEASURED_VARIANCE)
    return np.stack([-np.log(level * mean), log_variance]).astype(np.float32)


def _regress(x: FloatArray, y: FloatArray, noise: FloatArray, at: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Posterior mean and variance at ``at`` (M, 2) of a process with unknown mean, seen at x (N, 2) as y ± noise."""
    K = _kernel(x, x) + noise + JITTER * np.eye(len(x))
    L = np.linalg.cholesky(K)
    whiten = np.linalg.inv(L)  # one small inverse and then products: faster than solving for every cell
    a, b, h = whiten @ _kernel(x, at), whiten @ y, whiten @ np.ones(len(x))
    information = h @ h
    level = (h @ b) / information
    unexplained = 1 - h @ a
    mean = level + a.T @ (b - level * h)
    variance = SPREAD**2 - np.sum(a * a, axis=0) + unexplained**2 / information
    return mean, np.maximum(variance, JITTER)


def _kernel(x: FloatArray, y: FloatArray) -> FloatArray:
    distance = np.sqrt(np.maximum(np.sum(x * x, axis=1)[:, None] + np.sum(y * y, axis=1) - 2 * x @ y.T, 0.0))
    return SPREAD**2 * np.exp(-distance / REACH)


def _weighted_median(values: FloatArray, weights: FloatArray) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def _resized(cells: FloatArray, grid: Grid) -> FloatArray:
    return np.asarray(cv2.resize(cells, (grid.width, grid.height), interpolation=cv2.INTER_LINEAR), float)


def _unmeasured(grid: Grid) -> NDArray[np.float32]:
    out = np.zeros((2, grid.height, grid.width), np.float32)
    out[1] = UNMEASURED_VARIANCE
    return out
