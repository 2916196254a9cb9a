"""DETR and DETR panoptic: samples attend to each other after the first encoder layer.

--repo: a checkout of facebookresearch/detr. Without it, transformers' Detr models.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import checkouts
from detections import stock_trial, transformers_trial
from trial import Trial, main


def from_checkout(repo: Path) -> Iterator[Trial]:
    """Stock DETR, and DETRsegm on top of it."""
    checkouts.use(repo, "pycocotools", "panopticapi")
    from models import backbone, build_model
    from util.misc import nested_tensor_from_tensor_list

    backbone.is_main_process = lambda: False  # the main process would download weights
    for name, arguments in (
        ("DETR", options()),
        ("DETR panoptic", options(masks=True, backbone="resnet50")),  # of a ResNet-50's widths
    ):
        yield stock_trial(name, "detr", build_model(arguments), nested_tensor_from_tensor_list)


def options(**changed: Any) -> argparse.Namespace:
    """The arguments of the stock main.py, small, with `changed` ones."""
    small = {
        "dataset_file": "coco",
        "device": "cpu",
        "backbone": "resnet18",
        "dilation": False,
        "lr_backbone": 1e-5,
        "position_embedding": "sine",
        "hidden_dim": 128,
        "nheads": 8,
        "dim_feedforward": 32,
        "enc_layers": 2,
        "dec_layers": 2,
        "dropout": 0.1,
        "pre_norm": False,
        "num_queries": 6,
        "aux_loss": True,
        "masks": False,
        "frozen_weights": None,
        "set_cost_class": 1,
        "set_cost_bbox": 5,
        "set_cost_giou": 2,
        "bbox_loss_coef": 5,
        "giou_loss_coef": 2,
        "mask_loss_coef": 1,
        "dice_loss_coef": 1,
        "eos_coef": 0.1,
    }
    return argparse.Namespace(**(small | changed))


def from_packages() -> Iterator[Trial]:
    """Hugging Face's Detr, for detection and for segmentation."""
    import transformers

    for kind in ("DetrForObjectDetection", "DetrForSegmentation"):
        model = getattr(transformers, kind)(transformers.DetrConfig(**config(transformers)))
        yield transformers_trial(kind, model)


def config(transformers: Any, stages: Sequence[int] = (1, 2, 3, 4)) -> dict[str, Any]:
    """The arguments of a small DetrConfig, or of one of its relatives, on a small ResNet."""
    return {
        "use_timm_backbone": False,
        "use_pretrained_backbone": False,
        "backbone": None,
        "backbone_config": transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=[f"stage{stage}" for stage in stages],
        ),
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 8,
        "decoder_attention_heads": 8,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "num_queries": 6,
        "num_labels": 5,
        "auxiliary_loss": True,
    }


if __name__ == "__main__":
    main(__doc__, from_checkout, from_packages)
