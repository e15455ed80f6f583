"""Running exported networks without torch: what an engine is. Which one runs is decided in ``select``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .manifest import Manifest

FloatArray = NDArray[np.float32]


class Engine(Protocol):
    """Runs the graphs of one folder. Not for several threads at once."""

    manifest: Manifest

    @property
    def name(self) -> str:
        """What runs it, for people: "onnxruntime 1.31 on the CPU"."""

    def run(self, graph: str, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Outputs by name; C-contiguous float32, the caller's to keep. Shapes as in the manifest.

        Raises EngineError when the engine fails, as a GPU can; it is not used afterwards.
        """

    def close(self) -> None:
        """Give memory back; the engine is not used afterwards."""
