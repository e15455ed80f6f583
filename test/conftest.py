"""What every test shares: one BLAS thread, reproducible property tests, a ROS graph of its own, the evaluation data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from perspblur_ros.ros.middleware import BLAS_VARIABLES

for name in BLAS_VARIABLES:  # before numpy is imported, as the entry points do
    os.environ.setdefault(name, "1")

import matplotlib  # noqa: E402

matplotlib.use("Agg")

settings.register_profile("reproducible", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("reproducible")

# before any rclpy context exists: two test runs on one machine must not hear each other
os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The evaluation data beside the checkout; tests that ask for it carry ``@pytest.mark.data``."""
    if not DATA.is_dir():
        pytest.skip("the evaluation data ../shared/data is not there")
    return DATA
