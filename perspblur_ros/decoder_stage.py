"""The learned step in the stream: takes what the pipeline knows of the newest window to the decoder and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from . import decoder
from .camera import Shutter
from .crossblur import Solved, Start, trusted_information
from .engine import Engine
from .errors import EngineError
from .spline import SplineSolution, TrackWindow
from .types import Frame, SparsePose

LAG_FRAMES = decoder.AFTER  # the decoder is made for a frame with so many later ones


class Posed(Protocol):
    """A frame and its sparse pose by the optics."""

    frame: Frame
    sparse: SparsePose


class DecoderStage:
    """Off (``network`` None) without an engine that holds a fitting prior.

    ``counts``: "fallback.no_decoder" where it is on and cannot say anything of a frame.
    ``failure``: why the engine ended, empty while it runs; from then on the stage is off.
    """

    def __init__(self, engine: Engine | None, lag_frames: int, counts: Counter[str]) -> None:
        self.network = _network(engine)
        self.failure = ""
        self._lag_fits = lag_frames == LAG_FRAMES
        self._counts = counts

    def step(
        self,
        window: TrackWindow,
        solution: SplineSolution,
        solved: Solved,
        start: Start,
        posed: Sequence[Posed],
        shutter: Shutter,
        period_s: float,
        blur_px: float,
    ) -> decoder.Decoded | None:
        """The learned Gauss–Newton step from ``start``; posed are the window's frames. LinAlgError as in ``decode``."""
        if self.network is None:
            return None
        decoded = None
        if self._lag_fits and len(posed) > decoder.BEFORE + decoder.AFTER:
            seen = decoder.Window(
                state=solution.state,
                start=start.state,
                information=solution.information,
                trusted=trusted_information(solved, blur_px),
                mid_s=window.mid_s,
                R_optics=np.array([p.sparse.R_start_from_cam for p in posed]),
                camera=posed[-1].frame.camera,
                exposure_s=shutter.exposure_ns * 1e-9,
                period_s=period_s,
                readout_s=shutter.readout_ns * 1e-9,
                blur_px=blur_px,
                scale=round(1 / start.pairs[0].a.scale),
                sigma_px=solution.sigma_px,
                energy=solution.energy,
                tracks=len(window.ids),
            )
            photometry = decoder.Photometry(*start.normal_equations(), *start.medians(), start.patches)
            decoded = self._decoded(posed[-1 - decoder.AFTER].frame.index, seen, photometry)
        self._counts["fallback.no_decoder"] += decoded is None
        return decoded

    def _decoded(self, frame: int, seen: decoder.Window, photometry: decoder.Photometry) -> decoder.Decoded | None:
        """The step for ``frame``; None where it is not finite, or the engine has failed."""
        assert self.network is not None
        try:
            decoded = decoder.decode(seen, photometry, self.network)
        except EngineError as error:
            self.network, self.failure = None, str(error)
            return None
        return decoded if np.all(np.isfinite(decoded.state.c)) else None


def _network(engine: Engine | None) -> decoder.Network | None:
    """The prior network of an engine, where it holds one for this decoder."""
    graph = engine.manifest.graphs.get("prior") if engine else None
    if engine is None or graph is None or graph.inputs["geometry"] != (1, 3 * decoder.FEATURES):
        return None
    run = engine.run

    def network(geometry: decoder.Float32Array) -> tuple[decoder.Float32Array, ...]:
        outputs = run("prior", {"geometry": geometry})
        return outputs["mean"], outputs["log_sd"], outputs["log_weight"]

    return network  # type: ignore[return-value]
