"""The graph that ``ros2 launch`` and ``perspblur run`` start: one description of names for both.

Every name is relative, so a namespace moves the whole graph. The node's inputs are remapped to where a camera driver
called ``camera`` publishes.
"""

from __future__ import annotations

from collections.abc import Sequence

PACKAGE = "perspblur_ros"
PIPELINE, CAMERA_SIMULATOR, EVALUATOR = "pipeline", "camera_simulator", "evaluator"  # executables
NODE_NAME = "perspblur"

IMAGE, CAMERA_INFO = "image_raw", "camera_info"
DENSE, DENSE_PATH, DENSE_STATUS = "dense_trajectory", "dense_trajectory/path", "dense_trajectory/status"
SPARSE = "sparse_trajectory"
DEPTH, DEPTH_INFO, DEPTH_VARIANCE = "depth/image", "depth/camera_info", "depth/variance"
TRUTH = "ground_truth/imu"

REMAPPINGS = {IMAGE: f"camera/{IMAGE}", CAMERA_INFO: f"camera/{CAMERA_INFO}"}


def with_defaults(argv: Sequence[str]) -> list[str]:
    """``argv`` with the default remappings behind it: rcl takes the first rule that matches, so the user's win."""
    rules = [part for source, target in REMAPPINGS.items() for part in ("-r", f"{source}:={target}")]
    return [*argv, "--ros-args", *rules, "--"]
