"""Deformable DETR: one and four levels, box refinement, two stages.

--repo: a checkout of fundamentalvision/Deformable-DETR (its CUDA operator is not needed here). Without it,
transformers' DeformableDetr.
"""

from collections.abc import Iterator
from pathlib import Path

import checkouts
from detections import stock_trial, transformers_trial
from detr import config, options
from trial import Trial, main

VARIANTS = {
    "one level": {"num_feature_levels": 1},
    "four levels": {"num_feature_levels": 4},
    "box refinement": {"num_feature_levels": 4, "with_box_refine": True},
    "two stages": {"num_feature_levels": 4, "with_box_refine": True, "two_stage": True},
}


def from_checkout(repo: Path) -> Iterator[Trial]:
    """Stock Deformable DETR in its variants, with its PyTorch reading of its operator."""
    checkouts.use(repo, "MultiScaleDeformableAttention", "pycocotools", "panopticapi")
    with checkouts.an_old_torchvision():
        from models import backbone, build_model
        from models.ops.functions.ms_deform_attn_func import ms_deform_attn_core_pytorch
        from models.ops.modules import ms_deform_attn
        from util.misc import nested_tensor_from_tensor_list

    class Operator:
        @staticmethod
        def apply(value, shapes, starts, locations, weights, step):
            del starts, step
            return ms_deform_attn_core_pytorch(value, shapes, locations, weights)

    ms_deform_attn.MSDeformAttnFunction = Operator
    backbone.is_main_process = lambda: False  # the main process would download weights
    common = {
        "backbone": "resnet50",
        "hidden_dim": 256,
        "position_embedding_scale": 6.28,
        "enc_n_points": 2,
        "dec_n_points": 2,
        "with_box_refine": False,
        "two_stage": False,
        "cls_loss_coef": 2,
        "focal_alpha": 0.25,
    }
    for name, variant in VARIANTS.items():
        built = build_model(options(**(common | variant)))
        name = f"Deformable DETR, {name}"
        yield stock_trial(name, "deformable_detr", built, nested_tensor_from_tensor_list)


def from_packages() -> Iterator[Trial]:
    """Hugging Face's DeformableDetr in the same variants."""
    import transformers

    for name, variant in VARIANTS.items():
        stages = (4,) if variant["num_feature_levels"] == 1 else (2, 3, 4)
        arguments = config(transformers, stages) | {"two_stage_num_proposals": 6} | variant
        model = transformers.DeformableDetrForObjectDetection(transformers.DeformableDetrConfig(**arguments))
        yield transformers_trial(f"DeformableDetrForObjectDetection, {name}", model)


if __name__ == "__main__":
    main(__doc__, from_checkout, from_packages)
