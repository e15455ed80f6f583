"""The sensor: shot and read noise, then the transfer curve to 8 bit. Linear light is 0 (black) to 1 (full well)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float32]

_SRGB_LINEAR_BELOW = 0.0031308  # IEC 61966-2-1


def encode_srgb(linear: FloatImage) -> FloatImage:
    """Linear light 0…1 → sRGB value 0…1 (IEC 61966-2-1)."""
    clipped = np.clip(linear, 0.0, 1.0)
    return np.where(clipped <= _SRGB_LINEAR_BELOW, 12.92 * clipped, 1.055 * clipped ** (1 / 2.4) - 0.055)


def decode_srgb(picture: NDArray[np.uint8]) -> FloatImage:
    """8-bit sRGB picture → linear light 0…1, float32."""
    v = np.arange(256) / 255.0
    linear = np.where(v <= 12.92 * _SRGB_LINEAR_BELOW, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return linear.astype(np.float32)[picture]


@dataclass(frozen=True)
class Sensor:
    """Noise in electrons and the transfer curve.

    With the defaults a mid-grey pixel has a noise of about one grey level, as a small camera's has in room light.
    ``gamma`` replaces the sRGB curve by value = linear^(1/gamma); 1 keeps linear light.
    """

    full_well_e: float = 15000.0
    read_noise_e: float = 5.0
    gamma: float | None = None

    def expose(self, linear: FloatImage, rng: np.random.Generator) -> NDArray[np.uint8]:
        """Linear light 0…1 → the 8-bit picture the camera delivers. Values beyond 1 saturate."""
        return self.encode(self.add_noise(linear, rng))

    def add_noise(self, linear: FloatImage, rng: np.random.Generator) -> FloatImage:
        """Shot noise (variance = electrons; normal, good above some 10 electrons) and read noise, in linear light."""
        if self.full_well_e <= 0:
            return linear
        sd_e = np.sqrt(np.maximum(linear, 0) * self.full_well_e + self.read_noise_e**2, dtype=np.float32)
        return linear + rng.standard_normal(linear.shape, dtype=np.float32) * sd_e / np.float32(self.full_well_e)

    def encode(self, linear: FloatImage) -> NDArray[np.uint8]:
        """Transfer curve and rounding to 8 bit."""
        value = encode_srgb(linear) if self.gamma is None else np.clip(linear, 0, 1) ** (1 / self.gamma)
        return np.round(value * 255.0).astype(np.uint8)


NOISELESS = Sensor(full_well_e=0.0, read_noise_e=0.0)
