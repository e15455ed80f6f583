"""The paper's ablations (4.4, Table 3): networks that differ in one size, on the same data for the same steps.

Depth: windows of 4, 6 and 8 frames, and no Cross-Window, trained from nothing. Dense decoder: its number of layers, in
the paper's pure form and as a residual on the Gauss–Newton step, all else frozen. Several seeds show what is noise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError
from ..model.network import Network
from ..model.presets import Preset, preset
from . import depth, trajectory
from .clips import ClipSizes
from .exported import load_start
from .loop import Schedule, Stage, last_validation, load_config, rounded, schedule, train
from .scenes import load_material

RESULT = "ablation.json"
POOL = 96  # clips, the same in every step: rendering does not outweigh training
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "depth": {
        **{f"S = {n}": {"window_frames": n} for n in (6, 4, 8)},
        "no Cross-Window": {"cross_layers": 0},
    },
    "pure": {f"L = {n}": {"decoder_layers": n} for n in (1, 2, 4, 6)},
    "residual": {f"L = {n}": {"decoder_layers": n} for n in (1, 2, 4, 6)},
}


@dataclass(frozen=True)
class Variant:
    """A network of other sizes. kind: "depth", or the decoder as "residual" or "pure"."""

    kind: str
    name: str
    seed: int
    preset: Preset

    @property
    def folder(self) -> str:
        return f"{self.kind}_{self.name}_{self.seed}".replace(" ", "").replace("=", "")


def variants(base: Preset, seeds: list[int], clip_frames: int) -> Iterator[Variant]:
    """All that are compared, one seed after the other."""
    for seed in seeds:
        for kind, sizes in SIZES.items():
            for name, changed in sizes.items():
                clip = {"clip_frames": clip_frames} if kind == "depth" else {}
                yield Variant(kind, name, seed, replace(base, **{**clip, **changed}))


def run(
    config_path: Path, data_dir: Path | None, out: Path, start: Path | None = None, examples: Path | None = None,
    report: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Train every variant that is not in ``out`` yet; ``ablation.json`` has a row of each, its last validation.

    start     checkpoint or exported folder with the frozen networks around the decoder
    examples  folder of what the pipeline saw of the training clips; made there first if need be. Default: ``out``
    """
    config = load_config(config_path)
    if data_dir is None:
        raise ConfigError("ablations need the data folder: --data names it")
    plans = {"depth": schedule(config["depth"]), "pure": schedule(config["decoder"])}
    plans["residual"] = plans["pure"]
    out.mkdir(parents=True, exist_ok=True)
    rows = json.loads((out / RESULT).read_text(encoding="utf-8")) if (out / RESULT).is_file() else []
    done = {(row["kind"], row["name"], row["seed"]) for row in rows}
    data = _Data(data_dir, examples or out, start, config["clip_frames"], preset(config["preset"]))
    for variant in variants(preset(config["preset"]), config["seeds"], config["clip_frames"]):
        if (variant.kind, variant.name, variant.seed) in done:
            continue
        report(f"{variant.kind}, {variant.name}, seed {variant.seed}")
        plan = replace(plans[variant.kind], seed=variant.seed)
        torch.manual_seed(variant.seed)
        stage = data.stage(variant, plan)
        train(stage, plan, out / variant.folder, name=variant.kind, report=report)
        parameters = sum(p.numel() for p in stage.module.parameters())
        numbers = rounded(last_validation(out / variant.folder))
        rows.append(
            {"kind": variant.kind, "name": variant.name, "seed": variant.seed, "parameters": parameters, **numbers}
        )
        (out / RESULT).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


class _Data:
    """What the variants share, made when it is first needed."""

    def __init__(self, data_dir: Path, examples: Path, start: Path | None, clip_frames: int, base: Preset) -> None:
        self.data_dir, self.examples, self.start, self.base = data_dir, examples, start, base
        self.sizes = ClipSizes(clip_frames, base.image_px, base.head_px)
        self.pool, self.validation = cache(self._pool), cache(self._validation)
        self.seen, self.looks = cache(self._seen), cache(self._looks)

    def stage(self, variant: Variant, plan: Schedule) -> Stage:
        network = Network(variant.preset).train()
        if variant.kind == "depth":
            return depth.DepthStage(network, plan, self.sizes, self.pool(variant.seed), self.validation())
        pure = variant.kind == "pure"
        learnt_from, judged_on = self.seen(pure)
        return trajectory.AttentionStage(network, plan, learnt_from, judged_on, pure)

    def _pool(self, seed: int) -> depth.Pool:
        material = load_material(self.data_dir, "train")
        return depth.training_pool(seed, material, self.sizes, torch.device("cpu"), POOL, fresh=0)

    def _validation(self) -> list[Any]:
        material = load_material(self.data_dir, "validation")
        return list(depth.validation_clips(material, self.sizes, torch.device("cpu")))

    def _seen(self, pure: bool) -> tuple[trajectory.Prepared, trajectory.Prepared]:
        network, found = self.looks()
        train, validation = (trajectory.prepared(network, examples, looks, pure) for examples, looks in found)
        return train, validation

    def _looks(self) -> tuple[Network, list[tuple[trajectory.Examples, trajectory.Looks]]]:
        network, _ = load_start(self.start, self.base.name)
        found = (trajectory.seen_by_the_pipeline(self.examples, self.data_dir, split) for split in trajectory.CLIPS)
        return network, [(examples, trajectory.looks(network.eval(), examples)) for examples in found]
