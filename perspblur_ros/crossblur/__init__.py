"""Cross-blur: two frames, each blurred with the other's path, show the same picture.

For frames a and b of one scene, mean_s I_a(x − M⁻¹ u_b(s)) = mean_s I_b(x_b − M u_a(s)), u the displacement of the
point along each frame's own path about its mean, and M = ∂x_b/∂x the turn of the picture between them. No sharp image
is needed; the residual's Jacobian by the spline's knots is the image gradient times B (and A). The residual is taken on
small patches around tracked points, each with the one displacement of its centre, so depth, translation and row time
come in for free. Patches are compared without their mean and contrast, in linear light, tempered: neighbouring pixels
are far from independent.

A quarter of the tracks is held out: a refinement that does not explain them better, or that strains the prior (motions
that no patch can see), is refused by the gate.
"""

from .inverse_depth import BlurDepths, blur_depths
from .pair import PairTerm, Patches
from .pictures import GAMMA, PATCH, View, view
from .refine import HELD_OUT, CrossBlur, Refinement, Sightings, Solved, Start, trusted_information

__all__ = [
    "GAMMA",
    "BlurDepths",
    "HELD_OUT",
    "PATCH",
    "Start",
    "CrossBlur",
    "PairTerm",
    "Patches",
    "Refinement",
    "Sightings",
    "Solved",
    "View",
    "blur_depths",
    "trusted_information",
    "view",
]
