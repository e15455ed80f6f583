"""The thread that computes, behind a bounded queue that drops the oldest."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Worker(Generic[Item]):
    """Runs ``work(item)`` for every submitted item, in order, on one thread.

    ``requests`` come before waiting items and are never dropped; a request replaces one of the same name that has not
    run yet, so their number is bounded. ``idle`` runs once when ``idle_s`` have passed without an item. The callables
    must not raise: there is nobody behind them who could tell the user.
    """

    def __init__(
        self, work: Callable[[Item], None], capacity: int, idle: Callable[[], None], idle_s: float, name: str
    ) -> None:
        self._work = work
        self._capacity = capacity
        self._idle = idle
        self._idle_s = idle_s
        self._waiting: deque[Item] = deque()
        self._requests: dict[str, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._busy = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, item: Item) -> int:
        """Queue an item; returns how many of the oldest were dropped to make room."""
        with self._changed:
            dropped = max(len(self._waiting) + 1 - self._capacity, 0)
            for _ in range(dropped):
                self._waiting.popleft()
            self._waiting.append(item)
            self._changed.notify_all()
        return dropped

    def request(self, name: str, job: Callable[[], None]) -> bool:
        """Run ``job`` on the thread before the next item; False when it replaced one that had not run."""
        with self._changed:
            is_new = name not in self._requests
            self._requests[name] = job
            self._changed.notify_all()
        return is_new

    @property
    def backlog(self) -> int:
        """Items waiting or being worked on."""
        with self._changed:
            return len(self._waiting) + self._busy

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self, timeout_s: float) -> int:
        """End after the current item; returns how many items were left waiting."""
        with self._changed:
            self._stopping = True
            left = len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return left

    def _run(self) -> None:
        idle_told = True
        while True:
            job = self._next(None if idle_told else self._idle_s)
            if job is None:
                return
            idle_told = job is self._idle
            job()
            with self._changed:
                self._busy = False

    def _next(self, timeout_s: float | None) -> Callable[[], None] | None:
        """The next thing to do, ``self._idle`` after ``timeout_s`` without one, None at the end."""
        with self._changed:
            something = self._changed.wait_for(
                lambda: self._stopping or bool(self._requests) or bool(self._waiting), timeout_s
            )
            if self._stopping:
                return None
            if not something:
                return self._idle
            self._busy = True
            if self._requests:
                return self._requests.pop(next(iter(self._requests)))
            item = self._waiting.popleft()
            return lambda: self._work(item)
