"""The camera's calibration as its driver tells it: the last good one of every image size.

CameraInfo shares the image's stamp and its content hardly ever changes, so that a cache serves as well as a time
synchroniser, holds back no image and needs no package that the wheels lack.
"""

from __future__ import annotations

from sensor_msgs.msg import CameraInfo

from ..camera import Camera
from ..errors import FrameError
from .conversions import to_camera

MAX_SIZES = 8


class Calibration:
    """Cameras by image size (width, height). ``refusal``: why the newest message was refused, or empty."""

    def __init__(self) -> None:
        self.refusal = ""
        self.message: CameraInfo | None = None  # the newest good one
        self._cameras: dict[tuple[int, int], Camera] = {}

    def update(self, info: CameraInfo) -> None:
        """Take over a calibration; FrameError when it cannot be used, and the last good one stays."""
        try:
            camera = to_camera(info)
        except FrameError as error:
            self.refusal = str(error)
            raise
        self.refusal = ""
        self.message = info
        size = (camera.width, camera.height)
        if size not in self._cameras and len(self._cameras) >= MAX_SIZES:
            self._cameras.pop(next(iter(self._cameras)))
        self._cameras[size] = camera

    def camera(self, width: int, height: int) -> Camera:
        """The calibration of images of this size; FrameError when there is none."""
        camera = self._cameras.get((width, height))
        if camera is None:
            sizes = ", ".join(f"{w} x {h}" for w, h in self._cameras)
            raise FrameError(f"the image is {width} x {height}, but the calibration is for {sizes}")
        return camera

    def __bool__(self) -> bool:
        return bool(self._cameras)
