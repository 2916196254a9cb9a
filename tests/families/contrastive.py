"""Models that contrast images with their texts."""

import torch
import transformers as T
from torch import nn

from families.case import Case
from families.images import IMAGES, N

WORDS = torch.tensor([[0, 3, 4, 19], [0, 5, 6, 19], [0, 7, 3, 19], [0, 9, 8, 19]])
INPUTS = {"pixel_values": IMAGES, "input_ids": WORDS, "return_loss": True}
LAYERS = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
TEXT = LAYERS | {"vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 19}
VISION = LAYERS | {"image_size": 32, "patch_size": 16}
ROBERTA = {"type_vocab_size": 2, "pad_token_id": 1, "hidden_dropout_prob": 0.0} | {
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 12,
}


def clip(name: str = "CLIP", *, width: int = 32, text: dict = {}, **config) -> nn.Module:  # noqa: B006
    config |= {"text_config": TEXT | text, "vision_config": VISION | {"hidden_size": width}}
    return getattr(T, f"{name}Model")(getattr(T, f"{name}Config")(**config, projection_dim=16))


def siglip() -> T.SiglipModel:
    return T.SiglipModel(T.SiglipConfig(text_config=TEXT | {"projection_size": 32}, vision_config=VISION))


def siglip2() -> T.Siglip2Model:
    vision = LAYERS | {"patch_size": 16, "num_patches": 4}
    return T.Siglip2Model(T.Siglip2Config(text_config=TEXT | {"projection_size": 32}, vision_config=vision))


PATCHES = {
    "pixel_values": torch.randn(N, 4, 3 * 16 * 16),
    "pixel_attention_mask": torch.ones(N, 4, dtype=torch.long),
    "spatial_shapes": torch.tensor([[2, 2]] * N),
}

CASES = {
    "CLIP": Case("clip", clip, INPUTS),
    "CLIP, aligned": Case("clip", clip, INPUTS, options={"pairings": "aligned"}),
    "CLIP of two widths": Case("clip", lambda: clip(width=48), INPUTS),
    "AltCLIP": Case("clip", lambda: clip("AltCLIP", text=ROBERTA | {"project_dim": 32}), INPUTS),
    "Chinese CLIP": Case("clip", lambda: clip("ChineseCLIP", text=ROBERTA), INPUTS),
    "MetaCLIP 2": Case("clip", lambda: clip("MetaClip2"), INPUTS),
    "SigLIP": Case("clip", siglip, INPUTS),
    "SigLIP 2": Case("clip", siglip2, INPUTS | PATCHES),
}
