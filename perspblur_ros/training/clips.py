"""Clips for training, made as they are used: a scene, a hand, a shutter, a sensor. Same seed, same clip."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import Akima1DInterpolator
from torch import Tensor

from .. import so3
from ..engine.interface import LEVER_ARM_X, UNMEASURED_VARIANCE, camera_values
from ..sim import torch_render as tr
from ..sim.hand_motion import hand_motion
from ..sim.motion import STEP_S, MotionPath, from_rates, time_grid
from .measurement import draw_noise_px96, measured_depth
from .scenes import Material, layered_scene, real_scene

FloatArray = NDArray[np.float64]

OVERSAMPLING, MARGIN = 1.5, 0.25  # source pixels per frame pixel; share of the frame kept around it on each side
TYPICAL_DEPTH_M = 2.2  # median over scenes of a scene's median depth
REFERENCE_WIDTH = 640  # blur is drawn in pixels of a frame this wide


@dataclass(frozen=True)
class ClipSizes:
    """frames T of size × size pixels; depth of depth_size × depth_size; sub-frames per frame.

    blurred False: the comparison without blur and motion, one sharp picture repeated T times.
    """

    frames: int = 12
    size: int = 128
    depth_size: int = 64
    subframes: int = 7
    blurred: bool = True


@dataclass(frozen=True)
class Recipe:
    """What is drawn for one clip. Times in seconds, lever arm and pivot in metres, rotations relative to frame 0.

    focal (2,): focal lengths over the frame's width and height; phi, pivot_m (T − 1, 3) at mid-exposure.
    """

    image: NDArray[np.float32]
    inv_depth: NDArray[np.float32]
    focal: FloatArray
    path: MotionPath
    starts_s: FloatArray
    exposure_s: float
    readout_s: float
    lever_arm_m: FloatArray
    lever_known: bool
    full_well_e: float
    gamma: float
    gain: NDArray[np.float32]
    jpeg_quality: float
    noise_px96: float
    phi: FloatArray = field(default_factory=lambda: np.zeros((0, 3)))
    pivot_m: FloatArray = field(default_factory=lambda: np.zeros((0, 3)))

    @property
    def camera(self) -> NDArray[np.float32]:
        """The camera as the networks see it, (8,)."""
        period_s = float(self.starts_s[1] - self.starts_s[0])
        arm = self.lever_arm_m.tolist() if self.lever_known else ()
        return camera_values(float(self.focal[0]), self.exposure_s, period_s, self.readout_s, arm)


@dataclass(frozen=True)
class Clips:
    """A batch. image (B, T, 1, size, size) grey 0…1; camera (B, 8); log_depth (B, h, h) of frame 0 at mid-exposure;
    measured (B, 2, h, h)."""

    image: Tensor
    camera: Tensor
    log_depth: Tensor
    measured: Tensor


def mirrored_camera(camera: Tensor) -> Tensor:
    """Camera values (B, 8) of the mirrored world: x of the lever arm changes sign."""
    mirrored = camera.clone()
    mirrored[:, LEVER_ARM_X] *= -1
    return mirrored


def draw(rng: np.random.Generator, material: Material, sizes: ClipSizes) -> Recipe:
    """A random clip: everything but the rendering."""
    source = round(sizes.size * OVERSAMPLING * (1 + 2 * MARGIN))
    aspect = float(rng.choice((4 / 3, 16 / 9, 1.0), p=(0.6, 0.3, 0.1)))
    focal_x = float(np.exp(rng.uniform(np.log(0.5), np.log(1.25))))
    if material.rgbd and rng.random() < 0.35:
        image, inv_depth, own = real_scene(rng, material.rgbd[rng.integers(len(material.rgbd))], aspect, source)
        focal_x = float(own) * (1 + 2 * MARGIN) * rng.uniform(0.5, 1.0)
    else:
        image, inv_depth = layered_scene(rng, material.pictures, source)
    focal = np.array([focal_x, focal_x * aspect])
    inv_depth = inv_depth / np.median(inv_depth) / np.exp(rng.normal(np.log(TYPICAL_DEPTH_M), 0.45))
    timing = _timing(rng, sizes.frames)
    path = _path(rng, material, timing, focal_x)
    lever = rng.normal(size=3)
    lever *= np.exp(rng.uniform(np.log(0.08), np.log(0.4))) / np.linalg.norm(lever)
    kind = rng.random()
    lever = lever if kind > 0.1 else np.zeros(3)  # a tenth turns about the optical centre
    recipe = Recipe(
        image=image,
        inv_depth=inv_depth.astype(np.float32),
        focal=focal,
        path=path,
        starts_s=timing[0],
        exposure_s=timing[1],
        readout_s=timing[2],
        lever_arm_m=lever,
        lever_known=bool(kind < 0.05 or kind > 0.15),
        full_well_e=float(np.exp(rng.uniform(np.log(2e4), np.log(4e5)))),  # of the pixels that one small pixel averages
        gamma=float(rng.choice((0.0, rng.uniform(1.6, 2.6)))),
        gain=np.clip(rng.normal(1.0, rng.uniform(0.0, 0.15), (3, 3)), 0.4, 1.8).astype(np.float32),
        jpeg_quality=float(rng.uniform(60, 95)) if rng.random() < 0.3 else 0.0,
        noise_px96=draw_noise_px96(rng),
    )
    return _with_poses(recipe)


def _timing(rng: np.random.Generator, frames: int) -> tuple[FloatArray, float, float]:
    """Starts (T,), exposure and readout: long exposures as the paper's, or an ordinary rolling-shutter stream."""
    period = 1 / rng.uniform(15, 31)
    exposure = period * rng.uniform(0.3, 0.97)
    readout = rng.uniform(0.0, min(0.03, period))
    return 0.01 + period * np.arange(frames, dtype=float), exposure, readout


