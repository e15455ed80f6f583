"""The newest frames of the stream, and the one place that judges what arrives.

Stamps that are zero, repeated or late, images that do not fit their camera: dropped. A gap, a clock that jumped back
(a bag that loops), a new size, encoding or calibration: a new segment, from that very frame, because nothing may be
tracked across it. Every drop and every reset is counted by cause.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from .camera import Camera, Shutter
from .types import Frame

UInt8Array = NDArray[np.uint8]

FRAMES = "frames"
DROP_ZERO_STAMP, DROP_DUPLICATE, DROP_LATE = "drop.zero_stamp", "drop.duplicate", "drop.late"
DROP_SIZE, DROP_ENCODING = "drop.size", "drop.encoding"
RESET_GAP, RESET_JUMP_BACK, RESET_REQUEST = "reset.gap", "reset.jump_back", "reset.request"
RESET_SIZE, RESET_ENCODING, RESET_INTRINSICS = "reset.size", "reset.encoding", "reset.intrinsics"
CAUSES = (
    *(DROP_ZERO_STAMP, DROP_DUPLICATE, DROP_LATE, DROP_SIZE, DROP_ENCODING),
    *(RESET_GAP, RESET_JUMP_BACK, RESET_REQUEST, RESET_SIZE, RESET_ENCODING, RESET_INTRINSICS),
)


@dataclass(frozen=True)
class Rejected:
    """A frame that was dropped: its index, the cause under which it was counted, and one sentence for the log."""

    index: int
    cause: str
    reason: str


class RingBuffer:
    """The last ``clip_frames`` (T) frames of the current segment, read as windows of ``window_frames`` (S).

    The pixels lie in one block of T × H × W bytes that is allocated again only when the size changes, so a frame's
    image is valid until T further frames were accepted. Images are read-only views.

    counts  monotone: "frames" (everything that arrived) and every cause of ``CAUSES``
    """

    def __init__(self, clip_frames: int, window_frames: int, max_gap_ns: int) -> None:
        self.clip_frames = clip_frames
        self.window_frames = window_frames
        self.max_gap_ns = max_gap_ns
        self.counts: Counter[str] = Counter(dict.fromkeys((FRAMES, *CAUSES), 0))
        self._frames: deque[Frame] = deque(maxlen=clip_frames)
        self._storage: UInt8Array = np.empty((clip_frames, 0, 0), np.uint8)
        self._accepted = 0
        self._segment = 0
        self._channels = 0

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, stamp_ns: int, image: UInt8Array, camera: Camera, shutter: Shutter) -> Frame | Rejected:
        """Judge a frame and, unless it is dropped, copy it in.

        image    H × W grey or H × W × 3 RGB, uint8, of the camera's size
        shutter  says what the stamp means; the frame's own time is ``shutter.mid_ns(stamp_ns)``
        """
        index = self.counts[FRAMES]
        self.counts[FRAMES] += 1
        mid_ns = shutter.mid_ns(stamp_ns)
        fault = self._fault_of_image(image, camera) or self._fault_of_stamp(stamp_ns, mid_ns)
        if fault:
            self.counts[fault[0]] += 1
            return Rejected(index, *fault)
        channels = image.shape[2] if image.ndim == 3 else 1
        cause = self._cause_of_reset(stamp_ns, camera, channels)
        if cause:
            self._start_segment(cause)
        self._channels = channels
        frame = Frame(self._store(image), index, self._segment, stamp_ns, mid_ns, camera)
        self._frames.append(frame)
        return frame

    def retime(self, shutter: Shutter) -> None:
        """The stamps mean something else than was assumed: judge what comes by the frames' times under ``shutter``."""
        for k, frame in enumerate(self._frames):
            self._frames[k] = replace(frame, mid_ns=shutter.mid_ns(frame.stamp_ns))

    def reset(self) -> None:
        """Forget the frames; the next one starts a new segment."""
        if self._frames:
            self._start_segment(RESET_REQUEST)

    def frames(self) -> tuple[Frame, ...]:
        """The frames of the current segment, at most T, oldest first."""
        return tuple(self._frames)

    def window(self, n: int = 0) -> tuple[Frame, ...]:
        """The S frames that end n·S frames before the newest one, oldest first; empty while there are too few."""
        end = len(self._frames) - n * self.window_frames
        start = end - self.window_frames
        return tuple(self._frames)[start:end] if n >= 0 and start >= 0 else ()

    def _fault_of_image(self, image: UInt8Array, camera: Camera) -> tuple[str, str] | None:
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            shape = " x ".join(map(str, image.shape))
            return DROP_ENCODING, f"an image of {shape} {image.dtype} is neither H x W nor H x W x 3 uint8"
        height, width = image.shape[:2]
        if (width, height) != (camera.width, camera.height):
            return DROP_SIZE, f"an image of {width} x {height} is not its camera's {camera.width} x {camera.height}"
        return None

    def _fault_of_stamp(self, stamp_ns: int, mid_ns: int) -> tuple[str, str] | None:
        if stamp_ns <= 0:
            return DROP_ZERO_STAMP, f"the stamp {stamp_ns} ns is not a time; does the driver fill header.stamp?"
        if not self._frames:
            return None
        newest = self._frames[-1]
        step_ns = stamp_ns - newest.stamp_ns
        if step_ns == 0:
            return DROP_DUPLICATE, f"the stamp {stamp_ns} ns came twice"
        if -self.max_gap_ns <= step_ns < 0:
            return DROP_LATE, f"the frame stamped {stamp_ns} ns came {-step_ns * 1e-9:.3f} s late"
        if 0 < step_ns <= self.max_gap_ns and mid_ns <= newest.mid_ns:
            return DROP_LATE, f"the frame stamped {stamp_ns} ns was not exposed later than the one before"
        return None

    def _cause_of_reset(self, stamp_ns: int, camera: Camera, channels: int) -> str | None:
        if not self._frames:
            return None
        newest = self._frames[-1]
        if stamp_ns < newest.stamp_ns:
            return RESET_JUMP_BACK
        if stamp_ns - newest.stamp_ns > self.max_gap_ns:
            return RESET_GAP
        if (camera.width, camera.height) != (newest.camera.width, newest.camera.height):
            return RESET_SIZE
        if channels != self._channels:
            return RESET_ENCODING
        if camera != newest.camera:
            return RESET_INTRINSICS
        return None

    def _start_segment(self, cause: str) -> None:
        self.counts[cause] += 1
        self._segment += 1
        self._frames.clear()

    def _store(self, image: UInt8Array) -> UInt8Array:
        """Copy the image into its slot as grey and return the read-only view of it."""
        if self._storage.shape[1:] != image.shape[:2]:
            self._storage = np.empty((self.clip_frames, *image.shape[:2]), np.uint8)
        slot = self._storage[self._accepted % self.clip_frames]
        self._accepted += 1
        if image.ndim == 3:
            cv2.cvtColor(image, cv2.COLOR_RGB2GRAY, dst=slot)
        else:
            np.copyto(slot, image)
        view = slot.view()
        view.setflags(write=False)
        return view
