"""Start a node's executable, wait until it speaks on /diagnostics, send SIGINT, expect exit status 0 within 2 s."""

import os
import signal
import subprocess
import sys
import time

os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)  # leave other graphs on this machine alone

import rclpy
from diagnostic_msgs.msg import DiagnosticArray

START_S, STOP_S = 60.0, 2.0


def wait_for_diagnostics(node: subprocess.Popen) -> bool:
    """True when a message arrived; False when the node ended or ``START_S`` passed."""
    heard: list[DiagnosticArray] = []
    rclpy.init()
    listener = rclpy.create_node("start_and_stop")
    listener.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 10)
    deadline = time.monotonic() + START_S
    while not heard and node.poll() is None and time.monotonic() < deadline:
        rclpy.spin_once(listener, timeout_sec=0.1)
    listener.destroy_node()
    rclpy.shutdown()
    return bool(heard)


def main() -> str | None:
    with subprocess.Popen(sys.argv[1:]) as node:
        try:
            if not wait_for_diagnostics(node):
                return f"{sys.argv[1]} said nothing on /diagnostics (exit status {node.poll()})"
            node.send_signal(signal.SIGINT)
            status = node.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return f"{sys.argv[1]} did not end within {STOP_S} s of SIGINT"
        finally:
            node.kill()
    return None if status == 0 else f"{sys.argv[1]} ended with status {status}"


if __name__ == "__main__":
    sys.exit(main())
