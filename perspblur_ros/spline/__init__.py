"""The row-timed 6-DoF spline through point tracks: one window, and the stream of windows."""

from .fixed_lag import FixedLagSpline, StreamSolution
from .inverse_depth import MeasuredDepths, measured_depths
from .window import SplineSolution, TrackWindow, solve

__all__ = [
    "FixedLagSpline", "MeasuredDepths", "SplineSolution", "StreamSolution", "TrackWindow", "measured_depths", "solve"
]
