"""What both stages share: AdamW with warm-up and cosine decay, a running mean of the weights, validation, resume.

A run's folder holds ``state.safetensors`` (weights, running mean, optimiser; to resume), ``best.safetensors`` (the
running mean of the best validation), ``history.csv`` and ``curves.png``. Batches, noise and dropout depend on the seed
and the step alone, so a resumed run ends, bit by bit, where an uninterrupted one would have ended. The state is written
at every validation and every SAVE_EVERY_S: so much is lost when a run is killed.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ConfigError
from ..model.checkpoint import save_checkpoint
from ..model.network import Network

SAVE_EVERY_S = 120.0


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. ``ema``: decay of the running mean of the weights per step."""

    iterations: int
    batch: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 5e-5
    warm_up: int = 1000
    clip_norm: float = 1.0
    ema: float = 0.999
    validate_every: int = 1000
    seed: int = 0

    def factor(self, step: int) -> float:
        """Of the learning rate: linear warm-up, then a half cosine down to 2 %."""
        warm = min(1.0, (step + 1) / max(self.warm_up, 1))
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.iterations))))


class Stage(Protocol):
    """What is trained. ``module`` is the part of ``network`` whose weights move."""

    network: Network
    module: nn.Module

    def loss(self, step: int) -> Tensor:
        """Of the batch that belongs to this step."""
        ...

    def validate(self) -> dict[str, float]:
        """Numbers on held-out data; ``score`` decides which checkpoint is the best (smaller is better)."""
        ...


def load_config(path: Path) -> dict[str, Any]:
    """A training configuration: preset, and one section per stage."""
    if not path.is_file():
        raise ConfigError(f"training configuration {path} does not exist")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"training configuration {path} is not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(config, dict) or "preset" not in config:
        raise ConfigError(f"training configuration {path} names no preset")
    return config


def schedule(section: Mapping[str, Any]) -> Schedule:
    """The stage's section; ConfigError for a name that is no part of ``Schedule``."""
    known = {f.name for f in fields(Schedule)}
    if unknown := sorted(set(section) - known):
        raise ConfigError(f"unknown training setting {', '.join(unknown)}")
    if "iterations" not in section:
        raise ConfigError("the training configuration does not say how many iterations")
    return Schedule(**section)


def device_of(name: str = "auto") -> torch.device:
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


def train(
    stage: Stage, plan: Schedule, out: Path, resume: bool = False, minutes: float | None = None,
    name: str = "training", summary: Mapping[str, Any] | None = None, report: Callable[[str], None] = print,
) -> dict[str, float]:
    """Run the schedule, or as much of it as fits into ``minutes``; returns the best validation's numbers.

    summary  what the checkpoint says of its training; the schedule and the validation are added to it under ``name``
    """
    out.mkdir(parents=True, exist_ok=True)
    run = _Run(stage, plan, out, name, dict(summary or {}))
    if resume:
        run.restore()
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    if run.step == 0:
        report(run.validate())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task("training", total=plan.iterations, completed=run.step)
        while run.step < plan.iterations and time.monotonic() < deadline:
            run.advance()
            progress.update(task, completed=run.step, description=f"loss {run.recent:.3f}")
            if run.step % plan.validate_every == 0:
                report(run.validate())
            elif time.monotonic() - run.saved_s > SAVE_EVERY_S:
                run.save()
    if run.step % plan.validate_every:
        report(run.validate())
    return run.best


