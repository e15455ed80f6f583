"""The TensorRT engine against a TensorRT and a CUDA that are Python: what it asks of them, in which order."""

from __future__ import annotations

import ctypes
import sys
from enum import IntEnum
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from fake_engine import FakeEngine, fake_manifest

from perspblur_ros.engine import cuda
from perspblur_ros.engine.plan_cache import PlanCache
from perspblur_ros.engine.probe import probe_inputs
from perspblur_ros.engine.select import select_engine
from perspblur_ros.engine.tensorrt import TensorRtEngine
from perspblur_ros.errors import EngineError


class Code(IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorNoDevice = 100


class FakeCuda:
    """Device memory is host memory; a captured graph is the list of what was enqueued, run at each launch."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self, memory=10**9):
        self.blocks, self.recording, self.free_bytes, self.streams = {}, None, memory, 0

    def enqueue(self, action):
        if self.recording is None:
            action()
        else:
            self.recording.append(action)

    def cudaMalloc(self, size):
        if size > self.free_bytes:
            return Code.cudaErrorMemoryAllocation, 0
        self.free_bytes -= size
        block = ctypes.create_string_buffer(size)
        self.blocks[ctypes.addressof(block)] = block
        return Code.cudaSuccess, ctypes.addressof(block)

    cudaMallocHost = cudaMalloc

    def cudaFree(self, address):
        del self.blocks[address]
        return (Code.cudaSuccess,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(self, to, source, size, kind, stream):
        self.enqueue(lambda: ctypes.memmove(to, source, size))
        return (Code.cudaSuccess,)

    def cudaStreamCreate(self):
        self.streams += 1
        return Code.cudaSuccess, 77

    def cudaStreamDestroy(self, stream):
        self.streams -= 1
        return (Code.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):
        return (Code.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream, mode):
        self.recording = []
        return (Code.cudaSuccess,)

    def cudaStreamEndCapture(self, stream):
        graph, self.recording = self.recording, None
        return Code.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph, flags):
        return Code.cudaSuccess, graph

    def cudaGraphLaunch(self, graph, stream):
        for action in graph:
            action()
        return (Code.cudaSuccess,)

    def cudaGraphDestroy(self, graph):
        return (Code.cudaSuccess,)

    cudaGraphExecDestroy = cudaGraphDestroy


class FakeTensorRt(ModuleType):
    """Plans are the graphs' names; running one is the numpy engine on whatever memory was given."""

    __version__ = "11.4"
    float32 = "float32"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    BuilderFlag = SimpleNamespace(TF32="TF32")
    IProgressMonitor = object

    def __init__(self, engine, device):
        super().__init__("tensorrt")
        self.engine, self.device, self.builds, self.flags = engine, device, [], []
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda *_: None})
        outer = self

        class Builder:
            def __init__(self, logger): ...

            def create_network(self, flags):
                outer.flags.append(flags)
                return SimpleNamespace()

            def create_builder_config(self):
                return SimpleNamespace(progress_monitor=None, clear_flag=outer.flags.append)

            def build_serialized_network(self, network, config):
                monitor = config.progress_monitor
                if monitor:
                    monitor.phase_start("all", None, 2)
                    monitor.phase_start("part", "all", 5)
                    monitor.step_complete("part", 0)
                    monitor.step_complete("all", 1)
                    monitor.phase_finish("all")
                outer.builds.append(network.name)
                return network.name.encode()

        class OnnxParser:
            def __init__(self, network, logger):
                self.network = network

            def parse_from_file(self, path):
                self.network.name = path.rsplit("/", 1)[1].removesuffix(".onnx")
                return True

        class Runtime:
            def __init__(self, logger): ...

            def deserialize_cuda_engine(self, plan):
                return Plan(outer, plan.decode()) if plan.decode() in outer.engine.manifest.graphs else None

        self.Builder, self.OnnxParser, self.Runtime = Builder, OnnxParser, Runtime


