"""The row-timed 6-DoF spline through point tracks: one window, and the stream of windows."""

from .fixed_lag import FixedLagSpline, StreamSolution
from .window import SplineSolution, TrackWindow, solve

__all__ = ["FixedLagSpline", "SplineSolution", "StreamSolution", "TrackWindow", "solve"]