def _path(
    rng: np.random.Generator, material: Material, timing: tuple[FloatArray, float, float], focal_x: float
) -> MotionPath:
    """A stretch of a recording with its axes shuffled, or the hand-motion model; scaled to a drawn mean blur."""
    starts, exposure, readout = timing
    duration = float(starts[-1] + exposure + readout + 0.02)
    names = list(material.recordings)
    if names and rng.random() < 0.6:
        rates = _recorded(rng, *material.recordings[names[rng.integers(len(names))]], duration)
    else:
        rates = hand_motion(int(rng.integers(2**31)), duration).omega
    rates = rates - rates.mean(axis=0)
    blur_rad = np.exp(rng.uniform(np.log(1.5), np.log(28.0))) / REFERENCE_WIDTH / focal_x
    speed = max(float(np.linalg.norm(rates[:, :2], axis=1).mean()), 1e-3)
    rates *= min(blur_rad / exposure / speed, 6.0 / max(float(np.abs(rates).max()), 1e-3))
    pivot = None
    if rng.random() < 0.2:
        velocity = hand_motion(int(rng.integers(2**31)), duration, rng.uniform(0.003, 0.02)).omega
        pivot = STEP_S * np.cumsum(velocity, axis=0)
    return from_rates(time_grid(duration), rates, pivot).centred(0.0, duration)


def _recorded(rng: np.random.Generator, t_s: FloatArray, omega: FloatArray, duration_s: float) -> FloatArray:
    """Rates on the path's grid from a random, moving stretch, axes permuted and signed, perhaps reversed in time."""
    grid = time_grid(duration_s)
    for attempt in count():
        start = rng.uniform(t_s[0], t_s[-1] - grid[-1])
        near = slice(np.searchsorted(t_s, start - 0.05), np.searchsorted(t_s, start + grid[-1] + 0.05))
        rates = Akima1DInterpolator(t_s[near], omega[near], extrapolate=True)(start + grid)
        if attempt > 20 or np.sqrt((rates**2).sum(axis=1).mean()) > 0.06:
            break
    rates = rates[:, rng.permutation(3)] * rng.choice((-1, 1), 3)
    return rates[::-1].copy() if rng.random() < 0.5 else rates


def _with_poses(recipe: Recipe) -> Recipe:
    mid = recipe.starts_s + (recipe.exposure_s + recipe.readout_s) / 2
    R, pivot = recipe.path.rotation(mid), recipe.path.pivot(mid)
    phi = so3.log(R[0].T @ R[1:])
    return replace(recipe, phi=phi, pivot_m=(pivot[1:] - pivot[0]) @ R[0])


