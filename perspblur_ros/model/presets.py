"""The sizes of the networks: one plain table. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """Sizes of one network; letters are the paper's where it has one."""

    name: str
    image_px: int  # H: the frame is squeezed to H × H
    patch_px: int
    encoder_width: int
    encoder_layers: int
    encoder_heads: int
    encoder_mlp_ratio: int
    fused_layers: tuple[int, ...]  # 1-based encoder layers whose features are fused; the paper's K is their number
    width: int  # d
    heads: int
    window_frames: int  # S
    clip_frames: int  # T
    self_layers: int  # L
    cross_layers: int
    decoder_layers: int
    head_px: int  # h: the depth map is h × h
    head_width: int
    samples: int  # n: trajectory tokens per frame
    prior_inputs: int  # F, ``decoder.FEATURES`` for each of three axes
    prior_unknowns: int
    prior_weights: int
    prior_width: int = 128

    @property
    def grid(self) -> int:
        """Patches along one side of the picture."""
        return self.image_px // self.patch_px

    @property
    def tokens(self) -> int:
        """P, patches of one picture."""
        return self.grid**2

    @property
    def windows(self) -> int:
        """Windows in a clip, T // S."""
        return self.clip_frames // self.window_frames

    def table(self) -> dict[str, Any]:
        """The sizes as JSON can hold them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def from_table(table: Mapping[str, Any]) -> Preset:
    """The inverse of ``Preset.table``; ConfigError where a size is missing or unknown."""
    known = {field.name for field in fields(Preset)}
    if unknown := sorted(set(table) - known):
        raise ConfigError(f"unknown network size {', '.join(unknown)}")
    if missing := sorted(known - set(table)):
        raise ConfigError(f"the network sizes lack {', '.join(missing)}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return Preset(**values)


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(  # the paper, sections 3.2 and 4.2; its encoder is DINOv2 ViT-B/14
            name="paper",
            image_px=518,
            patch_px=14,
            encoder_width=768,
            encoder_layers=12,
            encoder_heads=12,
            encoder_mlp_ratio=4,
            fused_layers=(3, 6, 9, 12),
            width=384,
            heads=8,
            window_frames=6,
            clip_frames=30,
            self_layers=6,
            cross_layers=2,
            decoder_layers=6,
            head_px=518,
            head_width=32,
            samples=30,
            prior_inputs=345,
            prior_unknowns=36,
            prior_weights=9,
        ),
        Preset(
            name="tiny",
            image_px=128,
            patch_px=8,
            encoder_width=64,
            encoder_layers=4,
            encoder_heads=4,
            encoder_mlp_ratio=4,
            fused_layers=(2, 4),
            width=64,
            heads=4,
            window_frames=6,
            clip_frames=12,
            self_layers=2,
            cross_layers=1,
            decoder_layers=2,
            head_px=64,
            head_width=16,
            samples=15,
            prior_inputs=345,
            prior_unknowns=36,
            prior_weights=9,
            prior_width=48,
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset of that name; ConfigError for any other."""
    if name not in PRESETS:
        raise ConfigError(f"preset '{name}' is none of {', '.join(PRESETS)}")
    return PRESETS[name]
