"""From torch weights to a folder that runs without torch: one ONNX graph per stage, and a manifest.

Matrix products can be done in 16 bits: the casts stand in the graph itself, around each product, so that every
runtime does the same and everything else stays in float32.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from . import __version__
from .engine.interface import interface
from .engine.manifest import FILE_NAME, FORMAT, file_sha256, load_manifest
from .engine.ort import OrtEngine
from .engine.probe import moments, probe_inputs
from .errors import EngineError
from .model.checkpoint import load_checkpoint
from .model.encoder import load_backbone
from .model.network import DepthNetwork, Network
from .model.presets import preset

PRECISIONS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
PARITY = {"float32": 1e-4, "float16": 0.02}  # largest error against torch, as a share of the output's rms
PRODUCTS = ("MatMul", "Gemm", "Conv")


class _Window(nn.Module):
    """window.onnx: embedding and Self-Window."""

    def __init__(self, depth: DepthNetwork) -> None:
        super().__init__()
        self.depth = depth

    def forward(self, features: Tensor, camera: Tensor) -> Tensor:
        return self.depth.window(features, camera)


class _Decoder(nn.Module):
    """decoder.onnx: a frame through Self-Window, then the trajectory network."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, features: Tensor, depth_features: Tensor, camera: Tensor, trajectory: Tensor, guess: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.network.decode(features, depth_features, camera, trajectory, guess)


def load_network(
    checkpoint: Path | None, preset_name: str = "tiny", dinov2: Path | None = None
) -> tuple[Network, dict[str, Any]]:
    """The network of a checkpoint and its training summary; without one, random weights from a fixed seed.

    dinov2   local folder with weights for the random network's encoder
    """
    if checkpoint is not None:
        return load_checkpoint(checkpoint)
    torch.manual_seed(0)
    network = Network(preset(preset_name)).eval()
    if dinov2 is not None:
        load_backbone(network.depth.encoder, dinov2)
    return network, {"weights": "random" if dinov2 is None else "random but for the encoder's DINOv2 layers"}


def graphs_of(network: Network) -> dict[str, nn.Module]:
    """The module behind each graph of ``engine.interface``."""
    depth = network.depth
    return {
        "encoder": depth.encoder,
        "window": _Window(depth),
        "cross": depth.cross_window,
        "head": depth.head,
        "decoder": _Decoder(network),
        "prior": network.prior,
    }


