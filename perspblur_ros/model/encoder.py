"""Multi-frame features (paper 3.2): a DINOv2 vision transformer, features of K of its layers fused to width d."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from ..errors import EngineError
from .presets import Preset

RGB_MEAN, RGB_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which DINOv2 was trained with


class Encoder(nn.Module):
    """Picture (B, 3, H, H), RGB 0 to 1 → features (B, P, d); grey pictures repeat their channel.

    The paper upsamples its layers to the finest grid; those of a vision transformer have the same grid already, so
    that fusing is one linear map of the K normalised layers side by side.
    """

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.fused_layers = preset.fused_layers
        config = Dinov2Config(
            hidden_size=preset.encoder_width,
            num_hidden_layers=preset.encoder_layers,
            num_attention_heads=preset.encoder_heads,
            mlp_ratio=preset.encoder_mlp_ratio,
            image_size=preset.image_px,
            patch_size=preset.patch_px,
            use_mask_token=False,
        )
        backbone = Dinov2Model(config)
        self.embeddings, self.layers = backbone.embeddings, backbone.encoder.layer
        self.norms = nn.ModuleList(nn.LayerNorm(preset.encoder_width) for _ in preset.fused_layers)
        self.fuse = nn.Linear(len(preset.fused_layers) * preset.encoder_width, preset.width)
        self.mean: Tensor
        self.sd: Tensor
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("sd", torch.tensor(RGB_SD).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embeddings((image - self.mean) / self.sd)
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        kept = [norm(outputs[k - 1]) for k, norm in zip(self.fused_layers, self.norms)]
        return self.fuse(torch.cat(kept, dim=-1)[:, 1:])  # without the class token


def load_backbone(encoder: Encoder, folder: Path) -> None:
    """Give the encoder DINOv2 weights from a local folder, as transformers' ``save_pretrained`` or the hub lay it out.

    Reads safetensors from the disk only. Raises EngineError when they are not there or have other sizes.
    """
    try:
        given = Dinov2Model.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise EngineError(f"{folder} holds no DINOv2 weights: {str(error).splitlines()[0]}") from None
    pairs = (("embeddings", encoder.embeddings, given.embeddings), ("layers", encoder.layers, given.encoder.layer))
    for name, ours, theirs in pairs:
        weights = theirs.state_dict()
        weights.pop("mask_token", None)
        try:
            ours.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise EngineError(f"{folder}: {name} do not fit this preset's encoder: {reason}") from None
