"""Draws first_screen.png from a run of the demo's clip (scikit-image's motorcycle under the hand-motion model).

perspblur simulate --out clip --frames 90 --fps 15 --rate-rms 0.25 --seed 7 --lever-arm 0 0 0.15
perspblur replay clip --out run
python docs/images/first_screen.py run clip
"""

from __future__ import annotations

import base64
import io
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from perspblur_ros.evaluation.evaluate import ESTIMATE, INTERPOLATION, evaluate
from perspblur_ros.evaluation.pictures import blur_pictures

SPAN_S = 1.0
TRUTH, OURS, LINE, INK = "#7fb08a", "#c8500a", "#8a8f98", "#3a3f47"
AXES = ("tilt", "pan", "roll")


def draw(run: Path, bag: Path, out: Path) -> None:
    c = evaluate(run, bag)
    times_s = {int(r["frame"]): (int(r["t_ns"]) - c.epoch_ns) * 1e-9 for r in c.run.frames}
    settled = [r for r in c.run.frames if times_s[int(r["frame"])] > SPAN_S]
    strongest = max(settled, key=lambda r: float(r["blur_px"]))
    number, blur_px = int(strongest["frame"]), float(strongest["blur_px"])
    (picture,) = blur_pictures(replace(c, run=replace(c.run, frames=[strongest])), bag)
    frame = Image.open(io.BytesIO(base64.b64decode(picture.frame.split(",")[1])))
    mid_s = times_s[number]
    own, line = c.estimates[ESTIMATE], c.estimates[INTERPOLATION]
    from_s = float(np.clip(mid_s - SPAN_S / 2, own.t_s[0], own.t_s[-1] - SPAN_S))
    t = np.arange(from_s, from_s + SPAN_S, 0.001)
    truth = c.truth.rate(t)
    axis = int(np.argmax(truth.std(axis=0)))

    style = {"font.family": "sans-serif", "font.size": 11, "text.color": INK, "axes.labelcolor": INK}
    with matplotlib.rc_context({**style, "xtick.color": INK, "ytick.color": INK, "axes.edgecolor": "#d0d3d8"}):
        figure = Figure(figsize=(11, 3.7), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.2])
        left.imshow(frame)
        left.set_axis_off()
        left.set_title(f"60 ms exposure, {blur_px:.0f} px of blur, its estimated path", fontsize=11, loc="left")
        exposure_s = c.run.parameters["exposure_s"]
        for middle in times_s.values():
            if abs(middle - mid_s) < SPAN_S:
                right.axvspan(middle - exposure_s / 2 - from_s, middle + exposure_s / 2 - from_s, color="#f3f4f6", lw=0)
        right.plot(t - from_s, truth[:, axis], color=TRUTH, lw=5, alpha=0.8, label="truth")
        for estimate, colour, width, label in ((line, LINE, 1.4, "interpolated frames"), (own, OURS, 1.8, "perspblur")):
            part = (estimate.t_s >= from_s) & (estimate.t_s <= from_s + SPAN_S)
            right.plot(estimate.t_s[part] - from_s, estimate.omega[part, axis], color=colour, lw=width, label=label)
        right.set_xlim(0, SPAN_S)
        right.set_xlabel("time [s], one band per exposure")
        right.set_ylabel(f"{AXES[axis]} rate [rad/s]")
        right.spines[["top", "right"]].set_visible(False)
        right.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0.2)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130, facecolor="white")
    Image.open(buffer).convert("RGB").quantize(200).save(out, optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]), Path(__file__).with_name("first_screen.png"))
