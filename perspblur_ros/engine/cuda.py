"""The few CUDA calls that the TensorRT engine needs, through cuda-python: errors as sentences, memory as numpy."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError

FloatArray = NDArray[np.float32]


def runtime() -> Any:
    """cuda-python's runtime bindings, with a GPU behind them; EngineError without."""
    try:
        from cuda.bindings import runtime as cudart
    except ImportError:
        raise EngineError("cuda-python is not installed (pip install 'perspblur_ros[gpu]')") from None
    try:
        error, count = cudart.cudaGetDeviceCount()
    except Exception as failure:  # without a driver the bindings raise what they like
        raise EngineError(f"CUDA does not start: {str(failure).splitlines()[0][:120]}") from None
    if int(error) != 0 or not count:
        raise EngineError(f"no NVIDIA GPU can be used ({error.name})")
    return cudart


def call(function: Any, *arguments: Any) -> Any:
    """What a CUDA call returns beside its status; EngineError where the status is not success."""
    error, *values = function(*arguments)
    if int(error) != 0:
        raise EngineError(f"{function.__name__} failed with {error.name}")
    return values[0] if values else None


def device(cudart: Any) -> tuple[str, str]:
    """Name with compute capability of the first GPU, and the driver's version."""
    properties = call(cudart.cudaGetDeviceProperties, 0)
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return f"{name}, {properties.major}.{properties.minor}", str(call(cudart.cudaDriverGetVersion))


class Buffer:
    """A float32 tensor on the GPU and its page-locked twin on the host, allocated once."""

    def __init__(self, cudart: Any, shape: tuple[int, ...]) -> None:
        self._cudart = cudart
        self.bytes = 4 * int(np.prod(shape))
        self.on_device = int(call(cudart.cudaMalloc, self.bytes))
        try:
            self._locked = int(call(cudart.cudaMallocHost, self.bytes))
        except EngineError:
            cudart.cudaFree(self.on_device)
            raise
        memory = ctypes.cast(self._locked, ctypes.POINTER(ctypes.c_float))
        self.on_host: FloatArray = np.ctypeslib.as_array(memory, shape)

    def upload(self, stream: Any) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        call(self._cudart.cudaMemcpyAsync, self.on_device, self._locked, self.bytes, kind, stream)

    def download(self, stream: Any) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self._cudart.cudaMemcpyAsync, self._locked, self.on_device, self.bytes, kind, stream)

    def close(self) -> None:
        self._cudart.cudaFree(self.on_device)
        self._cudart.cudaFreeHost(self._locked)
