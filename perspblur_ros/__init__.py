"""Read camera motion out of motion blur.

    image ─► ring buffer ─► tracker ─► optics (sparse) ─► track spline ─► cross-blur ─► dense trajectory

``perspblur_ros.pipeline.Pipeline`` is the way in; ``docs/conventions.md`` fixes axes, units and times.
"""

__version__ = "0.1.0"
