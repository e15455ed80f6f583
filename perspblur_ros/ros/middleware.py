"""What libraries must be told before they are loaded, or images are lost and cores wasted.

Fast DDS as shipped drops best-effort images larger than its 512 KiB shared-memory segment; the profile in ``config/``
gives it 16 MiB. It acts on the publisher's side, so camera drivers need it too: the launch file sets it for everything
that it starts. glibc returns every large buffer to the kernel and faults it in again for the next image unless its
thresholds are raised, which costs three times the CPU of receiving it. And the solvers' matrices are small: a BLAS with
a thread per core spends ten times the work on waiting for cores that other threads and nodes are using.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..errors import ConfigError
from ..share import share_path

FAST_DDS_3, FAST_DDS_2 = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"

BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")

_KEEP_BYTES = 1 << 25  # 32 MiB, the most that every glibc accepts; holds any image up to 3840 x 2160 rgb8
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def profile_variable() -> str:
    """Which variable the Fast DDS of this installation reads: Jazzy and older have version 2."""
    try:
        return FAST_DDS_2 if int(version("rclpy").split(".")[0]) < 8 else FAST_DDS_3
    except (PackageNotFoundError, ValueError):
        return FAST_DDS_3


def profile_path() -> Path:
    return share_path("config", "fastdds_image_profile.xml")


def remedy() -> str:
    """What to do about images that the middleware loses."""
    return (
        f"start the camera driver (the publisher) with {profile_variable()}={profile_path()}, "
        "or set image_transport to compressed"
    )


def environment() -> dict[str, str]:
    """Variables for processes that are started from here; what the user has set already is left alone."""
    variables = {
        "MALLOC_MMAP_THRESHOLD_": str(_KEEP_BYTES),
        "MALLOC_TRIM_THRESHOLD_": str(2 * _KEEP_BYTES),
        **dict.fromkeys(BLAS_VARIABLES, "1"),
    }
    if not (os.environ.get(FAST_DDS_3) or os.environ.get(FAST_DDS_2)):
        variables[profile_variable()] = str(profile_path())
    return {name: value for name, value in variables.items() if not os.environ.get(name)}


def prepare_process() -> None:
    """The same for this process; call it before ``rclpy.init``, and before numpy is imported."""
    with suppress(ConfigError):  # an install without config/: the node runs, and /diagnostics names losses
        os.environ.update(environment())
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not on musl or macOS
        libc.mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _KEEP_BYTES)
