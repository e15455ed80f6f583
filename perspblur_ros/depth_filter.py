"""Depth maps from tracked points: a filter over the stream, and Gaussian-process regression over the picture.

A point's inverse depth is remembered with the variance of its own error; the error that all points of a window share
(their scale: in a narrow view little tells a nearer scene from a larger turn) is one more number beside them. Between
the points a map is an interpolation that knows its own uncertainty. The kernel is exponential in the distance (what
real depth pictures show: the semivariogram of inverse depth grows in proportion to the distance), its amplitude
relative to the scene's own inverse depth; the mean is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

UNMEASURED_VARIANCE = 1e4  # of the log depth, where nothing is known
MIN_RHO = 0.01  # 1/m: farther than 100 m is as good as 100 m
SPREAD = 0.45  # standard deviation of inverse depth about its mean, relative to the median point's
REACH = 0.6  # picture widths over which depths forget each other
MAX_CELLS = 768  # more are interpolated
JITTER = 1e-9
OWN_SHARE = 0.05  # least share of a point's variance that is its own
MIN_AHEAD = 0.1
MAX_RATIO = 3.0  # windows that differ more in scale say nothing of each other
FORGETTING = 0.05  # relative growth of the deviations in a second: pivots wander, things are moved
MAX_POINTS = 1000
MAX_SUPPORT = 500  # points that enter the regression; of more, neighbours are merged
PRIOR_RHO, PRIOR_RHO_SD = 0.5, 0.5  # 1/m: rooms, tables, streets


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


@dataclass(frozen=True)
class Points:
    """Points as seen from one pose: ids (N,), negative for points that no later window will know; rays (N, 2) ideal
    (x, y, 1); rho (N,) 1/m with its own ``variance`` (N,), and ``scale_variance`` of a relative error of all."""

    ids: NDArray[np.int64]
    rays: FloatArray
    rho: FloatArray
    variance: FloatArray
    scale_variance: float

    @classmethod
    def of(cls, ids: NDArray[np.int64], rays: FloatArray, rho: FloatArray, covariance: FloatArray) -> Points:
        """Of a window's inverse depths and their covariance (N, N)."""
        return cls(ids, rays, rho, *own_and_scale(rho, covariance))

    def chosen(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Points:
        return replace(self, ids=self.ids[which], rays=self.rays[which], rho=self.rho[which],
                       variance=self.variance[which])

    def seen_from(self, R_here_from_there: FloatArray, lever_arm_m: FloatArray) -> Points:
        """After the camera turned about its pivot; points that came behind it are left out."""
        v = np.concatenate([self.rays, np.ones((len(self.rays), 1))], axis=1) + self.rho[:, None] * lever_arm_m
        v = v @ R_here_from_there.T - self.rho[:, None] * lever_arm_m
        ahead = v[:, 2] > MIN_AHEAD
        v, kept = v[ahead], self.chosen(ahead)
        z = v[:, 2]
        return replace(kept, rays=v[:, :2] / z[:, None], rho=kept.rho / z, variance=kept.variance / z**2)


class DepthFilter:
    """Remembers what was measured of a stream's points while the camera turns about its pivot.

    lever_arm_m   pivot → optical centre, optical frame; zeros where translation is ignored
    """

    def __init__(self, lever_arm_m: FloatArray) -> None:
        self._lever_arm_m = lever_arm_m
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._points: Points | None = None
        self._R_start_from_points = np.eye(3)

    def add(self, new: Points, R_start_from_new: FloatArray, share: float, elapsed_s: float) -> None:
        """Fuse a window's points.

        share      of the window's data that was not in the window before: only so much of it counts again
        elapsed_s  since that window
        """
        old, R_start_from_old = self._points, self._R_start_from_points
        self._points, self._R_start_from_points = new, R_start_from_new
        if old is None:
            return
        old = old.seen_from(R_start_from_new.T @ R_start_from_old, self._lever_arm_m)
        old = replace(
            old, variance=old.variance + (FORGETTING * old.rho) ** 2 * elapsed_s,
            scale_variance=old.scale_variance + FORGETTING**2 * elapsed_s,
        )
        in_old, in_new = (np.flatnonzero(points.ids >= 0) for points in (old, new))
        _, a, b = np.intersect1d(old.ids[in_old], new.ids[in_new], assume_unique=True, return_indices=True)
        in_old, in_new = in_old[a], in_new[b]
        if len(in_old):
            old, new = _same_scale(old, new, in_old, in_new, share)
            new = _fused(old, new, in_old, in_new, share)
        gone = np.ones(len(old.ids), bool)
        gone[in_old] = False
        self._points = _joined(new, old.chosen(gone))

    def points(self, R_start_from_cam: FloatArray) -> Points | None:
        """What is remembered, as seen from a pose; None before anything was measured."""
        if self._points is None:
            return None
        return self._points.seen_from(R_start_from_cam.T @ self._R_start_from_points, self._lever_arm_m)


def _same_scale(
    old: Points, new: Points, in_old: NDArray[np.int64], in_new: NDArray[np.int64], share: float
) -> tuple[Points, Points]:
    """Both on the scale between theirs that their scale variances ask for."""
    a, b = old.rho[in_old], new.rho[in_new]
    weight = 1 / (old.variance[in_old] + new.variance[in_new])
    ratio = float(weight @ (a * b)) / max(float(weight @ a**2), 1e-12)
    if not 1 / MAX_RATIO < ratio < MAX_RATIO:
        return replace(old, scale_variance=new.scale_variance), new
    told = new.scale_variance / share
    gain = old.scale_variance / (old.scale_variance + told)
    variance = gain * told
    return (
        replace(old, rho=old.rho * ratio**gain, variance=old.variance * ratio ** (2 * gain), scale_variance=variance),
        replace(new, rho=new.rho * ratio ** (gain - 1), variance=new.variance * ratio ** (2 * gain - 2),
                scale_variance=variance),
    )


def _fused(
    old: Points, new: Points, in_old: NDArray[np.int64], in_new: NDArray[np.int64], share: float
) -> Points:
    """The new points, those that were known before with what was known of them."""
    told = new.variance[in_new] / share
    gain = told / (told + old.variance[in_old])  # of the old
    rho, variance = new.rho.copy(), new.variance.copy()
    rho[in_new] += gain * (old.rho[in_old] - rho[in_new])
    variance[in_new] = gain * old.variance[in_old]
    return replace(new, rho=rho, variance=variance)


def _joined(alive: Points, gone: Points) -> Points:
    """All points still tracked, and the best known of those that are not."""
    room = max(MAX_POINTS - len(alive.ids), 0)
    best = np.sort(np.argsort(gone.variance / np.maximum(gone.rho, MIN_RHO) ** 2)[:room])
    gone = gone.chosen(best)
    order = np.argsort(np.concatenate([alive.ids, gone.ids]))
    joined = replace(
        alive, ids=np.concatenate([alive.ids, gone.ids]), rays=np.concatenate([alive.rays, gone.rays]),
        rho=np.concatenate([alive.rho, gone.rho]), variance=np.concatenate([alive.variance, gone.variance]),
    )
    return joined.chosen(order)


def with_prior(measured: ArrayLike) -> NDArray[np.float32]:
    """A measured map (2, h, w) as from ``rasterise`` together with what is known of any place, in inverse depth.

    The prior is a guess of the scene, not of each cell, so it counts only as far as little is measured: by v / (1 + v)
    with v the variance of the measured log depth.
    """
    log_depth, log_variance = np.asarray(measured, float)
    rho = np.exp(-log_depth)
    told = 1 / (log_variance * rho**2)
    assumed = log_variance / (1 + log_variance) / PRIOR_RHO_SD**2
    mean = np.maximum((told * rho + assumed * PRIOR_RHO) / (told + assumed), MIN_RHO)
    return np.stack([-np.log(mean), 1 / (told + assumed) / mean**2]).astype(np.float32)


def own_and_scale(rho: FloatArray, covariance: FloatArray) -> tuple[FloatArray, float]:
    """A covariance (N, N) of rho as each point's own variance (N,) and the variance of a relative error of all.

    Kept apart, because regression with a covariance made from noisy values shrinks them (Peelle's puzzle; D'Agostini
    1994, Nucl. Instrum. Methods A 346). The scale is that of the precision-weighted mean.
    """
    total = covariance.diagonal()
    weight = rho / total / max(float(rho / total @ rho), 1e-12)
    scale_variance = float(weight @ covariance @ weight)
    return np.maximum(total - scale_variance * rho**2, OWN_SHARE * total), scale_variance


def rasterise(
    pixels: ArrayLike, rho: ArrayLike, variance: ArrayLike, grid: Grid, scale_variance: float = 0.0
) -> NDArray[np.float32]:
    """Log depth (log m) and its variance on a grid, (2, height, width), from N points.

    pixels (N, 2) in the picture; rho (N,) inverse depth 1/m; variance (N,) of rho, each point's own, with
    ``scale_variance`` of a relative error of all; or variance (N, N), a covariance that has both. Points that are not
    finite are left out. Where nothing is known the variance is UNMEASURED_VARIANCE, the log depth 0.
    Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), eqs. 2.25, 2.26 and 2.41.
    """
    x, y, own = np.asarray(pixels, float) / grid.picture_width, np.asarray(rho, float), np.asarray(variance, float)
    known = np.isfinite(x).all(axis=1) & np.isfinite(y) & np.isfinite(own.diagonal() if own.ndim == 2 else own)
    if not known.any():
        return _unmeasured(grid)
    x, y = x[known], y[known]
    if own.ndim == 2:
        own, scale_variance = own_and_scale(y, own[np.ix_(known, known)])
    else:
        own = own[known]
    level = max(MIN_RHO, _weighted_median(y, 1 / own))
    if len(y) > MAX_SUPPORT:
        x, y, own = _merged(x, y, own, (SPREAD * level) ** 2)
    lattice = grid.lattice()
    mean, spread = (
        _resized(part.reshape(lattice.height, lattice.width), grid)
        for part in _regress(x, y / level, np.diag(own) / level**2, lattice.centres() / grid.picture_width)
    )
    mean = np.maximum(mean, MIN_RHO / level)
    log_variance = np.minimum(spread / mean**2 + scale_variance, UNMEASURED_VARIANCE)
    return np.stack([-np.log(level * mean), log_variance]).astype(np.float32)


def _merged(x: FloatArray, y: FloatArray, own: FloatArray, spread2: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The points of each bin (about MAX_SUPPORT of them divide the picture) as one: places (M, 2), values, variances.

    ``spread2`` is the variance of inverse depth in the scene: between neighbours some of it is a difference in depth.
    """
    side = np.sqrt(np.ptp(x[:, 0]) * np.ptp(x[:, 1]) / MAX_SUPPORT) + JITTER
    columns = int(np.ptp(x[:, 0]) / side) + 1
    bins = ((x - x.min(axis=0)) / side).astype(int) @ (1, columns)
    _, member = np.unique(bins, return_inverse=True)
    apart = spread2 * side / REACH
    weight = 1 / (own + apart)
    total = np.bincount(member, weight)
    place = np.stack([np.bincount(member, weight * axis) / total for axis in x.T], axis=1)
    variance = 1 / total - apart / np.bincount(member)
    return place, np.bincount(member, weight * y) / total, np.maximum(variance, 0.1 / total)


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
