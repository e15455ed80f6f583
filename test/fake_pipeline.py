"""A stand-in for the pipeline: results come from a known motion, one frame late, with known errors."""

from __future__ import annotations

from collections import Counter, defaultdict, deque

import numpy as np

from perspblur_ros import so3
from perspblur_ros.camera import Shutter
from perspblur_ros.config import Config
from perspblur_ros.evaluation.bags import ImuLog
from perspblur_ros.evaluation.metrics import Motion
from perspblur_ros.types import DenseSamples, DepthMap, FrameResult, SparsePose

EPOCH = 1_000_000_000
PERIOD_NS = 62_500_000


class FakePipeline:
    """Knows the motion; its estimate is that plus noise of ``sd`` (rad, rad/s), its spline has five times as much."""

    def __init__(self, config: Config, log: ImuLog, sd: float = 0.02, with_depth: bool = False) -> None:
        self.counts: Counter[str] = Counter()
        self.stage_ms = defaultdict(lambda: deque(maxlen=100))
        self.shutter = Shutter(config.exposure_ns or 50_000_000, config.readout_ns or 0)
        self.depths: list[int] = []
        self._log = log
        self._truth = Motion(log, EPOCH)
        self._rng = np.random.default_rng(0)
        self._n = config.samples_per_frame
        self._sd = sd
        self._with_depth = with_depth
        self._waiting: list[FrameResult] = []
        self._last = 0

    def add_depth(self, stamp_ns: int, depth_m: np.ndarray) -> None:
        self.depths.append(stamp_ns)

    def add_frame(self, stamp_ns: int, image: np.ndarray, camera) -> list[FrameResult]:
        index = self.counts["frames"]
        self.counts["frames"] += 1
        if stamp_ns <= self._last:
            self.counts["drop.late"] += 1
            return []
        if self._last and stamp_ns - self._last > 200_000_000:
            self.counts["reset.gap"] += 1
        self._last = stamp_ns
        self.stage_ms["tracker"].append(2.0)
        self.stage_ms["spline"].append(3.0 + index % 3)
        done, self._waiting = self._waiting, [self._result(index, stamp_ns, camera)]
        return done

    def flush(self) -> list[FrameResult]:
        done, self._waiting = self._waiting, []
        return done

    def _result(self, index: int, stamp_ns: int, camera) -> FrameResult:
        mid_ns = self.shutter.mid_ns(stamp_ns)
        mid_s = (mid_ns - EPOCH) * 1e-9
        (R,) = self._truth.mean_rotation(np.array([mid_s]), self.shutter.exposure_ns * 1e-9)
        sparse = SparsePose(index, mid_ns, R, np.eye(3) * self._sd**2)
        depth = None
        if self._with_depth:
            depth_m = np.full((camera.height, camera.width), 3.0, np.float32)
            depth = DepthMap(index, stamp_ns, depth_m, np.ones_like(depth_m))
        blur_px = float(np.linalg.norm(self._truth.rate(np.array([mid_s]))) * camera.fx * 0.05)
        alternatives = {
            name: self._dense(index, mid_ns, name, scale) for name, scale in (("interpolation", 9), ("spline", 5))
        }
        own = self._dense(index, mid_ns, "crossblur", 1)
        if index % 5 == 0:  # the gate refused: the spline is published, the refinement becomes an alternative
            own, alternatives = (
                alternatives["spline"],
                {"interpolation": alternatives["interpolation"], "crossblur": own},
            )
        return FrameResult(sparse, own, alternatives, depth, blur_px, "accepted" if index % 5 else "held_out")

    def _dense(self, index: int, mid_ns: int, source: str, scale: float) -> DenseSamples:
        stamps = mid_ns + np.round(((np.arange(self._n) + 0.5) / self._n - 0.5) * PERIOD_NS).astype(np.int64)
        t = (stamps - EPOCH) * 1e-9
        noise = self._rng.normal(scale=self._sd * scale, size=(2, self._n, 3))
        R = self._truth.rotation(t) @ so3.exp(0.02 * noise[0])
        covariance = np.broadcast_to(np.eye(3) * (self._sd * scale) ** 2, (self._n, 3, 3))
        q = so3.to_quat_xyzw(R)
        return DenseSamples(index, stamps, q, self._truth.rate(t) + noise[1], 0.0004 * covariance, covariance, source)
