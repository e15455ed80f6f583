"""Compares the dense trajectory with a truth while both are running: a gyro, or the simulated camera's motion."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import Imu

from . import graph
from .conversions import to_ns
from .main import run_node

WINDOW_S = 10.0
PERIOD_S = 5.0
DEPTH = 5000

FloatArray = NDArray[np.float64]


class Evaluator(Node):
    """Logs the rate error over the last ten seconds, Σ‖ω̂ − ω‖ / Σ‖ω‖, every five."""

    def __init__(self, **options: Any) -> None:
        super().__init__(graph.EVALUATOR, **options)
        self.finished, self.exit_status = False, 0
        self.estimate, self.truth = RateWindow(), RateWindow()
        self.create_subscription(Imu, graph.DENSE, self.estimate.add, DEPTH)
        self.create_subscription(Imu, graph.TRUTH, self.truth.add, DEPTH)
        self._timer = self.create_timer(PERIOD_S, self._report, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _report(self) -> None:
        error = rate_error(self.estimate, self.truth)
        if error is None:
            topics = f"{self.resolve_topic_name(graph.DENSE)} and {self.resolve_topic_name(graph.TRUTH)}"
            self.get_logger().info(f"waiting for {topics} at the same times", once=True)
        else:
            self.get_logger().info(
                f"rate error {error:.3f} over {len(self.estimate)} samples (1 = no better than rest)"
            )


class RateWindow:
    """The newest ``WINDOW_S`` seconds of angular rates, in the order of their stamps."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, tuple[float, float, float]]] = deque()

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, message: Imu) -> None:
        stamp_ns = to_ns(message.header.stamp)
        if self._samples and stamp_ns <= self._samples[-1][0]:
            self._samples.clear()  # the clock jumped back: a bag that loops
        w = message.angular_velocity
        self._samples.append((stamp_ns, (w.x, w.y, w.z)))
        while stamp_ns - self._samples[0][0] > WINDOW_S * 1e9:
            self._samples.popleft()

    def arrays(self) -> tuple[NDArray[np.int64], FloatArray]:
        return np.array([t for t, _ in self._samples], np.int64), np.array([w for _, w in self._samples])


def rate_error(estimate: RateWindow, truth: RateWindow) -> float | None:
    """On the estimate's stamps inside the truth's span; None where there are none."""
    if len(estimate) < 2 or len(truth) < 2:
        return None
    t_true, true = truth.arrays()
    t, omega = estimate.arrays()
    inside = (t >= t_true[0]) & (t <= t_true[-1])
    if not inside.any():
        return None
    seconds, at = (t_true - t_true[0]) * 1e-9, (t[inside] - t_true[0]) * 1e-9
    expected = np.stack([np.interp(at, seconds, axis) for axis in true.T], axis=1)
    total = float(np.linalg.norm(expected, axis=1).sum())
    return float(np.linalg.norm(omega[inside] - expected, axis=1).sum()) / total if total > 0 else None


def load() -> Callable[[Any], Evaluator]:
    return lambda context: Evaluator(context=context)


def main(argv: Sequence[str] | None = None) -> int:
    """``ros2 run perspblur_ros evaluator``."""
    return run_node(load, argv)


if __name__ == "__main__":
    sys.exit(main())
