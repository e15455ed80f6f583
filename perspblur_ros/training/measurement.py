"""What the tracked points of a clip say about its depth: simulated sightings, solved jointly for rotations and depths.

The pipeline measures depth from real tracks; training needs such measurements by the thousand, with all their faults.
Sightings are made with the first-order displacement d = B φ + ρ A (φ × r + p) (rays, so f = 1), with noise, wrong and
missing points and a pivot that moves (p, which the solver ignores); they are solved with the same model, and laid out
on a grid as the pipeline does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import so3
from ..depth_filter import Grid, rasterise

FloatArray = NDArray[np.float64]

GRID = 25  # points on a side, as the paper's
SHARE = (0.3, 0.7)  # of them that carry a texture
NOISE_PX96 = (0.015, 0.15)  # of a sighting at a width of 96: errors and stated sd of the maps as on development clips
NOISE_FLOOR_PX96 = 0.03
WIDTH_PX = 640  # of the picture that the points are laid out on; only ratios matter
MEAN_RHO, SCENE_SD_RHO, POINT_SD_RHO = 0.6, 0.5, 0.35  # 1/m: scenes about their mean, a point about its scene
HUBER = 1.5
ITERATIONS = 8


@dataclass(frozen=True)
class Sightings:
    """rays N × 2 in the first frame; displacement N × T × 2 of the later frames, NaN where missing; rays have f = 1."""

    rays: FloatArray
    displacement: FloatArray


@dataclass(frozen=True)
class JointDepth:
    """rho (N,) 1/m with covariance (N, N); phi (T, 3) rad; ``noise`` of one sighting, rays."""

    rho: FloatArray
    covariance: FloatArray
    phi: FloatArray
    noise: float


def J_phi(rays: FloatArray) -> FloatArray:
    """B of ``displacement.J_rotation`` for f = 1, N × 2 × 3."""
    x, y = rays[:, 0], rays[:, 1]
    one = np.ones_like(x)
    return np.stack([np.stack([x * y, -(one + x * x), y], -1), np.stack([one + y * y, -x * y, -x], -1)], axis=1)


def J_centre(rays: FloatArray) -> FloatArray:
    """A of ``displacement.J_translation`` for f = 1, N × 2 × 3."""
    x, y = rays[:, 0], rays[:, 1]
    one, zero = np.ones_like(x), np.zeros_like(x)
    return np.stack([np.stack([-one, zero, x], -1), np.stack([zero, -one, y], -1)], axis=1)


def simulate_sightings(
    rng: np.random.Generator, rays: FloatArray, rho: FloatArray, phi: FloatArray, lever_arm_m: FloatArray,
    pivot_m: FloatArray, noise: float, wrong: float = 0.03, missing: float = 0.1,
) -> Sightings:
    """Tracks of N points over T later frames.

    rays (N, 2), rho (N,); phi (T, 3) rad and pivot_m (T, 3) relative to the first frame; noise of one coordinate in
    rays; ``wrong``, ``missing``: shares of points that leave their track at some frame for good, or were never found.
    """
    N, T = len(rays), len(phi)
    centre = np.cross(phi, lever_arm_m) + pivot_m
    d = np.einsum("nij,tj->nti", J_phi(rays), phi)
    d = d + rho[:, None, None] * np.einsum("nij,tj->nti", J_centre(rays), centre)
    d = d + noise * rng.standard_normal(d.shape)
    leaves = np.where(rng.random(N) < wrong, rng.integers(0, T, N), T)
    drift = rng.normal(0, 12 * noise, (N, 1, 2)) + rng.normal(0, 4 * noise, (N, T, 2))
    d = np.where((np.arange(T) >= leaves[:, None])[..., None], d + drift, d)
    lost = np.where(rng.random(N) < missing, rng.integers(1, T + 1, N), T)
    d[np.arange(T) >= lost[:, None]] = np.nan
    d[rng.random(N) < missing] = np.nan
    return Sightings(rays, d)


def solve(sightings: Sightings, lever_arm_m: FloatArray, floor: float) -> JointDepth | None:
    """Rotations and inverse depths together: Gauss-Newton, the depths eliminated (Schur complement).

    Unknowns: φ of every frame, the scene's mean ρ, ρ of every point. Robust (Huber), the noise from the median of the
    residuals but not below ``floor`` (rays). None where fewer than 12 points were seen twice. The prior is on ρ and not
    on log ρ: with the latter the most probable depths are too near, as a near scene explains noise by relief.
    """
    seen = np.isfinite(sightings.displacement[..., 0])
    keep = seen.sum(axis=1) >= 2
    if keep.sum() < 12:
        return None
    seen = seen[keep]
    d = np.where(seen[..., None], sightings.displacement[keep], 0.0)
    B, A = J_phi(sightings.rays[keep]), J_centre(sightings.rays[keep])
    N, T = seen.shape
    rho, mean, phi, noise = np.full(N, MEAN_RHO), MEAN_RHO, np.zeros((T, 3)), 10 * floor
    for step in range(ITERATIONS + 1):
        a = np.einsum("nij,tj->nti", A, np.cross(phi, lever_arm_m))
        e = d - np.einsum("nij,tj->nti", B, phi) - rho[:, None, None] * a
        size = np.linalg.norm(e, axis=-1)
        if step:
            noise = max(floor, float(np.median(size[seen])) / 1.177)  # median of a Rayleigh distribution
        weight = seen * np.minimum(1.0, HUBER / np.maximum(size / noise, 1e-9)) / noise**2
        turn = B - rho[:, None, None] * (A @ so3.hat(lever_arm_m))  # of d with respect to φ: φ × r = −[r]× φ
        H_point = np.einsum("nt,nti,nti->n", weight, a, a) + POINT_SD_RHO**-2
        b_point = np.einsum("nt,nti,nti->n", weight, a, e) - (rho - mean) / POINT_SD_RHO**2
        mix = np.einsum("nt,nik,nti->ntk", weight, turn, a).reshape(N, 3 * T)
        mix = np.concatenate([mix, np.full((N, 1), -(POINT_SD_RHO**-2))], axis=1)
        H = _blocks(np.einsum("nt,nik,nil->tkl", weight, turn, turn) + 1e-6 * np.eye(3))
        H[-1, -1] = SCENE_SD_RHO**-2 + N * POINT_SD_RHO**-2
        b = np.append(
            np.einsum("nt,nik,nti->tk", weight, turn, e).ravel(),
            (MEAN_RHO - mean) / SCENE_SD_RHO**2 + np.sum(rho - mean) / POINT_SD_RHO**2,
        )
        pull = mix / H_point[:, None]
        inverse = np.linalg.inv(H - mix.T @ pull)
        if step == ITERATIONS:
            break
        x = inverse @ (b - pull.T @ b_point)
        phi = phi + x[:-1].reshape(T, 3)
        mean = mean + float(x[-1])
        rho = rho + b_point / H_point - pull @ x
    full = JointDepth(np.full(len(keep), np.nan), np.full((len(keep), len(keep)), np.nan), phi, noise)
    full.rho[keep] = rho
    full.covariance[np.ix_(keep, keep)] = np.diag(1 / H_point) + pull @ inverse @ pull.T
    return full


def _blocks(blocks: FloatArray) -> FloatArray:
    """T × 3 × 3 as a block-diagonal matrix with one empty row and column at its end."""
    T = len(blocks)
    H = np.zeros((3 * T + 1, 3 * T + 1))
    for t, block in enumerate(blocks):
        H[3 * t : 3 * t + 3, 3 * t : 3 * t + 3] = block
    return H


def draw_noise_px96(rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(NOISE_PX96))))


def measured_depth(
    rng: np.random.Generator, log_depth: NDArray[np.float32], focal: FloatArray, phi: FloatArray,
    lever_arm_m: FloatArray, pivot_m: FloatArray, noise_px96: float, cells: int,
) -> NDArray[np.float32]:
    """Log depth and variance (2, cells, cells) as the pipeline would measure them on a clip.

    log_depth (h, h) of the first frame; focal (2,) lengths over width and height; phi, pivot_m (T, 3) of the later
    frames relative to the first; noise_px96 of one sighting in pixels of a frame 96 wide.
    """
    side = log_depth.shape[0]
    at = (np.arange(GRID) + 0.5) / GRID
    uv = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)
    uv = uv[rng.random(len(uv)) < rng.uniform(*SHARE)]
    index = np.minimum((uv * side).astype(int), side - 1)
    rho = np.exp(-log_depth[index[:, 1], index[:, 0]].astype(float))
    noise = noise_px96 / 96 / focal[0]
    rays = (uv - 0.5) / focal
    seen = simulate_sightings(
        rng, rays, rho, phi, lever_arm_m, pivot_m, noise, rng.uniform(0, 0.1), rng.uniform(0, 0.2)
    )
    height_px = round(WIDTH_PX * focal[0] / focal[1])  # square pixels
    grid = Grid(cells, cells, height_px, WIDTH_PX)
    found = solve(seen, lever_arm_m, floor=NOISE_FLOOR_PX96 / 96 / focal[0])
    if found is None:
        return rasterise(np.zeros((0, 2)), np.zeros(0), np.zeros(0), grid)
    ok = np.isfinite(found.rho)
    return rasterise(uv[ok] * (WIDTH_PX, height_px) - 0.5, found.rho[ok], found.covariance[np.ix_(ok, ok)], grid)
