"""Parameters and floating-point operations of the presets: ``python -m perspblur_ros.model.counts docs/model.md``.

Counted on torch's meta device: nothing is computed, so that the large preset takes no longer than the small one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..engine.interface import Shapes, interface
from .network import Network
from .presets import PRESETS, Preset

BEGIN, END = "<!-- counts -->", "<!-- end of counts -->"


class Stage(NamedTuple):
    """One row: ``calls_per_frame`` in a stream whose clip is full. A multiplication and an addition count as two."""

    name: str
    graph: str
    parameters: int
    gflop: float
    calls_per_frame: float


def count(preset: Preset) -> list[Stage]:
    """The stages of a preset, in the order of the stream."""
    with torch.device("meta"):
        network = Network(preset).eval()
    depth, S = network.depth, preset.window_frames
    shapes = interface(preset.table())
    rows: list[tuple[str, str, tuple[nn.Module, ...], Callable[..., object], float]] = [
        ("encoder", "encoder", (depth.encoder,), depth.encoder, 1.0),
        ("window embedding and Self-Window", "window", (depth.embedding, depth.self_window), depth.window, 1 / S),
        ("Cross-Window", "cross", (depth.cross_window,), depth.cross_window, (preset.windows - 1) / S),
        ("head", "head", (depth.head,), depth.head, 1 / S),
        ("Self-Window and decoder", "decoder", (network.trajectory,), network.decode, 1.0),
        ("prior", "prior", (network.prior,), network.prior, 1.0),
    ]
    return [
        Stage(name, graph, parameters(*modules), gflop(function, shapes[graph][0]), calls)
        for name, graph, modules, function, calls in rows
    ]


def parameters(*modules: nn.Module) -> int:
    """Weights that training can change."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def gflop(function: Callable[..., object], inputs: Shapes) -> float:
    """Operations of one call, in 1e9; matrix products, convolutions and attention, as torch counts them."""
    arguments: list[Tensor] = [torch.empty(shape, device="meta") for shape in inputs.values()]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*arguments)
    return counter.get_total_flops() / 1e9


def table(preset: Preset) -> str:
    """The stages of a preset as a Markdown table with totals; the decoder's Self-Window has no weights of its own."""
    stages = count(preset)
    lines = [
        f"| `{preset.name}` | parameters | GFLOP per call | calls per frame | GFLOP per frame |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {s.name} | {s.parameters:,} | {s.gflop:.3g} | {s.calls_per_frame:.3g} | {s.gflop * s.calls_per_frame:.3g} |"
        for s in stages
    ]
    total = sum(stage.gflop * stage.calls_per_frame for stage in stages)
    lines.append(f"| **total** | {sum(stage.parameters for stage in stages):,} | | | {total:.3g} |")
    again = rerun(preset, {stage.graph: stage.gflop for stage in stages})
    lines.append(f"| the whole clip again for every frame | | | | {again:.4g} ({again / total:.1f} times) |")
    return "\n".join(lines)


def rerun(preset: Preset, cost: dict[str, float]) -> float:
    """GFLOP per frame of a stream that keeps nothing and runs its last T frames as a clip each time."""
    n = preset.windows
    of_depth = preset.clip_frames * cost["encoder"] + n * cost["window"] + (n - 1) * cost["cross"] + cost["head"]
    return of_depth + cost["decoder"] + cost["prior"]


def section() -> str:
    """What stands between the marks in docs/model.md."""
    return "\n\n".join([BEGIN, *(table(preset) for preset in PRESETS.values()), END])


def write(page: Path) -> None:
    """Put today's section where the old one stood."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text(before + section() + rest.partition(END)[2], encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]))
    else:
        print(section())
