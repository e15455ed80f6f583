"""Weights back out of exported graphs, so that what ships can be trained on.

The exporter keeps the names of all weights but those of linear layers, which end up transposed in front of a product;
the bias that is added after it still has its name. Whether everything was found, ONNX Runtime's outputs tell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from ..engine.interface import interface
from ..engine.manifest import load_manifest
from ..engine.ort import OrtEngine
from ..engine.probe import probe_inputs
from ..errors import EngineError
from ..export import PARITY, graphs_of, parity
from ..model.checkpoint import load_checkpoint
from ..model.network import Network
from ..model.presets import from_table, preset

INNER = "inner:"  # put by the exporter before a weight whose name an output needed
ALIASES = {"expand": "embeddings.cls_token"}


def load_exported(folder: Path) -> tuple[Network, dict[str, Any]]:
    """The network of a folder of graphs, and the summary of its training; parts without a graph are random (seed 0).

    EngineError where the weights do not give what the graphs give. Only for networks exported in float32.
    """
    manifest = load_manifest(folder)
    if manifest.precision != "float32":
        raise EngineError(f"{folder} is exported in {manifest.precision}: its weights are rounded")
    torch.manual_seed(0)
    network = Network(from_table(manifest.sizes)).eval()
    modules, engine = graphs_of(network), OrtEngine(manifest)
    for name, graph in manifest.graphs.items():
        module, weights = modules[name], _weights(onnx.load(graph.path).graph)
        own = module.state_dict()
        module.load_state_dict({n: w for n, w in weights.items() if n in own and w.shape == own[n].shape}, strict=False)
        inputs = probe_inputs(interface(manifest.sizes)[name][0])
        with torch.no_grad():
            result = module(*(torch.from_numpy(value) for value in inputs.values()))
        tensors = (result,) if isinstance(result, Tensor) else result
        outputs = {key: tensor.numpy() for key, tensor in zip(graph.outputs, tensors)}
        parity(name, outputs, engine.run(name, inputs), 10 * PARITY["float32"])
    return network, {**manifest.training, "data": [dict(entry) for entry in manifest.data]}


def load_start(path: Path | None, preset_name: str) -> tuple[Network, dict[str, Any]]:
    """What a run begins with: a checkpoint, a folder of exported graphs, or without either random weights."""
    if path is None:
        return Network(preset(preset_name)), {}
    return load_exported(path) if path.is_dir() else load_checkpoint(path)


def _weights(graph: onnx.GraphProto) -> dict[str, Tensor]:
    stored = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    found = {ALIASES.get(name, name.removeprefix(INNER)): value for name, value in stored.items()}
    for node in graph.node:
        for value, bias in (tuple(node.input), tuple(node.input)[::-1]) if node.op_type == "Add" else ():
            if bias.endswith(".bias") and products.get(value) in stored:
                found[bias.removesuffix("bias") + "weight"] = stored[products[value]].T.contiguous()
    return found
