"""Does an engine compute what was exported? A fixed input, and the mean and rms of what came out at export.

A hash protects the file; this protects what a runtime makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from . import Engine
from .interface import Shapes

FloatArray = NDArray[np.float32]
TOLERANCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}  # of the rms


def probe_inputs(shapes: Shapes) -> dict[str, FloatArray]:
    """A wave between 0.1 and 0.9 for every input: a legal picture, depth, variance or sd alike."""
    waves = {}
    for k, (name, shape) in enumerate(shapes.items()):
        phase = np.arange(np.prod(shape)) * (0.7 + 0.1 * k)
        waves[name] = (0.5 + 0.4 * np.sin(phase)).astype(np.float32).reshape(shape)
    return waves


def moments(outputs: Mapping[str, FloatArray]) -> dict[str, tuple[float, float]]:
    """Mean and rms of every output."""
    return {
        name: (float(np.mean(value)), float(np.sqrt(np.mean(np.square(value, dtype=np.float64)))))
        for name, value in outputs.items()
    }


def check_engine(engine: Engine) -> None:
    """EngineError if a graph gives other results here than it gave at export."""
    tolerance = TOLERANCE[engine.manifest.precision]
    for graph, entry in engine.manifest.graphs.items():
        found = moments(engine.run(graph, probe_inputs(entry.inputs)))
        for name, (mean, rms) in entry.probe.items():
            allowed = tolerance * (rms + 1e-3)
            if not np.allclose(found[name], (mean, rms), rtol=0, atol=allowed):
                raise EngineError(
                    f"{engine.name} computes {entry.path} wrongly: mean and rms of {name} are "
                    f"{found[name][0]:.4g} and {found[name][1]:.4g} instead of {mean:.4g} and {rms:.4g}"
                )
