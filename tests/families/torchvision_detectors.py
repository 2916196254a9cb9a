"""Detectors of torchvision."""

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import detection, mobilenet_v3_large
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.ssd import SSD
from torchvision.models.vgg import make_layers
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from families.case import Case
from families.images import CLASSES

SIZES = [(48, 64), (64, 40), (33, 64)]
WIDTH, KEYPOINTS = 8, 2
SMALL = {"min_size": 64, "max_size": 64}
ALL = {"rpn_batch_size_per_image": 100_000, "box_batch_size_per_image": 100_000}  # nothing is left to chance


def body() -> nn.Sequential:
    """Four levels, the first at 1/4."""
    widths = (3, 4, 4, 6, 6)
    levels = [
        nn.Sequential(nn.Conv2d(old, new, 3, stride=4 if old == 3 else 2, padding=1), nn.ReLU())
        for old, new in itertools.pairwise(widths)
    ]
    return nn.Sequential(*levels)


def pyramid(extra_blocks: nn.Module | None = None, width: int = WIDTH) -> BackboneWithFPN:
    return BackboneWithFPN(
        body(), {str(level): str(level) for level in range(4)}, [4, 4, 6, 6], width, extra_blocks
    )


def plain() -> nn.Sequential:
    backbone = nn.Sequential(*body()[:3])
    backbone.out_channels = 6
    return backbone


class Levels(nn.Module):
    """Levels of one width without torchvision's pyramid."""

    out_channels = 4

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = body()[0], body()[1]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        fine = self.fine(x)
        return OrderedDict(fine=fine, coarse=self.coarse(fine))


def anchors(levels: int) -> AnchorGenerator:
    return AnchorGenerator(((16,),) * levels, ((1.0,),) * levels)


def rcnn(make: Any = detection.FasterRCNN, backbone: Any = pyramid, **more: Any) -> nn.Module:
    maps = backbone()
    levels = 5 if backbone is pyramid else 2 if backbone is Levels else 1
    names = {1: ["0"], 2: ["fine", "coarse"], 5: ["0", "1", "2", "3"]}[levels]
    return make(
        maps,
        num_classes=None,
        rpn_anchor_generator=anchors(levels),
        box_roi_pool=pool(names),
        box_head=detection.faster_rcnn.TwoMLPHead(9 * maps.out_channels, 16),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(16, CLASSES),
        **(SMALL | ALL | more),
    )


def pool(names: Sequence[str] = ("0", "1", "2", "3")) -> MultiScaleRoIAlign:
    return MultiScaleRoIAlign(names, output_size=3, sampling_ratio=2)


def mask_rcnn() -> nn.Module:
    head = detection.mask_rcnn.MaskRCNNHeads(WIDTH, (WIDTH,), 1)
    predictor = detection.mask_rcnn.MaskRCNNPredictor(WIDTH, WIDTH, CLASSES)
    return rcnn(detection.MaskRCNN, mask_roi_pool=pool(), mask_head=head, mask_predictor=predictor)


def keypoint_rcnn() -> nn.Module:
    return rcnn(
        detection.KeypointRCNN,
        num_keypoints=None,
        keypoint_roi_pool=pool(),
        keypoint_head=detection.keypoint_rcnn.KeypointRCNNHeads(WIDTH, (WIDTH,)),
        keypoint_predictor=detection.keypoint_rcnn.KeypointRCNNPredictor(WIDTH, KEYPOINTS),
    )


def retinanet(extra_blocks: Callable[[], nn.Module] | None = None) -> nn.Module:
    extra = extra_blocks and extra_blocks()
    levels = 5 if extra is None else 6
    return detection.RetinaNet(
        pyramid(extra), CLASSES, anchor_generator=anchors(levels), score_thresh=0.0, **SMALL
    )


def fcos() -> nn.Module:
    maps = pyramid(width=32)  # as many as its head has groups
    return detection.FCOS(maps, CLASSES, anchor_generator=anchors(5), score_thresh=0.0, **SMALL)


def ssdlite() -> nn.Module:
    """With frozen batch norms: running statistics would know that there were twice as many rows."""
    norm = FrozenBatchNorm2d
    trunk = mobilenet_v3_large(width_mult=0.1, norm_layer=norm)
    backbone = detection.ssdlite._mobilenet_extractor(trunk, 6, norm)
    boxes = DefaultBoxGenerator([[2]] * 6)
    widths = [level.shape[1] for level in backbone(torch.zeros(2, 3, 64, 64)).values()]
    head = detection.ssdlite.SSDLiteHead(widths, boxes.num_anchors_per_location(), CLASSES, norm)
    return SSD(backbone, boxes, (64, 64), CLASSES, head=head)


def ssd() -> nn.Module:
    """Of four levels, for small images."""
    layers = make_layers([2, "M", 2, "M", 2, "M", 512, "M", 512, "M"])
    backbone = detection.ssd.SSDFeatureExtractorVGG(layers, highres=False)
    del backbone.extra[3:]
    return SSD(backbone, DefaultBoxGenerator([[2]] * 4), (64, 64), CLASSES)


def target(height: int, width: int, boxes: int) -> dict[str, Tensor]:
    """So many boxes, with all that any of the models takes."""
    corners = torch.tensor([[4.0, 4.0, 20.0, 24.0], [10.0, 8.0, width - 2.0, height - 2.0]])[:boxes]
    masks = torch.zeros(boxes, height, width, dtype=torch.uint8)
    masks[:, 8:16, 10:18] = 1
    keypoints = torch.tensor([[12.0, 10.0, 1.0], [15.0, 14.0, 1.0]]).expand(boxes, KEYPOINTS, 3)
    return {"boxes": corners, "labels": torch.arange(1, 1 + boxes), "masks": masks, "keypoints": keypoints}


INPUTS = {
    "images": [torch.rand(3, *size) for size in SIZES],
    "targets": [target(*size, boxes) for size, boxes in zip(SIZES, (1, 0, 2), strict=True)],
}


def total(losses: dict[str, Tensor]) -> Tensor:
    return sum(losses.values())


def case(make: Callable[[], nn.Module], **options: Any) -> Case:
    return Case("torchvision_detector", make, INPUTS, loss=total, options=options)


CASES = {
    "Faster R-CNN": case(rcnn),
    "Faster R-CNN, one map": case(functools.partial(rcnn, backbone=plain), nhead=2),
    "Faster R-CNN, maps without a pyramid": case(functools.partial(rcnn, backbone=Levels)),
    "Faster R-CNN, inside of the body": case(rcnn, after="backbone.body.1", nhead=2),
    "Mask R-CNN": case(mask_rcnn),
    "Keypoint R-CNN": case(keypoint_rcnn),
    "RetinaNet": case(retinanet),
    "RetinaNet, levels of P5": case(functools.partial(retinanet, lambda: LastLevelP6P7(WIDTH, WIDTH))),
    "RetinaNet, levels of C5": case(functools.partial(retinanet, lambda: LastLevelP6P7(6, WIDTH))),
    "FCOS": case(fcos),
    "SSD": case(ssd, dim_feedforward=32),
    "SSDlite": case(ssdlite),
}