def measure(rng: np.random.Generator, recipe: Recipe, log_depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """The measured depth (2, h, h) of a clip; nothing where the lever arm is zero or unknown."""
    if not recipe.lever_known or not recipe.lever_arm_m.any():
        return unmeasured(log_depth.shape[0])
    return measured_depth(
        rng, log_depth, recipe.focal, recipe.phi, recipe.lever_arm_m, recipe.pivot_m, recipe.noise_px96,
        log_depth.shape[0],
    )


def unmeasured(size: int) -> NDArray[np.float32]:
    return np.stack([np.zeros((size, size), np.float32), np.full((size, size), UNMEASURED_VARIANCE, np.float32)])


@torch.inference_mode()
def render(recipes: list[Recipe], sizes: ClipSizes, seed: int, device: torch.device | str = "cpu") -> Clips:
    """Render a batch and simulate its measurements. Without blur: frame 0 sharp, T times, and nothing measured."""

    def batch(values: list[Any]) -> Tensor:
        return torch.as_tensor(np.stack([np.asarray(v, np.float32) for v in values]), device=device)

    views = tr.Views(
        batch([r.image for r in recipes])[:, None],
        batch([r.inv_depth for r in recipes])[:, None],
        _intrinsics(recipes, sizes.size, device, source=True),
        _intrinsics(recipes, sizes.size, device),
    )
    samples = max(len(r.path.t_s) for r in recipes)
    held = [np.minimum(np.arange(samples), len(r.path.t_s) - 1) for r in recipes]
    paths = tr.Paths(
        STEP_S,
        batch([r.path.R_ref_from_cam[i] for r, i in zip(recipes, held)]),
        batch([r.path.pivot_m[i] for r, i in zip(recipes, held)]),
    )
    starts, lever = batch([r.starts_s for r in recipes]), batch([r.lever_arm_m for r in recipes])
    exposure, readout = batch([r.exposure_s for r in recipes]), batch([r.readout_s for r in recipes])
    mid = starts[:, 0] + (exposure + readout) / 2
    small = replace(views, camera=_intrinsics(recipes, sizes.depth_size, device))
    depth = tr.render_depth(small, paths, mid, lever, (sizes.depth_size, sizes.depth_size))
    depth = depth.clamp(0.05, 100.0)
    if sizes.blurred:
        linear = tr.render_frames(
            views, paths, starts, exposure, readout, lever, (sizes.size, sizes.size), sizes.subframes
        )
    else:
        still = torch.zeros_like(exposure)
        linear = tr.render_frames(views, paths, mid[:, None], still, still, lever, (sizes.size, sizes.size), 1)
    value = _sensor(linear, recipes, batch, torch.Generator(device).manual_seed(seed))
    log_depth = depth.log()
    measured = [
        measure(np.random.default_rng((seed, i)), r, log_depth[i].cpu().numpy())
        if sizes.blurred else unmeasured(sizes.depth_size)
        for i, r in enumerate(recipes)
    ]
    return Clips(
        value if sizes.blurred else value.expand(-1, sizes.frames, -1, -1, -1),
        batch([r.camera for r in recipes]),
        log_depth,
        batch(measured),
    )


def _sensor(
    linear: Tensor, recipes: list[Recipe], batch: Callable[[list[Any]], Tensor], generator: torch.Generator
) -> Tensor:
    """From linear light to what the camera delivers: gain, noise, transfer curve, compression."""
    linear = tr.local_gain(linear, batch([r.gain for r in recipes]))
    well, gamma = batch([r.full_well_e for r in recipes]), batch([r.gamma for r in recipes])
    value = tr.expose(linear, well, gamma=gamma, generator=generator)
    compressed = [i for i, r in enumerate(recipes) if r.jpeg_quality]
    if compressed:
        value[compressed] = tr.jpeg(value[compressed], batch([recipes[i].jpeg_quality for i in compressed]))
    return value


def _intrinsics(recipes: list[Recipe], size: int, device: torch.device | str, source: bool = False) -> Tensor:
    """fx, fy, cx, cy of the frame at ``size`` pixels, or of the source picture around it."""
    scale, side = (size * OVERSAMPLING, len(recipes[0].image)) if source else (size, size)
    focal = torch.as_tensor(np.stack([r.focal for r in recipes]) * scale, dtype=torch.float32, device=device)
    return torch.cat([focal, torch.full_like(focal, (side - 1) / 2)], dim=1)