class _Run:
    """One run's moving parts."""

    def __init__(self, stage: Stage, plan: Schedule, out: Path, name: str, summary: dict[str, Any]) -> None:
        torch.manual_seed(plan.seed)
        self.stage, self.plan, self.out, self.name, self.summary = stage, plan, out, name, summary
        self.parameters = {n: p for n, p in stage.module.named_parameters() if p.requires_grad}
        self.mean = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), lr=plan.learning_rate, weight_decay=plan.weight_decay
        )
        self.step, self.recent, self.seconds, self.saved_s = 0, math.nan, 0.0, time.monotonic()
        self.best: dict[str, float] = {"score": math.inf}
        self.history: list[dict[str, float]] = []

    def advance(self) -> None:
        started = time.monotonic()
        for group in self.optimiser.param_groups:
            group["lr"] = self.plan.learning_rate * self.plan.factor(self.step)
        device = next(iter(self.parameters.values())).device
        torch.manual_seed(self.plan.seed * 1_000_003 + self.step)  # dropout
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = self.stage.loss(self.step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.plan.clip_norm)
        if torch.isfinite(norm):  # a batch that overflows is left out
            self.optimiser.step()
        decay = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        for name, p in self.parameters.items():
            self.mean[name].lerp_(p.detach(), 1 - decay)
        value = float(loss.detach())
        self.recent = value if math.isnan(self.recent) else 0.98 * self.recent + 0.02 * value
        self.step += 1
        self.seconds += time.monotonic() - started

    def validate(self) -> str:
        """Judge the running mean, keep it if it is the best so far, write everything; returns a line for the log."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._load(self.mean)
        self.stage.network.eval()
        with torch.inference_mode():
            numbers = self.stage.validate()
        self.stage.network.train()
        row = {"step": self.step, "seconds": round(self.seconds, 1), "loss": self.recent, **numbers}
        self.history.append(row)
        if numbers["score"] < self.best["score"]:
            self.best = row
            summary = {**self.summary, self.name: {**asdict(self.plan), **rounded(row)}}
            save_checkpoint(self.out / "best.safetensors", self.stage.network, summary)
        self._load(own)
        self.save()
        return "  ".join(f"{k} {v:.4g}" for k, v in row.items())

    def _load(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(values[name])

    def save(self) -> None:
        tensors = {f"weights.{n}": p.detach() for n, p in self.parameters.items()}
        tensors |= {f"mean.{n}": p for n, p in self.mean.items()}
        for name, p in self.parameters.items():
            moments = self.optimiser.state.get(p, {})
            tensors |= {f"optimiser.{key}.{name}": moments[key] for key in moments}
        place = {"step": self.step, "recent": self.recent, "seconds": self.seconds, "best": self.best}
        metadata = {"place": json.dumps(place), "history": json.dumps(self.history)}
        temporary = self.out / "state.part"
        save_file({n: t.contiguous() for n, t in tensors.items()}, temporary, metadata)
        os.replace(temporary, self.out / "state.safetensors")
        self.saved_s = time.monotonic()
        write_history(self.out, self.history)

    def restore(self) -> None:
        path = self.out / "state.safetensors"
        if not path.is_file():
            raise ConfigError(f"there is no run to resume in {self.out}")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        place = json.loads(metadata["place"])
        self.step, self.recent, self.seconds, self.best = (place[k] for k in ("step", "recent", "seconds", "best"))
        self.history = json.loads(metadata["history"])
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[f"weights.{name}"])
                self.mean[name].copy_(tensors[f"mean.{name}"])
                self.optimiser.state[p] = {
                    key: tensors[f"optimiser.{key}.{name}"]
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"optimiser.{key}.{name}" in tensors
                }


def last_validation(out: Path) -> dict[str, float]:
    """The numbers of a run's last validation, whether they were its best or not."""
    with (out / "history.csv").open(newline="", encoding="utf-8") as file:
        return {name: float(value) for name, value in list(csv.DictReader(file))[-1].items() if value}


def rounded(row: Mapping[str, float]) -> dict[str, float | None]:
    """Four digits are all that means anything; JSON knows no NaN."""
    return {name: float(f"{value:.4g}") if math.isfinite(value) else None for name, value in row.items()}


def write_history(out: Path, history: list[dict[str, float]]) -> None:
    """``history.csv`` and ``curves.png``."""
    names = list(dict.fromkeys(name for row in history for name in row))
    with (out / "history.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(history)
    draw_curves(out / "curves.png", history)


def draw_curves(path: Path, history: list[dict[str, float]]) -> None:
    """Everything that validation measured against the step, one small panel each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in history[-1] if name not in ("step", "seconds")]
    columns = min(4, len(names))
    figure = Figure(figsize=(3 * columns, 2.2 * math.ceil(len(names) / columns)), layout="constrained")
    FigureCanvasAgg(figure)
    for i, name in enumerate(names):
        axes = figure.add_subplot(math.ceil(len(names) / columns), columns, i + 1)
        axes.plot([row["step"] for row in history], [row.get(name, math.nan) for row in history], lw=1.2)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
    figure.savefig(path, dpi=110)
