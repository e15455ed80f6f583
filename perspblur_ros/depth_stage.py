"""The depth of the scene: what was measured and, where a network runs, what it says of the pictures, fused.

Measured depth needs a known lever arm and motion; elsewhere the map is the prior's and its variance says so. Without a
network a map describes the newest frame that is published; with one, the first frame of the oldest window in its chain
(paper 3.3), a clip length ago.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from .camera import Camera, Shutter
from .config import Config
from .depth_filter import DepthFilter, Grid, Points, rasterise, with_prior
from .engine.incremental import Incremental
from .engine.interface import camera_values, picture
from .engine.select import Selection, select_engine
from .errors import ConfigError, EngineError
from .share import share_path
from .types import DepthMap, Frame

FloatArray = NDArray[np.float64]
Float32Array = NDArray[np.float32]

SCALE_SD_UNKNOWN = 1.0  # of the log depth, where no lever arm tells how large the scene is
MIN_LEVER_ARM_M = 1e-3  # a shorter one carries no depth
OUTSIDE = 0.1  # of the picture's size: points so far outside still count
DEPTH_RANGE_M = (0.02, 1000.0)
TRUSTED_SD = 0.3  # relative; cells that are less certain are not fed back

_log = logging.getLogger(__name__)


class Posed(Protocol):
    """A frame and its best known orientation, which later frames still improve."""

    frame: Frame
    R_start_from_cam: FloatArray


@dataclass(frozen=True)
class Fused:
    """What a network's map was made of, (2, h, h) each: log depth [log m] with its variance, or the variance's log."""

    measured: Float32Array  # in the stream, and the variance; UNMEASURED_VARIANCE where nothing was
    own: Float32Array  # by the network alone, and the log variance


class DepthStage:
    """Frames and solved windows in, a depth map now and then.

    engine       what runs the network, None without one
    due          whether ``depth_map`` has something new to say
    fused        what went into the newest map, None where no network made one
    """

    def __init__(self, config: Config, counts: Counter[str]) -> None:
        self.config, self.counts = config, counts
        self._scale_known = bool(config.lever_arm)
        arm_m = np.array(config.lever_arm or (0.0, 0.0, 0.0))
        self._observable = not self._scale_known or float(np.linalg.norm(arm_m)) >= MIN_LEVER_ARM_M
        self._filter = DepthFilter(arm_m)
        selection = _selected(config)
        if selection.warning:
            _log.warning(selection.warning)
            counts["fallback.engine"] += selection.engine is None
        self.engine = selection.engine
        self._network = Incremental(selection.engine) if selection.engine else None
        self.fused: Fused | None = None
        clip_frames = selection.engine.manifest.sizes["clip_frames"] if selection.engine else 0
        self._recent: deque[Posed] = deque(maxlen=max(clip_frames, config.clip_frames))
        self.begin()

    @property
    def engine_name(self) -> str:
        """What runs the network now (``auto`` may have changed it), "none" without one."""
        return self.engine.name if self.engine else "none"

    @property
    def failure(self) -> str:
        """Why the network has ended, one sentence; empty while it runs, and without one."""
        return self._network.failure if self._network else ""

    def begin(self) -> None:
        """A new segment: nothing is known of its scene."""
        self._filter.reset()
        self._recent.clear()
        if self._network:
            self._network.reset()
        self.due = False
        self._frames, self._described = 0, -1
        self._measured_ns: int | None = None

    def add_frame(self, posed: Posed, shutter: Shutter, period_ns: int) -> None:
        """The newest frame; the network sees it once."""
        frame = posed.frame
        self._recent.append(posed)
        self._frames += 1
        if self._network is None:
            self.due |= self._frames % self.config.depth_every_frames == 0
            return
        camera = frame.camera
        values = camera_values(
            camera.focal_px / camera.width, shutter.exposure_ns * 1e-9, period_ns * 1e-9, shutter.readout_ns * 1e-9,
            self.config.lever_arm,
        )
        image = picture(frame.image, self._network.engine.manifest.sizes["image_px"])
        described = self._network.add_frame(frame.index, image, values, frame.segment)
        if described is not None:
            self.due, self._described = True, described

    def measure(self, points: Points, R_start_from_ref: FloatArray, newest_ns: int, span_ns: int) -> None:
        """Points of a window that spans ``span_ns`` and ends with the frame at ``newest_ns``."""
        if not self._observable:
            return
        elapsed_ns = newest_ns - self._measured_ns if self._measured_ns is not None else span_ns
        self._measured_ns = newest_ns
        if not self._scale_known:  # nor how the camera moved between the windows
            self._filter.reset()
        self._filter.add(points, R_start_from_ref, min(1.0, elapsed_ns / span_ns), elapsed_ns * 1e-9)

    def depth_map(self, newest: Posed) -> DepthMap | None:
        """The map that is due; ``newest`` is the frame that is being published. None where the network failed."""
        self.due = False
        posed, own = newest, None
        if self._network:
            found = next((p for p in self._recent if p.frame.index == self._described), None)
            if found is None:
                return None
            posed, side = found, self._network.engine.manifest.sizes["head_px"]
            measured = self._measured(posed, Grid(side, side, posed.frame.camera.height, posed.frame.camera.width))
            known = measured if self._scale_known else None
            fused = self._network.depth(known)
            if fused is None:
                self.counts["fallback.network_depth"] += 1
                return None
            self.fused = Fused(self._network.unmeasured if known is None else known, fused.own)
            own = np.stack([fused.log_depth, np.exp(fused.log_variance)])
        return self._published(posed, own)

    @property
    def metric(self) -> bool:
        """Whether the lever arm tells how large the scene is."""
        return self._scale_known and self._observable

    def trusted(self, depth: DepthMap) -> Float32Array | None:
        """What the tracks may be told of their own depths, NaN where too uncertain; None where the scale is unknown.

        Only measured depth: whether a network's helps the rotation has to be shown for its weights first.
        """
        if not self.metric or self._network:
            return None
        certain = depth.variance_m2 < (TRUSTED_SD * depth.depth_m) ** 2
        return np.where(certain, depth.depth_m, np.float32(np.nan))

    def _published(self, posed: Posed, own: Float32Array | None) -> DepthMap:
        camera = posed.frame.camera
        width = self.config.depth_width
        height = max(1, round(width * camera.height / camera.width))
        if own is None:
            grid = Grid(height, width, camera.height, camera.width)
            log_depth, log_variance = with_prior(self._measured(posed, grid))
        else:
            log_depth, log_variance = (cv2.resize(p, (width, height), interpolation=cv2.INTER_LINEAR) for p in own)
        depth_m = np.clip(np.exp(log_depth), *DEPTH_RANGE_M).astype(np.float32)
        variance_m2 = (depth_m**2 * log_variance).astype(np.float32)
        return DepthMap(posed.frame.index, posed.frame.stamp_ns, depth_m, variance_m2)

    def _measured(self, posed: Posed, grid: Grid) -> Float32Array:
        """Log depth and its variance (2, height, width) as the tracks give them, seen from a frame."""
        points = self._filter.points(posed.R_start_from_cam)
        if points is None:
            return rasterise(np.zeros((0, 2)), np.zeros(0), np.zeros(0), grid)
        scale_variance = points.scale_variance if self._scale_known else SCALE_SD_UNKNOWN**2
        pixels = _pixels(posed.frame.camera, points.rays)
        near = np.all(np.abs(pixels / (grid.picture_width, grid.picture_height) - 0.5) < 0.5 + OUTSIDE, axis=1)
        kept = points.chosen(near)
        return rasterise(pixels[near], kept.rho, kept.variance, grid, scale_variance)


def _pixels(camera: Camera, rays: FloatArray) -> FloatArray:
    """Raw pixels (N, 2) of ideal rays (N, 2)."""
    return camera.distort(rays * (camera.fx, camera.fy) + (camera.cx, camera.cy))


def _selected(config: Config) -> Selection:
    """The engine that the configuration asks for; ``auto`` goes without one where there is none."""
    if config.engine == "none":
        return Selection(None)
    try:
        folder = Path(config.engine_dir) if config.engine_dir else share_path("engines", "tiny")
    except ConfigError as error:
        if config.engine != "auto":
            raise EngineError(f"engine = '{config.engine}': {error}") from None
        return Selection(None, f"engine auto: no learned stack, as {error}")
    return select_engine(config.engine, folder)
