"""Spreading the samples of a frame over the frame's period.

A burst of 30 messages overruns the queue of an ordinary subscriber (depth 5 or 10), which then loses half of them
without a trace. The pacer sends each at its own time, from a thread of its own, so that neither the computation nor
the executor delays it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

Message = bytes

HASTE_PER_FRAME = 0.25  # how much faster a frame is sent for each one that still waits
MAX_WAITING = 4000  # beyond any sensible delay; what does not fit is dropped, oldest first


class Pacer:
    """Sends messages one by one, evenly over the span they were given with.

    It never makes up for lost time with a burst. A backlog, be it from a stall or from frames that come faster than
    their span, makes the following frames go a little faster, so that it settles instead of growing.
    ``publish`` must not raise. ``sent`` and ``dropped`` are monotone.
    """

    def __init__(self, publish: Callable[[Message], None], name: str = "imu-pacer") -> None:
        self._publish = publish
        self._waiting: deque[tuple[float, Message]] = deque()  # time to the message after it, s
        self._changed = threading.Condition()
        self._end_s: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.sent = 0
        self.dropped = 0

    def start(self) -> None:
        self._thread.start()

    def put(self, messages: Sequence[Message], span_s: float) -> None:
        """Queue one frame's messages, to be spread over ``span_s`` seconds; 0 sends them at once."""
        if not messages:
            return
        with self._changed:
            frames_waiting = len(self._waiting) / len(messages)
            step_s = span_s / len(messages) / (1 + HASTE_PER_FRAME * frames_waiting)
            self._waiting.extend((step_s, message) for message in messages)
            while len(self._waiting) > MAX_WAITING:
                self._waiting.popleft()
                self.dropped += 1
            self._changed.notify_all()

    @property
    def backlog(self) -> int:
        with self._changed:
            return len(self._waiting)

    def stop(self, timeout_s: float = 0.5) -> None:
        """Send what is waiting, still paced, and end; what remains after ``timeout_s`` is dropped."""
        with self._changed:
            self._end_s = time.monotonic() + timeout_s
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s + 1.0)
        self.dropped += len(self._waiting)
        self._waiting.clear()

    def _run(self) -> None:
        due_s = 0.0
        while (item := self._take()) is not None:
            step_s, message = item
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            self._publish(message)
            self.sent += 1
            due_s = max(due_s, time.monotonic() - step_s) + step_s  # late by more than a step: the rest shifts

    def _take(self) -> tuple[float, Message] | None:
        """The next message, as soon as there is one; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._end_s is not None)
            if not self._waiting or (self._end_s is not None and time.monotonic() > self._end_s):
                return None
            return self._waiting.popleft()
