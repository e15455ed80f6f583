"""The stream: every piece of the network is computed once, and only the Cross-Window chain is run again.

A window is S consecutive frames, counted from the start of the segment. When one is finished, its tokens are computed
and the chain is refined backward over the windows of the last T frames (paper Eq. 7). The result equals the network's
run over those frames as one clip, and its cost does not depend on the length of the stream.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from . import Engine
from .interface import UNMEASURED_VARIANCE

FloatArray = NDArray[np.float32]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WindowDepth:
    """Depth of the first frame of the oldest window in the chain, h × h over the whole frame."""

    frame: int
    log_depth: FloatArray  # (h, h) log m, network and measurement together
    log_variance: FloatArray  # (h, h) of the log depth
    own: FloatArray  # (2, h, h) log depth and log variance of the network alone
    frames: int  # that entered it


class Incremental:
    """Frames one by one through an engine.

    ``counts``: calls per graph, resets by a ``gap``, and ``non_finite`` results that were thrown away.
    ``failure``: why the engine ended, empty while it runs; from then on nothing comes out any more.
    ``unmeasured`` (2, h, h): the measured depth of a frame of which nothing is known.
    """

    def __init__(self, engine: Engine) -> None:
        sizes = engine.manifest.sizes
        self.engine = engine
        self.counts: Counter[str] = Counter()
        self.failure = ""
        self._S, self._T = sizes["window_frames"], sizes["clip_frames"]
        tokens = engine.manifest.graphs["encoder"].outputs["features"]
        head = engine.manifest.graphs["head"].inputs["measured"]
        self.unmeasured = np.zeros(head[1:], np.float32)
        self.unmeasured[1] = UNMEASURED_VARIANCE
        self._nothing = np.zeros(tokens, np.float32)
        self._window_input = np.zeros((1, self._S, *tokens[1:]), np.float32)
        self._features: deque[tuple[int, FloatArray]] = deque(maxlen=self._T)
        self._windows: deque[tuple[int, FloatArray]] = deque(maxlen=self._T // self._S)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame begins a segment."""
        self._features.clear()
        self._windows.clear()
        self._refined = self._nothing
        self._in_window, self._segment = 0, 0

    def add_frame(self, index: int, image: FloatArray, camera: FloatArray, segment: int = 0) -> int | None:
        """Take a frame: image (3, H, H) RGB 0 to 1, camera (C,). ``index`` is its name and rises within a segment.

        Frames of another segment share nothing with what was kept (``types.Frame``; the ring buffer judges gaps).
        Returns the index of the frame that ``depth`` describes from now on when a window was finished, else None.
        """
        if self._features and (segment != self._segment or index <= self._features[-1][0]):
            self.counts["gap"] += 1
            self.reset()
        self._segment = segment
        features = self._run("encoder", image=image[None])
        if features is None:
            return None
        self._features.append((index, features["features"]))
        self._window_input[:, self._in_window] = features["features"]
        self._in_window += 1
        if self._in_window < self._S:
            return None
        self._in_window = 0
        window = self._run("window", features=self._window_input, camera=camera[None])
        if window is None:
            return None
        self._windows.append((self._features[-self._S][0], window["window"]))
        return self._windows[0][0] if self._refine() else None

    def _refine(self) -> bool:
        refined = self._windows[-1][1]
        for _, earlier in reversed(list(self._windows)[:-1]):
            outputs = self._run("cross", earlier=earlier, later=refined)
            if outputs is None:
                return False
            refined = outputs["refined"]
        self._refined = refined
        return True

    def depth(self, measured: FloatArray | None = None) -> WindowDepth | None:
        """Depth of the frame that ``add_frame`` named last; None before the first window is finished.

        measured (2, h, h): log depth [log m] of that frame and its variance, ``UNMEASURED_VARIANCE`` where unknown.
        """
        if not self._windows:
            return None
        given = self.unmeasured if measured is None else measured
        outputs = self._run("head", refined=self._refined, measured=given[None])
        if outputs is None:
            return None
        return WindowDepth(
            self._windows[0][0],
            outputs["log_depth"][0, 0],
            outputs["log_variance"][0, 0],
            outputs["own"][0],
            len(self._windows) * self._S,
        )

    def decode(
        self, index: int, camera: FloatArray, trajectory: FloatArray, guess: FloatArray
    ) -> tuple[FloatArray, FloatArray] | None:
        """Path inside frame ``index``: cosine coefficients (4, 3) and the log of their sd (4, 3), pixel units.

        trajectory (n, 3) and guess (n, 6) as in ``interface``. None where the frame is not among the last T.
        """
        features = next((kept for k, kept in self._features if k == index), None)
        if features is None:
            return None
        outputs = self._run(
            "decoder",
            features=features,
            depth_features=self._refined,
            camera=camera[None],
            trajectory=trajectory[None],
            guess=guess[None],
        )
        return None if outputs is None else (outputs["coefficients"][0], outputs["log_sd"][0])

    def _run(self, graph: str, **inputs: FloatArray) -> dict[str, FloatArray] | None:
        """Outputs of a graph; None, and a new segment, when one is not finite or the engine has failed."""
        if self.failure:
            return None
        self.counts[graph] += 1
        try:
            outputs = self.engine.run(graph, inputs)
        except EngineError as error:
            self.failure = str(error)
            _log.error("the network has ended: %s", error)
            self.reset()
            return None
        if all(np.isfinite(value).all() for value in outputs.values()):
            return outputs
        self.counts["non_finite"] += 1
        if graph not in ("head", "decoder"):  # what they gave is not kept; the other graphs' state would be
            self.reset()
        return None
