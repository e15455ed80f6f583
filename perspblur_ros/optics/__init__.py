"""The sparse trajectory: one camera rotation per frame from tracked points.

cascade    the paper's roll → yaw → pitch solver, the readable reference
rotation   the default: robust closed form, then Gauss–Newton on the exact model with lever arm and depth
keyframes  poses relative to keyframes, so that drift does not grow with every frame pair
"""

from .cascade import cascade
from .keyframes import KeyframeChain, Sightings
from .rotation import RotationSolution, at_middle_row, robust_wahba, solve_rotation, wahba

__all__ = [
    "KeyframeChain",
    "RotationSolution",
    "Sightings",
    "at_middle_row",
    "cascade",
    "robust_wahba",
    "solve_rotation",
    "wahba",
]
