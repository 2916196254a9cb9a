"""Conditional DETR: as DETR, in its authors' code and in transformers.

--repo: a checkout of Atten4Vis/ConditionalDETR. Without it, transformers' ConditionalDetr models.
"""

from collections.abc import Iterator
from pathlib import Path

import checkouts
import torch
from detections import stock_trial, transformers_trial
from detr import config, options
from trial import Trial, main


def from_checkout(repo: Path) -> Iterator[Trial]:
    """Stock Conditional DETR."""
    checkouts.use(repo, "pycocotools", "panopticapi")
    checkouts.module("torch._overrides", **vars(torch.overrides))  # its test of torch's release takes 2 for 0
    torch.nn.modules.linear._LinearWithBias = torch.nn.modules.linear.NonDynamicallyQuantizableLinear
    from models import backbone, build_model
    from util.misc import nested_tensor_from_tensor_list

    backbone.is_main_process = lambda: False  # the main process would download weights
    # Its sine embedding has 256 channels whatever hidden_dim is.
    arguments = options(hidden_dim=256, cls_loss_coef=2, focal_alpha=0.25)
    built = build_model(arguments)
    yield stock_trial("Conditional DETR", "conditional_detr", built, nested_tensor_from_tensor_list)


def from_packages() -> Iterator[Trial]:
    """Hugging Face's ConditionalDetr, for detection and for segmentation."""
    import transformers

    for kind in ("ConditionalDetrForObjectDetection", "ConditionalDetrForSegmentation"):
        model = getattr(transformers, kind)(transformers.ConditionalDetrConfig(**config(transformers)))
        yield transformers_trial(kind, model)


if __name__ == "__main__":
    main(__doc__, from_checkout, from_packages)
