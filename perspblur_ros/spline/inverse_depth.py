"""What a solved window measured of its tracks' inverse depths, and how well; computed when asked, not per step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..camera import Camera
from ..motion_prior import knot_precision
from .window import SplineSolution, TrackWindow, linearised

FloatArray = NDArray[np.float64]

FLAT_SD = 1e3  # 1/m


@dataclass(frozen=True)
class MeasuredDepths:
    """Inverse depths at the window's reference time as the tracks alone give them, the prior taken out again.

    rays         (N, 2), ideal rays (x, y, 1) of the tracks in the reference frame
    rho          (N,) 1/m; below zero where the noise says so
    covariance   (N, N) of rho: each track's own noise, and the trajectory's uncertainty, which all share
    prior_share  (N,), in [0, 1]: how much of the solved inverse depth is the prior's
    """

    ids: NDArray[np.int64]
    rays: FloatArray
    rho: FloatArray
    covariance: FloatArray
    prior_share: FloatArray


def measured_depths(
    window: TrackWindow, camera: Camera, exposure_s: float, solution: SplineSolution, translation_m_s: float,
    at_most: int = 300,
) -> MeasuredDepths:
    """One Gauss–Newton step from the solution without the prior on ρ, and the marginal covariance of its ρ.

    Of more tracks than ``at_most`` those that the trajectory leaves least uncertain are taken.

    Where the lever arm is unknown the prior on ρ stays, for it alone says how large the scene is. The pull of the
    motion prior goes in any case: it makes every motion a little smaller, and what rotation loses parallax gains.

    With the landmark blocks H_l, their coupling W to the trajectory and the reduced system S, the marginal covariance
    is H_l⁻¹ + H_l⁻¹ W S⁻¹ (H_l⁻¹ W)ᵀ, tempered like all that comes from tracks (Triggs et al. 2000, Bundle Adjustment:
    A Modern Synthesis, sections 6.1 and 8). A track that fits badly (robust weight w below 1) has errors beyond noise:
    its own variance is divided by w², found on the development clips. Raises LinAlgError for a singular system.
    """
    state, prior_sd = solution.state, window.rho_sd
    if state.lever_arm_m is not None:
        window = replace(window, rho_sd=np.full(len(window.ids), FLAT_SD), rho_shared_sd=np.zeros(1))
    normal = linearised(window, camera, exposure_s, solution, translation_m_s)
    pull = knot_precision(state.grid.count, state.grid.spacing_s) / solution.amplitude**2 @ state.c
    normal.b[: pull.size] -= pull.ravel()
    best = np.sort(np.argsort(normal.H_landmark_inv[:, 2, 2])[:at_most])
    row = normal.H_landmark_inv[best, 2]
    coupling = np.einsum("nb,nbm->nm", row, normal.cross[best, :, :-1])
    solved = np.linalg.solve(normal.S, np.column_stack([coupling.T, normal.b]))
    covariance = np.diag(row[:, 2] / solution.weights[best] ** 2) + coupling @ solved[:, :-1]
    variance = covariance.diagonal()
    rho = state.rho[best] - np.einsum("nb,nb->n", row, normal.g_landmark[best]) + coupling @ solved[:, -1]
    share = variance / (variance + prior_sd[best] ** 2)
    return MeasuredDepths(state.ids[best], state.ray[best], rho, covariance, share)
