"""Doctor: what on this machine decides whether the package works and how well, with the remedy beside it."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from .errors import PerspBlurError
from .share import share_path

OK, NOTE, MISSING = "ok", "note", "missing"
LEFTOVER_PREFIXES = ("fastrtps_", "fastdds_", "sem.fastrtps_", "sem.fastdds_")
LEFTOVERS_WORTH_TELLING = 50
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
MALLOC_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@dataclass(frozen=True)
class Check:
    """``state``: ok, note (works, could be better) or missing (does not work)."""

    name: str
    state: str
    found: str
    remedy: str = ""


def check_all() -> list[Check]:
    """Every check, in the order of the table."""
    return [check() for check in CHECKS]


def python_version() -> Check:
    return Check("Python", OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def library(module: str, distribution: str, essential: bool, remedy: str) -> Callable[[], Check]:
    """A check that a library can be imported."""

    def check() -> Check:
        try:
            import_module(module)
        except Exception as error:  # a broken binary wheel raises anything
            state = MISSING if essential else NOTE
            return Check(module, state, f"{type(error).__name__}: {error}".splitlines()[0], remedy)
        return Check(module, OK, _version(distribution))

    return check


def ros() -> Check:
    """rclpy with its middleware: the messages of a distribution, or the wheels."""
    name = "ROS 2 (rclpy)"
    try:
        rclpy = import_module("rclpy")
        middleware = import_module("rclpy.utilities").get_rmw_implementation_identifier()
        import_module("sensor_msgs.msg")
    except ImportError as error:
        remedy = "pip install 'perspblur_ros[ros]', or source a ROS 2 workspace; bags work without"
        return Check(name, NOTE, str(error), remedy)
    except Exception as error:
        return Check(
            name, NOTE, f"{type(error).__name__}: {error}".splitlines()[0], "see the line on AMENT_PREFIX_PATH"
        )
    distribution = os.environ.get("ROS_DISTRO", "wheels" if "site-packages" in str(rclpy.__file__) else "unknown")
    if middleware != "rmw_fastrtps_cpp":
        return Check(name, NOTE, f"{distribution}, {middleware}", "measured with Fast DDS only")
    return Check(name, OK, f"{distribution}, {middleware}")


def mixed_installations() -> Check:
    """Libraries of a sourced ROS and of the wheels do not fit each other."""
    name = "AMENT_PREFIX_PATH"
    sourced = os.environ.get("AMENT_PREFIX_PATH", "")
    wheels = _version("ros-rclpy") != ""
    if sourced and wheels:
        return Check(name, NOTE, sourced, "rclpy wheels are installed too: unset it, or uninstall ros-rclpy")
    return Check(name, OK, sourced or "not set")


def image_transport() -> Check:
    """Fast DDS as shipped loses images above 512 KiB; the remedy works on the publisher's side."""
    name = "Fast DDS profile"
    remedy = (
        "where the camera driver runs, as it works on the publisher's side (perspblur run and launch set it for theirs)"
    )
    for variable in PROFILE_VARIABLES:
        value = os.environ.get(variable)
        if value:
            if not Path(value).is_file():
                return Check(name, NOTE, f"{variable} = {value}, which does not exist", remedy)
            return Check(name, OK, value)
    try:
        profile = str(share_path("config", "fastdds_image_profile.xml"))
    except PerspBlurError as error:
        return Check(name, NOTE, str(error), "")
    return Check(name, NOTE, "not set in this shell", f"export {PROFILE_VARIABLES[0]}={profile}   {remedy}")


def malloc_thresholds() -> Check:
    name = "malloc thresholds"
    values = {variable: os.environ.get(variable) for variable in MALLOC_VARIABLES}
    if platform.libc_ver()[0] != "glibc":
        return Check(name, OK, "not glibc")
    if all(values.values()):
        return Check(name, OK, ", ".join(str(value) for value in values.values()))
    remedy = "perspblur run sets them; for other image nodes export both as 33554432 and 67108864 (a third of the CPU)"
    return Check(name, NOTE, "not set in this shell", remedy)


def shared_memory_leftovers() -> Check:
    """Segments of participants that were killed."""
    name = "/dev/shm"
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check(name, NOTE, "not there", "Fast DDS falls back to UDP, which loses large images")
    files = [path for path in folder.iterdir() if path.name.startswith(LEFTOVER_PREFIXES)]
    megabytes = sum(_size(path) for path in files) / 1e6
    found = f"{len(files)} segments and locks of Fast DDS, {megabytes:.0f} MB"
    if len(files) > LEFTOVERS_WORTH_TELLING:
        return Check(name, NOTE, found, "fastdds shm clean, when no ROS process runs")
    return Check(name, OK, found)


def inference() -> Check:
    name = "ONNX Runtime"
    try:
        runtime = import_module("onnxruntime")
    except Exception as error:
        return Check(name, NOTE, f"{type(error).__name__}: {error}".splitlines()[0], "pip install onnxruntime")
    return Check(name, OK, f"{runtime.__version__}: {', '.join(runtime.get_available_providers())}")


def tensorrt() -> Check:
    name = "TensorRT"
    found = _version("tensorrt")
    if found:
        return Check(name, OK, found)
    return Check(name, OK, "not installed (only for NVIDIA GPUs: pip install 'perspblur_ros[gpu]')")


def cache_folder() -> Check:
    """Where compiled engines are kept; unwritable, every start would build them again."""
    name = "cache folder"
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    nearest = next(path for path in (root, *root.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        return Check(name, NOTE, f"{nearest}: {error.strerror}", "set XDG_CACHE_HOME to a folder that can be written")
    return Check(name, OK, str(root))


CHECKS: tuple[Callable[[], Check], ...] = (
    python_version,
    library("numpy", "numpy", True, "pip install numpy"),
    library("scipy", "scipy", True, "pip install scipy"),
    library("cv2", "opencv-python-headless", True, "pip install opencv-python-headless"),
    library("rosbags", "rosbags", False, "pip install rosbags (needed for bags)"),
    library("matplotlib", "matplotlib", False, "pip install matplotlib (needed for reports)"),
    library("jinja2", "jinja2", False, "pip install jinja2 (needed for reports)"),
    library("skimage", "scikit-image", False, "pip install scikit-image (needed for the demo)"),
    ros,
    mixed_installations,
    image_transport,
    malloc_thresholds,
    shared_memory_leftovers,
    inference,
    tensorrt,
    cache_folder,
)


def _version(distribution: str) -> str:
    """Installed version, empty when the distribution is not there (a system package may have no metadata)."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # ended meanwhile
        return 0
