"""ROS image messages as arrays, for every encoding that carries a picture or a depth map, and their calibration.

Fields are those of sensor_msgs/Image and CameraInfo. Everything that does not fit is refused with one FrameError
before numpy or OpenCV sees it; sizes are compared as Python integers, so 2³² − 1 cannot overflow. Results never share
memory with the message. 16-bit pictures keep their upper byte: the full scale of the container is taken as white.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .camera import Camera
from .errors import FrameError

Bytes = NDArray[np.uint8]

MAX_PIXELS = 1 << 26  # 8192 x 8192: beyond any camera, below what exhausts memory


@dataclass(frozen=True)
class _Layout:
    """``channels`` values of ``depth_bytes`` per pixel, in the order named by ``kind``."""

    kind: str
    channels: int = 1
    depth_bytes: int = 1
    even_width: bool = False
    even_height: bool = False
    plane_halves: int = 2  # height of all planes together, in halves of the picture's height


_PACKED = {
    "mono": ("grey", 1),
    "rgb": ("rgb", 3),
    "bgr": ("bgr", 3),
    "rgba": ("rgba", 4),
    "bgra": ("bgra", 4),
}
_LAYOUTS: dict[str, _Layout] = {
    f"{name}{bits}": _Layout(kind, channels, bits // 8)
    for name, (kind, channels) in _PACKED.items()
    for bits in (8, 16)
}
_LAYOUTS |= {
    f"bayer_{pattern}{bits}": _Layout(f"bayer_{pattern}", 1, bits // 8)
    for pattern in ("rggb", "bggr", "gbrg", "grbg")
    for bits in (8, 16)
}
# the untyped OpenCV encodings: three channels are blue, green, red, as OpenCV writes them
_LAYOUTS |= {
    f"{bits}UC{channels}": _Layout(kind, channels, bits // 8)
    for kind, channels in (("grey", 1), ("bgr", 3), ("bgra", 4))
    for bits in (8, 16)
}
_LAYOUTS |= dict.fromkeys(("yuv422", "uyvy"), _Layout("uyvy", 2, even_width=True))
_LAYOUTS |= dict.fromkeys(("yuv422_yuy2", "yuyv"), _Layout("yuyv", 2, even_width=True))
_LAYOUTS |= {name: _Layout(name, 1, even_width=True, even_height=True, plane_halves=3) for name in ("nv12", "nv21")}
_LAYOUTS["nv24"] = _Layout("nv24", 1, plane_halves=6)

ENCODINGS = tuple(_LAYOUTS)  # what ``decode`` takes
DEPTH_ENCODINGS = ("32FC1", "16UC1", "mono16")

_DISTORTION_MODELS = ("", "plumb_bob", "rational_polynomial", "equidistant", "fisheye")

_TO_GREY: dict[str, int] = {
    "rgb": cv2.COLOR_RGB2GRAY,
    "bgr": cv2.COLOR_BGR2GRAY,
    "rgba": cv2.COLOR_RGBA2GRAY,
    "bgra": cv2.COLOR_BGRA2GRAY,
    # OpenCV names a Bayer pattern by its second row, second and third column
    "bayer_rggb": cv2.COLOR_BayerBG2GRAY,
    "bayer_bggr": cv2.COLOR_BayerRG2GRAY,
    "bayer_gbrg": cv2.COLOR_BayerGR2GRAY,
    "bayer_grbg": cv2.COLOR_BayerGB2GRAY,
}
_TO_RGB: dict[str, int] = {
    "grey": cv2.COLOR_GRAY2RGB,
    "bgr": cv2.COLOR_BGR2RGB,
    "rgba": cv2.COLOR_RGBA2RGB,
    "bgra": cv2.COLOR_BGRA2RGB,
    "bayer_rggb": cv2.COLOR_BayerBG2RGB,
    "bayer_bggr": cv2.COLOR_BayerRG2RGB,
    "bayer_gbrg": cv2.COLOR_BayerGR2RGB,
    "bayer_grbg": cv2.COLOR_BayerGB2RGB,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuyv": cv2.COLOR_YUV2RGB_YUY2,
    "nv12": cv2.COLOR_YUV2RGB_NV12,
    "nv21": cv2.COLOR_YUV2RGB_NV21,
}


def decode(encoding: str, height: int, width: int, step: int, is_bigendian: int, data: Any, rgb: bool = False) -> Bytes:
    """The picture as uint8, H × W grey or (``rgb``) H × W × 3.

    ``data`` is anything with the buffer protocol; YUV pictures give their luma as grey, unchanged.
    Raises FrameError for an unknown encoding or sizes that do not fit each other.
    """
    layout = _LAYOUTS.get(encoding)
    if layout is None:
        raise FrameError(f"image encoding '{encoding}' is not a picture that can be read")
    if layout.even_width and width % 2:
        raise FrameError(f"a {encoding} image cannot be {width} pixels wide, an odd number")
    if layout.even_height and height % 2:
        raise FrameError(f"a {encoding} image cannot be {height} pixels high, an odd number")
    rows = _rows(encoding, height, width, step, data, layout.channels * layout.depth_bytes, layout.plane_halves)
    if layout.depth_bytes == 2:
        rows = rows[:, 0 if is_bigendian else 1 :: 2]
    pixels = rows if layout.channels == 1 else rows.reshape(len(rows), width, layout.channels)
    return _convert(layout.kind, height, np.ascontiguousarray(pixels), rgb)


def decode_depth_m(
    encoding: str, height: int, width: int, step: int, is_bigendian: int, data: Any
) -> NDArray[np.float32]:
    """A depth map, H × W float32 metres, NaN where nothing is known (REP 118: 32FC1 metres; 16UC1 mm, 0 invalid)."""
    if encoding not in DEPTH_ENCODINGS:
        raise FrameError(f"depth encoding '{encoding}' is none of {', '.join(DEPTH_ENCODINGS)}")
    item = 4 if encoding == "32FC1" else 2
    rows = np.ascontiguousarray(_rows(encoding, height, width, step, data, item, plane_halves=2))
    order = ">" if is_bigendian else "<"
    if item == 4:
        depth_m = rows.view(f"{order}f4").astype(np.float32)
    else:
        depth_m = rows.view(f"{order}u2").astype(np.float32) * np.float32(1e-3)
    with np.errstate(invalid="ignore"):
        depth_m[~(np.isfinite(depth_m) & (depth_m > 0))] = np.nan
    return depth_m


def decode_compressed(data: Any, rgb: bool = False) -> Bytes:
    """A JPEG or PNG picture (sensor_msgs/CompressedImage.data) as uint8, H × W grey or H × W × 3 RGB."""
    blob = bytes(data)
    width, height = _compressed_size(blob)
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise FrameError(f"the compressed image's size {width} x {height} cannot be used")
    try:
        image = cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR if rgb else cv2.IMREAD_GRAYSCALE)
    except cv2.error:
        image = None
    if image is None:
        raise FrameError(f"the compressed image of {len(blob)} bytes cannot be decoded")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if rgb else image, np.uint8)


def decode_camera(width: int, height: int, distortion_model: str, d: Any, k: Any) -> Camera:
    """The calibration in a sensor_msgs/CameraInfo; FrameError when there is none (uncalibrated cameras send zeros)."""
    if distortion_model not in _DISTORTION_MODELS:
        raise FrameError(f"distortion model '{distortion_model}' is none of {', '.join(_DISTORTION_MODELS[1:])}")
    if len(k) != 9:
        raise FrameError(f"the camera matrix has {len(k)} numbers instead of 9")
    distortion = tuple(float(v) for v in d)
    fisheye = distortion_model in ("equidistant", "fisheye")
    return Camera(
        width=index(width),
        height=index(height),
        fx=float(k[0]),
        fy=float(k[4]),
        cx=float(k[2]),
        cy=float(k[5]),
        distortion=distortion if any(distortion) else (),
        fisheye=fisheye and any(distortion),
    )


def _rows(encoding: str, height: int, width: int, step: int, data: Any, pixel_bytes: int, plane_halves: int) -> Bytes:
    """The rows of all planes without padding, (H · plane_halves / 2) × (W · pixel_bytes), a view of ``data``."""
    height, width, step = index(height), index(width), index(step)
    if height < 1 or width < 1:
        raise FrameError(f"the image's size {width} x {height} has no pixels")
    if height * width > MAX_PIXELS:
        raise FrameError(f"the image's size {width} x {height} is more than {MAX_PIXELS} pixels")
    if step < width * pixel_bytes:
        raise FrameError(f"a row of {width} {encoding} pixels needs {width * pixel_bytes} bytes, but step is {step}")
    buffer = memoryview(data).cast("B")
    n_rows = height * plane_halves // 2
    if len(buffer) != n_rows * step:
        raise FrameError(
            f"the image has {len(buffer)} bytes of data, but {n_rows} rows of {step} bytes are {n_rows * step}"
        )
    return np.frombuffer(buffer, np.uint8).reshape(n_rows, step)[:, : width * pixel_bytes]


def _convert(kind: str, height: int, pixels: Bytes, rgb: bool) -> Bytes:
    if kind == "nv24":
        return _nv24_to_rgb(pixels, height) if rgb else pixels[:height].copy()
    if not rgb and kind in ("nv12", "nv21"):
        return pixels[:height].copy()
    if not rgb and kind in ("uyvy", "yuyv"):
        return pixels[..., 1 if kind == "uyvy" else 0].copy()
    if kind == ("rgb" if rgb else "grey"):
        return pixels.copy()
    if kind.startswith("bayer") and min(pixels.shape) < 3:
        raise FrameError(f"a Bayer image of {pixels.shape[1]} x {pixels.shape[0]} pixels is too small to demosaic")
    return np.asarray(cv2.cvtColor(pixels, (_TO_RGB if rgb else _TO_GREY)[kind]), np.uint8)


def _nv24_to_rgb(planes: Bytes, height: int) -> Bytes:
    """Full-resolution U and V, interleaved, behind the luma; BT.601 video range like OpenCV's NV12."""
    width = planes.shape[1]
    y = planes[:height].astype(np.float32)
    u, v = np.moveaxis(planes[height:].reshape(height, width, 2).astype(np.float32) - 128, -1, 0)
    luma = 1.164 * (y - 16)
    rgb = np.stack([luma + 1.596 * v, luma - 0.813 * v - 0.391 * u, luma + 2.018 * u], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _compressed_size(blob: bytes) -> tuple[int, int]:
    """Width and height from the header, so that a picture of 2³¹ pixels is refused before it is allocated."""
    for magic, read in _HEADERS.items():
        if blob.startswith(magic):
            size = read(blob)
            if size is None:
                raise FrameError(f"the compressed image of {len(blob)} bytes is cut off or damaged")
            return size
    raise FrameError(f"the compressed image starts with {blob[:4].hex() or 'nothing'}, which is neither JPEG nor PNG")


def _png_size(blob: bytes) -> tuple[int, int] | None:
    if len(blob) < 24 or b"IEND" not in blob[-64:]:
        return None
    return struct.unpack(">II", blob[16:24])


def _jpeg_size(blob: bytes) -> tuple[int, int] | None:
    """Walk the segments to the start-of-frame; an end-of-image marker must follow, else the last rows are made up."""
    at = 2
    while at + 9 <= len(blob) and blob[at] == 0xFF:
        marker = blob[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", blob[at + 5 : at + 9])
            return (width, height) if blob.rfind(b"\xff\xd9") > at else None
        at += 2 + struct.unpack(">H", blob[at + 2 : at + 4])[0]
    return None


_HEADERS: dict[bytes, Callable[[bytes], tuple[int, int] | None]] = {
    b"\xff\xd8": _jpeg_size,
    b"\x89PNG\r\n\x1a\n": _png_size,
}
