"""The watchdog and the publisher of /diagnostics."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from .diagnostics import Snapshot, statuses
from .log import say

TICK_S = 0.05
PERIOD_S = 0.5
RECENT_REPORTS = 4  # "lately" is the time of this many reports


class Monitor:
    """Publishes the statuses twice a second, and at once when the camera falls silent or comes back.

    ``snapshot`` must not raise. Runs on wall time: it must tick while simulated time stands still.
    """

    def __init__(self, node: Node, snapshot: Callable[[], Snapshot]) -> None:
        self._node = node
        self._snapshot = snapshot
        self._history: deque[Counter[str]] = deque([Counter()], maxlen=RECENT_REPORTS)
        self._was_silent = False
        self._next_s = 0.0
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._timer = node.create_timer(TICK_S, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _tick(self) -> None:
        try:
            self._watch()
        except Exception as error:
            self._node.get_logger().error(f"diagnostics could not be published: {error!r}", throttle_duration_sec=5.0)

    def _watch(self) -> None:
        now_s = time.monotonic()
        snapshot = self._snapshot()
        changed = bool(snapshot.silence) != self._was_silent
        if changed and snapshot.active:
            level = logging.WARNING if snapshot.silence else logging.INFO
            say(self._node.get_logger(), level, snapshot.silence or f"images arrive on {snapshot.topic}")
        self._was_silent = bool(snapshot.silence)
        if not changed and now_s < self._next_s:
            return
        counts = Counter(snapshot.counts)
        snapshot.recent = counts - self._history[0]
        if now_s >= self._next_s:
            self._history.append(counts)
            self._next_s = now_s + PERIOD_S
        message = DiagnosticArray(status=statuses(self._node.get_name(), snapshot))
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)