class Plan:
    def __init__(self, trt, name):
        graph = trt.engine.manifest.graphs[name]
        self.trt, self.name, self.graph = trt, name, graph
        self.tensors = {**graph.inputs, **graph.outputs}
        self.num_io_tensors = len(self.tensors)

    def get_tensor_name(self, k):
        return list(self.tensors)[k]

    def get_tensor_shape(self, name):
        return list(self.tensors[name])

    def get_tensor_dtype(self, name):
        return "float32"

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, plan):
        self.plan, self.addresses = plan, {}

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def memory(self, name):
        shape = self.plan.tensors[name]
        floats = ctypes.cast(self.addresses[name], ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(floats, shape)

    def execute_async_v3(self, stream):
        assert stream == 77
        self.plan.trt.device.enqueue(self.compute)
        return True

    def compute(self):
        given = {name: self.memory(name).copy() for name in self.plan.graph.inputs}
        for name, value in self.plan.trt.engine.run(self.plan.name, given).items():
            self.memory(name)[...] = value


@pytest.fixture
def reference(tmp_path):
    return FakeEngine(fake_manifest(tmp_path / "net"))


@pytest.fixture
def trt(monkeypatch, reference):
    device = FakeCuda()
    module = FakeTensorRt(reference, device)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(cuda, "runtime", lambda: device)
    monkeypatch.setattr(cuda, "device", lambda _: ("a GPU, 9.0", "13000"))
    return module


@pytest.fixture
def cache(tmp_path):
    return PlanCache(tmp_path / "plans")


def test_every_graph_gives_what_its_plan_computes_again_and_again(trt, reference, cache):
    engine = TensorRtEngine(reference.manifest, cache)
    for name, graph in reference.manifest.graphs.items():
        for scale in (1.0, 0.5):
            inputs = {key: np.float32(scale) * value for key, value in probe_inputs(graph.inputs).items()}
            found, expected = engine.run(name, inputs), reference.run(name, inputs)
            for key, value in expected.items():
                np.testing.assert_array_equal(found[key], value)


def test_results_are_the_callers_to_keep(trt, reference, cache):
    engine = TensorRtEngine(reference.manifest, cache)
    inputs = probe_inputs(reference.manifest.graphs["cross"].inputs)
    first = engine.run("cross", inputs)["refined"]
    before = first.copy()
    engine.run("cross", {name: 2 * value for name, value in inputs.items()})
    np.testing.assert_array_equal(first, before)


def test_networks_are_strongly_typed_and_float32_means_float32(trt, reference, cache):
    TensorRtEngine(reference.manifest, cache)
    assert set(trt.flags) == {1 << 1, "TF32"}


def test_plans_are_built_once_and_memory_is_given_back(trt, reference, cache):
    graphs = list(reference.manifest.graphs)
    engine = TensorRtEngine(reference.manifest, cache)
    assert engine.built == trt.builds == graphs
    engine.close()
    again = TensorRtEngine(reference.manifest, cache)
    assert again.built == []
    again.close()
    again.close()
    assert trt.device.blocks == {}
    assert trt.device.streams == 0


def test_a_plan_that_does_not_load_is_built_again(trt, reference, cache, monkeypatch):
    TensorRtEngine(reference.manifest, cache)
    monkeypatch.setattr(cache, "read", lambda key: b"of another version")
    assert TensorRtEngine(reference.manifest, cache).built == list(reference.manifest.graphs)


def test_progress_is_that_of_the_outermost_phase(trt, reference, cache):
    seen = []
    TensorRtEngine(reference.manifest, cache, lambda *step: seen.append(step))
    assert seen[:2] == [(2, 2, "Compiling encoder"), (2, 2, "Compiling window")]


def test_an_input_of_another_shape_is_refused(trt, reference, cache):
    engine = TensorRtEngine(reference.manifest, cache)
    inputs = probe_inputs(reference.manifest.graphs["cross"].inputs)
    with pytest.raises(EngineError, match=r"later has the shape \(1, 1, 3\) instead of \(1, 4, 3\)"):
        engine.run("cross", {**inputs, "later": inputs["later"][:, :1]})


def test_a_plan_with_other_tensors_is_refused_and_nothing_leaks(trt, reference, cache, monkeypatch):
    monkeypatch.setattr(Plan, "get_tensor_shape", lambda self, name: (1,))
    with pytest.raises(EngineError, match="the plan's tensors are"):
        TensorRtEngine(reference.manifest, cache)
    assert trt.device.blocks == {}


@pytest.mark.parametrize("free_bytes", [1000, 5000, 6200, 6500])  # at the first buffer, its twin, a later one
def test_a_gpu_that_is_full_is_an_error_and_nothing_leaks(trt, reference, cache, free_bytes):
    trt.device.free_bytes = free_bytes
    with pytest.raises(EngineError, match="cudaMalloc failed with cudaErrorMemoryAllocation"):
        TensorRtEngine(reference.manifest, cache)
    assert trt.device.blocks == {}


def test_without_tensorrt_the_choice_is_refused_with_the_remedy(monkeypatch, tmp_path, reference):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"TensorRT cannot be imported: .*perspblur_ros\[gpu\]"):
        select_engine("tensorrt", tmp_path / "net")


def test_without_a_gpu_it_is_said(monkeypatch):
    bindings = ModuleType("cuda.bindings")
    bindings.runtime = SimpleNamespace(cudaGetDeviceCount=lambda: (Code.cudaErrorNoDevice, None))
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    with pytest.raises(EngineError, match=r"no NVIDIA GPU can be used \(cudaErrorNoDevice\)"):
        cuda.runtime()
