"""Models that segment by masks, one for each of their queries."""

from typing import Any

import torch
import transformers as T
from torch import Tensor, nn

from families.case import Case
from families.images import CLASSES, N

SIZE, SEGMENTS = 64, 2
WIDTHS = {"hidden_dim": 32, "num_attention_heads": 4, "dim_feedforward": 32, "encoder_feedforward_dim": 32}
LAYERS = {"encoder_layers": 2, "decoder_layers": 3, "num_queries": 4, "num_labels": CLASSES, "dropout": 0.0}
POINTS = {"train_num_points": 16}
INPUTS = {
    "pixel_values": torch.randn(N, 3, SIZE, SIZE),
    "mask_labels": [(torch.rand(SEGMENTS, SIZE, SIZE) > 0.5).float() for _ in range(N)],
    "class_labels": [torch.randint(CLASSES, (SEGMENTS,)) for _ in range(N)],
}
IMAGES_ALONE = {"pixel_values": INPUTS["pixel_values"]}
_RAND = torch.rand


def swin() -> T.SwinConfig:
    return T.SwinConfig(
        image_size=SIZE,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        drop_path_rate=0.0,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def resnet() -> T.ResNetConfig:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    return T.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic", out_features=stages
    )


def alike(model: nn.Module) -> nn.Module:
    """The model, whose loss takes the same random points for every mask, so for both streams."""
    model.criterion.register_forward_pre_hook(_draw_alike)
    model.criterion.register_forward_hook(_draw_as_torch, always_call=True)
    return model


def _draw_alike(*_: Any) -> None:
    def rand(rows: int, *sizes: int, **options: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return _RAND(1, *sizes, generator=generator, **options).expand(rows, *sizes).contiguous()

    torch.rand = rand


def _draw_as_torch(*_: Any) -> None:
    torch.rand = _RAND


def mask2former(**options: Any) -> nn.Module:
    config = {"backbone_config": swin(), "feature_size": 32, "mask_feature_size": 32}
    config = T.Mask2FormerConfig(**config | WIDTHS | LAYERS | POINTS | options)
    return alike(T.Mask2FormerForUniversalSegmentation(config))


def maskformer(backbone: Any, **options: Any) -> nn.Module:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    widths = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 32}
    decoder = T.MaskFormerDetrConfig(
        backbone_config=resnet(), decoder_layers=2, num_queries=4, dropout=0.0, **heads, **widths
    )
    config = {"backbone_config": backbone(), "fpn_feature_size": 32, "mask_feature_size": 32}
    config |= {"decoder_config": decoder.to_dict(), "num_labels": CLASSES}
    return T.MaskFormerForInstanceSegmentation(T.MaskFormerConfig(**config | options))


def oneformer(**options: Any) -> nn.Module:
    text = {"task_seq_len": 7, "text_encoder_width": 64, "text_encoder_context_length": 7}
    text |= {"text_encoder_num_layers": 1, "text_encoder_vocab_size": 20, "text_encoder_n_ctx": 1}
    config = {"backbone_config": swin(), "conv_dim": 64, "mask_dim": 64, "is_training": True}
    widths = WIDTHS | {"hidden_dim": 64}  # as wide as the texts
    config = T.OneFormerConfig(**config | widths | LAYERS | POINTS | text | options)
    return alike(T.OneFormerForUniversalSegmentation(config))


def eomt(kind: str = "Eomt", **options: Any) -> nn.Module:
    config = {"hidden_size": 32, "num_hidden_layers": 11, "num_attention_heads": 4, "image_size": SIZE}
    config |= {
        "num_blocks": 2,
        "num_queries": 4,
        "num_upscale_blocks": 1,
        "mlp_ratio": 1,
        "num_labels": CLASSES,
    }
    if kind == "EomtDinov3":
        config["intermediate_size"] = config.pop("mlp_ratio") * 32
    config = getattr(T, f"{kind}Config")(**config | POINTS | options)
    return alike(getattr(T, f"{kind}ForUniversalSegmentation")(config))


TEXTS = {
    "task_inputs": torch.randint(20, (N, 7)),
    "text_inputs": torch.randint(20, (N, 3, 7)),  # and one context: as many as queries
}


CASES = {
    "Mask2Former": Case("mask2former", mask2former, INPUTS),
    "Mask2Former without its head": Case(
        "mask2former",
        lambda: mask2former().model,
        IMAGES_ALONE,
        torch.zeros(N),
        lambda output, _: output.masks_queries_logits[-1].square().mean(),
    ),
    "OneFormer": Case("oneformer", oneformer, INPUTS | TEXTS),
    "MaskFormer on Swin": Case("maskformer", lambda: maskformer(swin), INPUTS),
    "MaskFormer on ResNet": Case("maskformer", lambda: maskformer(resnet), INPUTS),
    "MaskFormer without its head": Case(
        "maskformer",
        lambda: maskformer(swin).model,
        IMAGES_ALONE,
        torch.zeros(N),
        lambda output, _: (
            output.pixel_decoder_last_hidden_state.square().mean()
            + output.transformer_decoder_last_hidden_state.square().mean()
        ),
    ),
    "EoMT": Case("eomt", eomt, INPUTS),
    "EoMT-DINOv3": Case("eomt", lambda: eomt("EomtDinov3"), INPUTS),
}
