"""TensorRT: plans built from the same ONNX graphs on the machine that runs them.

The network is strongly typed, so that precision is what the graph says. Buffers are allocated once, everything runs on
one stream, and each graph with its two copies is one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, SupportsInt

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from . import cuda
from .interface import Shapes
from .manifest import Graph, Manifest
from .plan_cache import PlanCache, PlanKey, shapes_text

if TYPE_CHECKING:
    import tensorrt as trt

FloatArray = NDArray[np.float32]
Progress = Callable[[int, int, str], None]  # done, of, label


class TensorRtEngine:
    """One plan per graph. ``built``: the graphs whose plan was not in the cache."""

    def __init__(self, manifest: Manifest, cache: PlanCache | None = None, progress: Progress | None = None) -> None:
        require_tensorrt()
        import tensorrt as trt

        self._cudart = cuda.runtime()
        gpu, driver = cuda.device(self._cudart)
        self.manifest = manifest
        self.name = f"TensorRT {trt.__version__} on {gpu}"
        self.built: list[str] = []
        self._steps: dict[str, _Step] = {}
        self._stream = cuda.call(self._cudart.cudaStreamCreate)
        logger = trt.Logger(trt.Logger.ERROR)
        runtime = trt.Runtime(logger)
        try:
            for name, graph in manifest.graphs.items():
                key = PlanKey(graph.sha256, trt.__version__, gpu, driver, manifest.precision, shapes_text(graph.inputs))
                build = _builder(logger, name, graph, progress)
                plan, is_new = (cache or PlanCache()).load_or_build(key, runtime.deserialize_cuda_engine, build)
                self.built += [name] if is_new else []
                self._steps[name] = _Step(self._cudart, plan, graph, self._stream)
        except BaseException:
            self.close()
            raise

    def run(self, graph: str, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        return self._steps[graph].run(inputs)

    def close(self) -> None:
        for step in self._steps.values():
            step.close()
        self._steps.clear()
        if self._stream is not None:
            self._cudart.cudaStreamDestroy(self._stream)
            self._stream = None


class _Step:
    """A loaded plan with its buffers, captured: upload, run, download."""

    def __init__(self, cudart: Any, plan: trt.ICudaEngine, graph: Graph, stream: Any) -> None:
        self._cudart, self._stream = cudart, stream
        self._captured: Any = None
        self._context: trt.IExecutionContext | None = plan.create_execution_context()
        self._inputs: dict[str, cuda.Buffer] = {}
        self._outputs: dict[str, cuda.Buffer] = {}
        if self._context is None:
            raise EngineError(f"TensorRT has no memory to run {graph.path}")
        _check_tensors(plan, graph)
        try:
            self._prepare(graph)
        except BaseException:
            self.close()
            raise

    def _prepare(self, graph: Graph) -> None:
        assert self._context is not None
        for buffers, shapes in ((self._inputs, graph.inputs), (self._outputs, graph.outputs)):
            for name, shape in shapes.items():
                buffers[name] = cuda.Buffer(self._cudart, shape)
                self._context.set_tensor_address(name, buffers[name].on_device)
        self._enqueue()  # once outside the capture: the first run may still allocate
        cuda.call(self._cudart.cudaStreamSynchronize, self._stream)
        self._captured = self._capture()

    def run(self, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        for name, buffer in self._inputs.items():
            if inputs[name].shape != buffer.on_host.shape:  # numpy would broadcast it
                raise EngineError(f"{name} has the shape {inputs[name].shape} instead of {buffer.on_host.shape}")
            np.copyto(buffer.on_host, inputs[name])
        cuda.call(self._cudart.cudaGraphLaunch, self._captured, self._stream)
        cuda.call(self._cudart.cudaStreamSynchronize, self._stream)
        return {name: buffer.on_host.copy() for name, buffer in self._outputs.items()}

    def _enqueue(self) -> None:
        for buffer in self._inputs.values():
            buffer.upload(self._stream)
        assert self._context is not None
        if not self._context.execute_async_v3(int(self._stream)):
            raise EngineError("TensorRT did not start a graph")
        for buffer in self._outputs.values():
            buffer.download(self._stream)

    def _capture(self) -> Any:
        cudart = self._cudart
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        cuda.call(cudart.cudaStreamBeginCapture, self._stream, mode)
        self._enqueue()
        graph = cuda.call(cudart.cudaStreamEndCapture, self._stream)
        captured = cuda.call(cudart.cudaGraphInstantiate, graph, 0)
        cuda.call(cudart.cudaGraphDestroy, graph)
        return captured

    def close(self) -> None:
        if self._captured is not None:
            self._cudart.cudaGraphExecDestroy(self._captured)
        self._context = None  # before its buffers
        for buffer in (*self._inputs.values(), *self._outputs.values()):
            buffer.close()


def require_tensorrt() -> None:
    """EngineError with the remedy where TensorRT cannot be imported."""
    try:
        import tensorrt  # noqa: F401
    except Exception as error:  # a wheel without its libraries raises anything
        reason = str(error).splitlines()[0][:120]
        raise EngineError(f"TensorRT cannot be imported: {reason} (pip install 'perspblur_ros[gpu]')") from None


def _check_tensors(plan: trt.ICudaEngine, graph: Graph) -> None:
    import tensorrt as trt

    found: Shapes = {}
    for k in range(plan.num_io_tensors):
        name = plan.get_tensor_name(k)
        if plan.get_tensor_dtype(name) != trt.float32:
            raise EngineError(f"{graph.path}: {name} is {plan.get_tensor_dtype(name)} instead of float32")
        found[name] = tuple(plan.get_tensor_shape(name))  # type: ignore[arg-type]
    if found != {**graph.inputs, **graph.outputs}:
        raise EngineError(f"{graph.path}: the plan's tensors are {found}, the manifest says otherwise")


def _builder(logger: trt.Logger, name: str, graph: Graph, progress: Progress | None) -> Callable[[], bytes]:
    """A function that compiles the graph; minutes for a large one."""
    import tensorrt as trt

    def build() -> bytes:
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(graph.path)):
            raise EngineError(f"TensorRT does not read {graph.path}: {parser.get_error(0).desc()}")
        config = builder.create_builder_config()
        config.clear_flag(trt.BuilderFlag.TF32)  # float32 shall mean float32
        monitor = _monitor(name, progress) if progress else None  # must outlive the build
        if monitor is not None:
            config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"TensorRT {trt.__version__} does not build a plan for {graph.path}")
        return bytes(plan)  # type: ignore[call-overload]

    return build


def _monitor(name: str, progress: Progress) -> trt.IProgressMonitor:
    """Passes the steps of the outermost phases on; TensorRT calls it from its own threads."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
            if not parent_phase:
                self._steps[phase_name] = int(num_steps)

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            if phase_name in self._steps:
                progress(int(step) + 1, self._steps[phase_name], f"Compiling {name}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
