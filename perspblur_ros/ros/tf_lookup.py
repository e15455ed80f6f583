"""The lever arm from TF: the one module that knows tf2, which exists only in a ROS 2 installation."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from rclpy.time import Time

from ..errors import ConfigError


class LeverArmLookup:
    """Waits for the transform between the pivot and the camera. ConfigError where tf2_ros is not installed."""

    def __init__(self, node: Node, pivot_frame: str) -> None:
        try:
            import tf2_ros
        except ImportError:
            raise ConfigError(
                f"pivot_frame = '{pivot_frame}' needs tf2_ros, which is not installed here; give lever_arm instead"
            ) from None
        self._node = node
        self._pivot_frame = pivot_frame
        self._no_transform: type[Exception] = tf2_ros.TransformException
        self._buffer: Any = tf2_ros.Buffer()
        self._listener: Any = tf2_ros.TransformListener(self._buffer, node)

    def find(self, optical_frame: str) -> tuple[float, float, float] | None:
        """Vector from the pivot to the optical centre, metres, in the optical frame; None while TF does not know it."""
        try:
            found = self._buffer.lookup_transform(optical_frame, self._pivot_frame, Time())
        except self._no_transform:
            return None
        pivot = found.transform.translation  # the pivot as the camera sees it
        return (-pivot.x, -pivot.y, -pivot.z)

    def destroy(self) -> None:
        self._listener.unregister()
