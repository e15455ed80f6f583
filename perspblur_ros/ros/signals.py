"""SIGINT and SIGTERM, owned by the program: rclpy's own handlers end one run in four with a traceback.

Standard library only, so that it can be in force before anything slow is imported.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


class StopRequest:
    """True once a signal asked to stop. Until ``armed`` nothing is worth cleaning up, and a signal ends at once."""

    def __init__(self) -> None:
        self._requested = False
        self._armed = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def arm(self) -> None:
        """From now on there are threads and shared memory to give back: signals only set the flag."""
        self._armed = True

    def ignore(self) -> None:
        """The work is done: a second signal must not interrupt the interpreter's own end, which would report a kill."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def __bool__(self) -> bool:
        return self._requested

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._armed:
            os._exit(0)
        self._requested = True
