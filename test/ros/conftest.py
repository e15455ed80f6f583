"""The fixtures of the tests that need ROS; they are skipped, saying so, where rclpy cannot be imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("rclpy")

os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"

if TYPE_CHECKING:
    from .rig import Rig


@pytest.fixture
def rig() -> Iterator[Rig]:
    from .rig import Rig

    rig = Rig()
    yield rig
    rig.close()
