"""Other processes for the tests: programs with lines to wait for, and the node as a user starts it."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).with_name("programs.py")
DEADLINE_S = 30.0


class Process:
    """A child whose output lines can be waited for; killed at the end of the block if it still runs."""

    def __init__(self, command: list[str], domain: int) -> None:
        environment = {
            **os.environ,
            "ROS_DOMAIN_ID": str(domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
            "PYTHONPATH": str(PROGRAMS.parents[2]),
        }
        self.output: list[str] = []
        self._shared_before = shared_memory()
        self._files: set[Path] = set()
        self._lines: queue.Queue[str] = queue.Queue()
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exception: Any) -> None:
        """End it politely if it listens; what a killed process leaves in shared memory is taken away."""
        self.send_if_running(signal.SIGINT)
        try:
            self._child.wait(2.0)
        except subprocess.TimeoutExpired:
            self._child.kill()
        self._child.communicate()
        for path in (
            self._files - self._shared_before
        ):  # its peers may still look into them, which an unlinked file allows
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}_el").unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_for(self, text: str) -> None:
        """Wait for a line that contains ``text``."""
        end_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                line = self._lines.get(timeout=max(end_s - time.monotonic(), 0.01))
            except queue.Empty:
                raise AssertionError(f"waited in vain for {text!r} among {self.output[-20:]}") from None
            if text in line:
                return

    def send(self, number: signal.Signals) -> None:
        self._files |= mapped(str(self.pid))
        self._child.send_signal(number)

    def send_if_running(self, number: signal.Signals) -> bool:
        running = self._child.poll() is None
        if running:
            self.send(number)
        return running

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        status = self._child.wait(timeout_s)
        self._reader.join(5.0)
        return status

    def leaked(self) -> set[Path]:
        """Shared-memory files that this process used when it was sent a signal, and that nobody uses any more."""
        return (self._files - self._shared_before) & shared_memory() - mapped()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self.output.append(line)
            self._lines.put(line)


class Program(Process):
    """One of ``programs.py``, in the domain of a context."""

    def __init__(self, *arguments: str, context: Any) -> None:
        super().__init__([sys.executable, str(PROGRAMS), *arguments], context.get_domain_id())


class NodeProcess(Process):
    """The node as ``ros2 run`` and ``perspblur run`` start it."""

    def __init__(self, *arguments: str, domain: int) -> None:
        super().__init__([sys.executable, "-m", "perspblur_ros.ros.main", *arguments], domain)


def shared_memory() -> set[Path]:
    """The files of Fast DDS; locks and semaphores go with them."""
    return {path for path in Path("/dev/shm").glob("fastdds_*") if not path.name.endswith("_el")}


def mapped(pid: str = "[0-9]*") -> set[Path]:
    """What living processes, or one, have mapped of it."""
    found = set()
    for maps in Path("/proc").glob(f"{pid}/maps"):
        with suppress(OSError):  # a process that has just ended
            found |= {Path(line.split()[-1]) for line in maps.read_text().splitlines() if "/dev/shm/fastdds" in line}
    return found
