"""Weights on disk: safetensors only, never pickle. The file says which sizes its network has."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import EngineError
from .network import Network
from .presets import from_table


def save_checkpoint(path: Path, network: Network, training: Mapping[str, Any] | None = None) -> None:
    """Write the weights with the preset's sizes and a summary of the training; atomically."""
    metadata = {"sizes": json.dumps(network.preset.table()), "training": json.dumps(dict(training or {}))}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    temporary = path.with_name(path.name + ".part")
    save_file(tensors, temporary, metadata)
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> tuple[Network, dict[str, Any]]:
    """The network in evaluation mode, and the summary of its training.

    Raises EngineError where the file is no checkpoint of this package.
    """
    if not path.is_file():
        raise EngineError(f"checkpoint {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise EngineError(f"checkpoint {path} is not a safetensors file: {error}") from None
    if "sizes" not in metadata:
        raise EngineError(f"checkpoint {path} does not state its network's sizes")
    network = Network(from_table(json.loads(metadata["sizes"])))
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise EngineError(f"checkpoint {path} does not fit its own sizes: {reason}") from None
    return network.eval(), json.loads(metadata.get("training", "{}"))
