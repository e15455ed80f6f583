"""Which engine runs: what was asked for, or with ``auto`` the best that can be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ..errors import EngineError
from . import Engine
from .manifest import load_manifest
from .probe import check_engine

Progress = Callable[[int, int, str], None]  # done, of, label


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
        return Selection(_checked(_tensorrt(folder, progress)))
    except EngineError as error:
        no_tensorrt = str(error)
    try:
        engine = _checked(_onnxruntime(folder, threads))
    except EngineError as error:
        return Selection(None, f"engine auto: no learned stack, as {error}")
    return Selection(engine, f"engine auto: {engine.name}, as {no_tensorrt}")


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
