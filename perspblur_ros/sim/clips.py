"""Clips: frames of a scene under a motion path, with everything that an estimate is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import so3
from ..camera import Camera, Shutter
from ..errors import ConfigError
from .motion import MotionPath
from .render import margin_px, prepare, render_depth, render_frame
from .scene import Scene
from .sensor import FloatImage, Sensor

FloatArray = NDArray[np.float64]

TRUTH_STEP_S = 0.002
START_NS = 1_000_000_000  # stamps of a simulated clip begin at one second: 0 means "no stamp" to some tools


@dataclass(frozen=True)
class SimulatedClip:
    """Frames and truth of one rendered clip.

    frames             list of uint8, H × W or H × W × 3 RGB
    stamps_ns          start of the first row's exposure, N
    exposure_s, readout_s, lever_arm_m (3,)
    truth_ns           M, every 2 ms, from before the first exposure to after the last one
    q_start_from_cam   M × 4 x y z w, relative to the camera at the first truth sample
    omega              M × 3 body rate, rad/s
    depth_m            H × W float32, at the first frame's stamp
    blur_px            N, length of the blur path at the image centre (rotation, first order)
    margin_px          least distance between the frame's border and the picture's; negative: mirrored world was seen
    """

    name: str
    frames: list[NDArray[np.uint8]]
    stamps_ns: NDArray[np.int64]
    camera: Camera
    exposure_s: float
    readout_s: float
    lever_arm_m: tuple[float, float, float]
    truth_ns: NDArray[np.int64]
    q_start_from_cam: FloatArray
    omega: FloatArray
    depth_m: FloatImage
    blur_px: FloatArray
    margin_px: float

    @property
    def shutter(self) -> Shutter:
        return Shutter(round(self.exposure_s * 1e9), round(self.readout_s * 1e9))


def simulate_clip(
    scene: Scene,
    path: MotionPath,
    camera: Camera,
    n_frames: int,
    fps: float,
    exposure_s: float,
    readout_s: float,
    lever_arm_m: ArrayLike = (0.0, 0.0, 0.0),
    start_s: float = 0.0,
    sensor: Sensor | None = None,
    seed: int = 0,
    name: str = "clip",
    on_frame: Callable[[int], None] | None = None,
) -> SimulatedClip:
    """Render ``n_frames`` frames whose first row opens at ``start_s`` + k / fps of the path's time.

    The scene's picture is what the camera sees at the mean pose of the clip. Same arguments, same clip (``seed``
    drives the noise). ``on_frame`` is called with the number of finished frames.
    """
    end_s = _checked_end(path, n_frames, fps, exposure_s, readout_s, start_s)
    sensor = sensor or Sensor()
    rng = np.random.default_rng(seed)
    view = prepare(scene, camera)
    path = path.centred(start_s, end_s)
    starts_s = start_s + np.arange(n_frames) / fps
    frames = []
    for k, t0_s in enumerate(starts_s):
        frames.append(sensor.expose(render_frame(view, path, t0_s, exposure_s, readout_s, lever_arm_m), rng))
        if on_frame:
            on_frame(k + 1)
    truth_s = _truth_times(start_s, end_s, path.duration_s)
    R = path.rotation(truth_s)
    return SimulatedClip(
        name=name,
        frames=frames,
        stamps_ns=_to_ns(starts_s, start_s),
        camera=camera,
        exposure_s=exposure_s,
        readout_s=readout_s,
        lever_arm_m=tuple(float(v) for v in np.asarray(lever_arm_m, float)),  # type: ignore[arg-type]
        truth_ns=_to_ns(truth_s, start_s),
        q_start_from_cam=so3.to_quat_xyzw(R[0].T @ R),
        omega=path.rate(truth_s),
        depth_m=render_depth(view, path, start_s, lever_arm_m),
        blur_px=np.array([centre_blur_px(path, camera, t, exposure_s, readout_s) for t in starts_s]),
        margin_px=margin_px(view, path, start_s, end_s),
    )


def centre_blur_px(path: MotionPath, camera: Camera, t0_s: float, exposure_s: float, readout_s: float) -> float:
    """Length of the path that the image centre's point draws during its row's exposure: f ∫ |(ω_x, ω_y)| dt."""
    t = t0_s + readout_s / 2 + exposure_s * (np.arange(60) + 0.5) / 60
    return float(camera.focal_px * np.linalg.norm(path.rate(t)[:, :2], axis=1).mean() * exposure_s)


def _checked_end(
    path: MotionPath, n_frames: int, fps: float, exposure_s: float, readout_s: float, start_s: float
) -> float:
    """Path time at which the last row of the last frame closes, or ConfigError."""
    if n_frames < 1:
        raise ConfigError(f"{n_frames} frames are not a clip")
    if not fps > 0:
        raise ConfigError(f"frame rate {fps} Hz is not positive")
    if not 0 < exposure_s <= 1 / fps + 1e-9:
        raise ConfigError(f"exposure {exposure_s} s is not between 0 and the frame period {1 / fps:.4f} s")
    if not 0 <= readout_s <= 1 / fps + 1e-9:
        raise ConfigError(f"readout {readout_s} s is not between 0 and the frame period {1 / fps:.4f} s")
    end_s = start_s + (n_frames - 1) / fps + exposure_s + readout_s
    if start_s < 0 or end_s > path.duration_s + 1e-9:
        raise ConfigError(f"the clip needs {start_s:.3f} to {end_s:.3f} s of a path of {path.duration_s:.3f} s")
    return end_s


def _truth_times(start_s: float, end_s: float, duration_s: float) -> FloatArray:
    """Every 2 ms from 20 ms before the first exposure to 20 ms after the last, as far as the path goes."""
    first = np.ceil(max(-0.02, -start_s) / TRUTH_STEP_S - 1e-9)
    last = np.floor(min(end_s - start_s + 0.02, duration_s - start_s) / TRUTH_STEP_S + 1e-9)
    return start_s + TRUTH_STEP_S * np.arange(int(first), int(last) + 1, dtype=float)


def _to_ns(t_s: FloatArray, start_s: float) -> NDArray[np.int64]:
    return START_NS + np.round((t_s - start_s) * 1e9).astype(np.int64)
