"""ONNX Runtime on the CPU: runs everywhere, the default without a GPU."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ..errors import EngineError
from .interface import Shapes
from .manifest import Graph, Manifest

FloatArray = NDArray[np.float32]


class OrtEngine:
    """One session per graph, all loaded at the start.

    Outputs are fresh arrays: the stream keeps them for many frames, and ONNX Runtime reuses its own memory inside.
    """

    def __init__(self, manifest: Manifest, threads: int = 1) -> None:
        self.manifest = manifest
        self.name = f"onnxruntime {onnxruntime.__version__} on the CPU"
        self._sessions = {name: _session(graph, threads) for name, graph in manifest.graphs.items()}

    def run(self, graph: str, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        outputs = list(self.manifest.graphs[graph].outputs)
        try:
            return dict(zip(outputs, self._sessions[graph].run(outputs, dict(inputs))))
        except MemoryError:
            raise
        except Exception as error:  # its own exceptions have no common public base
            raise EngineError(f"onnxruntime failed in {graph}: {str(error).splitlines()[0][:160]}") from None

    def close(self) -> None:
        self._sessions.clear()


def _session(graph: Graph, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning costs twice the CPU
    try:
        session = onnxruntime.InferenceSession(str(graph.path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exceptions have no common public base
        raise EngineError(f"onnxruntime does not load {graph.path}: {str(error).splitlines()[0][:160]}") from None
    for kind, found, wanted in (
        ("inputs", _shapes(session.get_inputs()), graph.inputs),
        ("outputs", _shapes(session.get_outputs()), graph.outputs),
    ):
        if found != wanted:
            raise EngineError(f"{graph.path}: its {kind} are {found}, the manifest says {wanted}")
    return session


def _shapes(values: list[onnxruntime.NodeArg]) -> Shapes:
    return {value.name: tuple(value.shape) for value in values}