def export_network(
    network: Network,
    folder: Path,
    training: Mapping[str, Any] | None = None,
    data: Sequence[Mapping[str, str]] = (),
    precision: str = "float32",
    on_graph: Callable[..., None] | None = None,
) -> Path:
    """Write the graphs and ``manifest.json``; the folder appears only when ONNX Runtime agrees with torch.

    training, data   go into the manifest: a summary, and name, source and licence of each source of training data
    on_graph(done, of, label)   progress
    Raises EngineError where the two disagree, or the folder holds something else already.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"precision '{precision}' is none of {', '.join(PRECISIONS)}")
    if folder.exists():
        raise EngineError(f"{folder} exists already and is not overwritten")
    network = network.eval().cpu()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}_", dir=folder.parent) as temporary:
        part = Path(temporary) / folder.name
        part.mkdir()
        manifest = _manifest(network, training or {}, data, precision)
        modules = graphs_of(network)
        for done, (name, module) in enumerate(modules.items()):
            if on_graph:
                on_graph(done, len(modules), f"Exporting {name}")
            manifest["graphs"][name] = _export_graph(name, module, manifest["sizes"], part, precision)
        _write_manifest(part, manifest)
        _add_parity(part, manifest, modules, precision)
        _write_manifest(part, manifest)
        os.chmod(part, 0o755)
        os.rename(part, folder)
    return folder


def _manifest(
    network: Network, training: Mapping[str, Any], data: Sequence[Mapping[str, str]], precision: str
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "preset": network.preset.name,
        "version": __version__,
        "precision": precision,
        "sizes": network.preset.table(),
        "training": dict(training),
        "data": [dict(entry) for entry in data],
        "graphs": {},
    }


def _export_graph(
    name: str, module: nn.Module, sizes: Mapping[str, Any], folder: Path, precision: str
) -> dict[str, Any]:
    inputs, outputs = interface(sizes)[name]
    arguments = tuple(torch.from_numpy(value) for value in probe_inputs(inputs).values())
    names = [f"output:{key}" for key in outputs]
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module, arguments, dynamo=True, input_names=list(inputs), output_names=names, verbose=False
        )
    assert program is not None
    model = _with_output_names(program.model_proto, outputs)
    if precision != "float32":
        model = in_16_bits(model, PRECISIONS[precision])
    onnx.checker.check_model(model)
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return {
        "file": path.name,
        "sha256": file_sha256(path),
        "inputs": {key: list(shape) for key, shape in inputs.items()},
        "outputs": {key: list(shape) for key, shape in outputs.items()},
    }


def _with_output_names(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """``output:x`` becomes ``x``; a value inside that the exporter called so makes room."""
    new = {f"output:{name}": name for name in names} | {name: f"inner:{name}" for name in names}
    for node in model.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for value in (*model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.name = new.get(value.name, value.name)
    return model


def _add_parity(folder: Path, manifest: dict[str, Any], modules: Mapping[str, nn.Module], precision: str) -> None:
    """State the largest error against torch, and what came out, beside every graph; EngineError when it is too large.

    ONNX Runtime's CPU has no bfloat16 products: of such graphs torch's float32 results are stated instead.
    """
    engine = None if precision == "bfloat16" else OrtEngine(load_manifest(folder))
    for name, entry in manifest["graphs"].items():
        inputs = probe_inputs(interface(manifest["sizes"])[name][0])
        with torch.no_grad():
            result = modules[name](*(torch.from_numpy(value) for value in inputs.values()))
        tensors = (result,) if isinstance(result, Tensor) else result
        outputs = {key: tensor.numpy() for key, tensor in zip(entry["outputs"], tensors)}
        if engine is not None:
            found = engine.run(name, inputs)
            entry["parity"] = parity(name, outputs, found, PARITY[precision])
            outputs = found
        entry["probe"] = {key: [round(value, 7) for value in pair] for key, pair in moments(outputs).items()}


def parity(name: str, torch_outputs: Mapping[str, Any], found: Mapping[str, Any], allowed: float) -> dict[str, float]:
    errors = {}
    for key, value in torch_outputs.items():
        rms = float(np.sqrt(np.mean(np.square(value)))) + 1e-3
        errors[key] = float(np.abs(found[key] - value).max()) / rms
        if not errors[key] <= allowed:
            raise EngineError(f"graph {name}: onnxruntime differs from torch by {errors[key]:.2g} of the rms of {key}")
    return {key: float(f"{error:.2g}") for key, error in errors.items()}


def in_16_bits(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """The model with its matrix products and convolutions, and their weights, in float16 or bfloat16."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    halved: dict[str, str] = {}
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            nodes.append(node)
            continue
        for k, name in enumerate(node.input):
            if name and name not in halved:
                halved[name] = f"{name}:16"
                if name in weights:
                    graph.initializer.append(_cast_tensor(weights[name], halved[name], kind))
                else:
                    nodes.append(helper.make_node("Cast", [name], [halved[name]], to=kind))
            if name:
                node.input[k] = halved[name]
        result = node.output[0]
        node.output[0] = halved[result] = f"{result}:16"  # the next product takes it as it is
        nodes += [node, helper.make_node("Cast", [halved[result]], [result], to=TensorProto.FLOAT)]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del graph.value_info[:]  # said float32 of what is now 16 bits
    return model


def _cast_tensor(tensor: onnx.TensorProto, name: str, kind: int) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
    return numpy_helper.from_array(values, name)


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    (folder / FILE_NAME).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about libraries that are not there and about its own internals."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
