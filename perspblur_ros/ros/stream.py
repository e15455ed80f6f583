"""What is known of an incoming topic: who publishes it, how fast, how old, and what was lost on the way."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

RATE_WINDOW_S = 2.0


class Stream:
    """Follows one publisher of a topic and counts what it sent but never arrived.

    arrived        messages of the followed publisher that reached the callback
    missing        gaps in its sequence numbers: lost by the middleware, or overwritten in this subscription's queue
    middleware_lost  what the middleware itself reports as lost (a part of ``missing``)
    """

    def __init__(self, silence_s: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.arrived = 0
        self.missing = 0
        self.middleware_lost = 0
        self.last_arrival_s: float | None = None
        self._silence_s = silence_s
        self._clock_s = clock_s
        self._publisher: bytes | None = None
        self._sequence: int | None = None
        self._arrivals_s: deque[float] = deque(maxlen=400)

    def accept(self, info: Mapping[str, Any]) -> bool:
        """Take note of a message by its message info; False when it comes from a second publisher.

        Another publisher is followed once the first has been silent for ``silence_s``.
        """
        now_s = self._clock_s()
        gid = (info.get("publisher_gid") or {}).get("data")  # absent before Kilted
        if gid != self._publisher:
            if self._publisher is not None and self.silent_s(now_s) < self._silence_s:
                return False
            self._publisher, self._sequence = gid, None
        sequence = info.get("publication_sequence_number")
        if sequence is not None:
            if self._sequence is not None and sequence > self._sequence + 1:
                self.missing += sequence - self._sequence - 1
            self._sequence = sequence
        self.arrived += 1
        self.last_arrival_s = now_s
        self._arrivals_s.append(now_s)
        return True

    def silent_s(self, now_s: float | None = None) -> float:
        """Seconds since the last message; infinite before the first."""
        if self.last_arrival_s is None:
            return float("inf")
        return (self._clock_s() if now_s is None else now_s) - self.last_arrival_s

    @property
    def knows_publishers(self) -> bool:
        """Whether messages say who sent them, so that one publisher can be followed."""
        return self._publisher is not None

    @property
    def overwritten(self) -> int:
        """Messages that this subscription's own queue overwrote: the callback came too late for them."""
        return max(self.missing - self.middleware_lost, 0)

    def rate_hz(self) -> float:
        """Over the last two seconds; 0 with fewer than two messages."""
        now_s = self._clock_s()
        recent = [t for t in self._arrivals_s if now_s - t < RATE_WINDOW_S]
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 and recent[-1] > recent[0] else 0.0
