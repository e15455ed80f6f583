"""Which engine runs: what was asked for, or with ``auto`` the best that can be had."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from . import Engine
from .manifest import load_manifest
from .probe import check_engine

FloatArray = NDArray[np.float32]
Progress = Callable[[int, int, str], None]  # done, of, label

_log = logging.getLogger(__name__)


class Selection(NamedTuple):
    """``engine`` is None where nothing runs; ``warning`` is the sentence to log once, empty where all is as asked."""

    engine: Engine | None
    warning: str = ""


def select_engine(choice: str, folder: Path, threads: int = 1, progress: Progress | None = None) -> Selection:
    """Load the network of ``folder`` by ``choice``: auto, tensorrt, onnxruntime or none.

    An explicit choice that cannot be had raises EngineError; ``auto`` falls back to ONNX Runtime, then to nothing.
    """
    if choice == "none":
        return Selection(None)
    if choice == "tensorrt":
        return Selection(_checked(_tensorrt(folder, progress)))
    if choice == "onnxruntime":
        return Selection(_checked(_onnxruntime(folder, threads)))
    if choice != "auto":
        raise EngineError(f"engine '{choice}' is none of auto, tensorrt, onnxruntime, none")
    try:
        return Selection(GpuThenCpu(_checked(_tensorrt(folder, progress)), lambda: _onnxruntime(folder, threads)))
    except EngineError as error:
        no_tensorrt = str(error)
    try:
        engine = _checked(_onnxruntime(folder, threads))
    except EngineError as error:
        return Selection(None, f"engine auto: no learned stack, as {error}")
    return Selection(engine, f"engine auto: {engine.name}, as {no_tensorrt}")


class GpuThenCpu:
    """An engine on the GPU until it fails in the middle of a stream, then one on the CPU; ``auto`` gives this."""

    def __init__(self, gpu: Engine, make_cpu: Callable[[], Engine]) -> None:
        self._engine, self._make_cpu = gpu, make_cpu
        self.manifest = gpu.manifest
        self.on_gpu = True

    @property
    def name(self) -> str:
        return self._engine.name

    def run(self, graph: str, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        try:
            return self._engine.run(graph, inputs)
        except EngineError as error:
            if not self.on_gpu:
                raise
            failed, self.on_gpu = self._engine, False
            self._engine = self._make_cpu()
            _log.warning("engine auto: %s from now on, as %s failed: %s", self._engine.name, failed.name, error)
            failed.close()
        return self._engine.run(graph, inputs)

    def close(self) -> None:
        self._engine.close()


def _tensorrt(folder: Path, progress: Progress | None) -> Engine:
    from .tensorrt import TensorRtEngine

    return TensorRtEngine(load_manifest(folder), progress=progress)


def _onnxruntime(folder: Path, threads: int) -> Engine:
    manifest = load_manifest(folder)
    try:
        from .ort import OrtEngine
    except ImportError as error:
        raise EngineError(f"onnxruntime cannot be imported: {str(error).splitlines()[0]}") from None
    return OrtEngine(manifest, threads)


def _checked(engine: Engine) -> Engine:
    try:
        check_engine(engine)
    except EngineError:
        engine.close()
        raise
    return engine
