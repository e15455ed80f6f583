"""Counting with a voice: every cause is counted, and told at most once in a while.

``LogForwarder`` makes what the ROS-free layers log with the standard library appear in the node's log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

QUIET_S = 5.0


def say(logger: Any, level: int, text: str) -> None:
    """Log at a level of the standard library. rclpy insists on one level per line of code, hence the branches."""
    if level >= logging.ERROR:
        logger.error(text)
    elif level >= logging.WARNING:
        logger.warning(text)
    elif level >= logging.INFO:
        logger.info(text)
    else:
        logger.debug(text)


class Reporter:
    """Counts causes (``counts``, monotone) and logs each with its sentence, at most once per ``QUIET_S``.

    Causes look like those of the pipeline: "drop.encoding", "lost.middleware", "error.callback".
    """

    def __init__(self, logger: Any, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.counts: Counter[str] = Counter()
        self._logger = logger
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._told: dict[str, tuple[float, int]] = {}

    def count(self, cause: str, n: int = 1) -> None:
        with self._lock:
            self.counts[cause] += n

    def warn(self, cause: str, sentence: str, n: int = 1) -> None:
        """Count ``n`` of ``cause`` and say so, unless it was said a moment ago."""
        self._tell(cause, sentence, n, logging.WARNING)

    def error(self, cause: str, sentence: str) -> None:
        self._tell(cause, sentence, 1, logging.ERROR)

    def _tell(self, cause: str, sentence: str, n: int, level: int) -> None:
        with self._lock:
            self.counts[cause] += n
            count, now_s = self.counts[cause], self._clock_s()
            told_s, told_count = self._told.get(cause, (-QUIET_S, 0))
            if now_s - told_s < QUIET_S:
                return
            self._told[cause] = (now_s, count)
        unsaid = count - told_count - n
        times = f" ({unsaid} more since it was last said)" if unsaid else ""
        say(self._logger, level, f"{cause}: {sentence}{times}")


class LogForwarder(logging.Handler):
    """Forwards records of the package's standard loggers to a ROS logger."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        say(self._logger, record.levelno, record.getMessage())
