"""Detectors of torchvision: Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD and SSDlite.

They take a list of images and one of targets, make a batch of the images, and compute their losses from both.
So images and targets are doubled where the batch is made: anchors, proposals and losses are of 2N images. The
backbone sees every image once, up to the place; its other maps are doubled unchanged.
"""

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from batchformer.swap_in.generic import AfterBlocks
from batchformer.swap_in.make import token_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, find, is_detector, is_inside
from batchformer.swap_in.rules import has_rows, leaves, map_tensors
from batchformer.targets import twice

_BACKBONE = "backbone"
_FIRST_LEVEL = {  # of backbones that make one level from the other, without a pyramid
    "SSDFeatureExtractorVGG": "backbone.features",
    "SSDLiteFeatureExtractorMobileNet": "backbone.features.0",
}


class TorchvisionDetector(AfterBlocks):
    """BatchFormerV2 on the coarsest level of the pyramid, as wide and as coarse as the tokens of DETR.

    From there the top-down path takes it to every level. Levels that a RetinaNet makes from the backbone
    itself get the same module. SSD, which has no pyramid, gets it after the first level, from which it makes
    the others; another backbone gets it after all its outputs. ``after`` takes the path of any block of the
    backbone.

    No criterion is wrapped: each loss that the detector returns is the mean over both streams.
    """

    names = ("torchvision_detector",)
    expects = "GeneralizedRCNN, RetinaNet, FCOS or SSD (torchvision.models.detection)"
    place = "after the lateral convolution of the coarsest level"
    takes = ("after", "layout", "shared")
    takes_labels = False  # the model counts targets and images before they are a batch
    takes_paths = True
    answers = True
    part_alone = (
        "which has BatchFormer and doubles images and targets in its transform, got one of its backbone alone"
    )

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A detector of torchvision, or of a class that is made from one."""
        return is_detector(model)

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """Blocks of the backbone; if none is named, those for the backbone's class."""
        if options.after is None:
            return [Place(path, model.get_submodule(path)) for path in _places_in(model)]
        places = find(model, "after", options.after)
        for place in places:
            if not is_inside(place.path, _BACKBONE):
                raise ValueError(
                    f"after: expected the path of a block inside of 'backbone' of {type(model).__name__}, as "
                    f"later modules take regions, not images, got {place.path!r}"
                )
        return places

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormerV2, as wide as the maps."""
        if options.after is not None:
            return super().make_modules(model, places, options)
        if places[0].path == _BACKBONE:
            width: Any = model.get_submodule(_BACKBONE).out_channels
            options = replace(options, dim=options.dim or width)
        return token_modules(model, places, "NCHW", options)

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """Where the batch is made, around the backbone, and at the outputs of the blocks."""
        del options
        backbone = model.get_submodule(_BACKBONE)
        self.hooks.output(model.get_submodule("transform"), self._double_batch)
        self.hooks.inputs(backbone, self.each_image_once)
        for number, place in enumerate(places):
            self.hooks.output(place.module, functools.partial(self._double_levels, number))
        if all(place.module is not backbone for place in places):
            # A pyramid adds its levels: those that are not from a place are doubled before it does.
            for _, pyramid in _pyramids(backbone):
                for lateral in pyramid.get_submodule("inner_blocks").children():
                    self.hooks.output(lateral, self._double_others)
            self.hooks.output(backbone, self._double_others)
        if any(cls.__name__ == "FCOS" for cls in type(model).__mro__):
            self.hooks.replace("compute_loss", self._mean_loss)

    def _double_batch(self, transform: nn.Module, args: Any, output: Any) -> Any:
        """The batch of images, with their sizes, and the targets."""
        del transform, args
        if not self.active:
            return None
        images, targets = output
        samples = len(images.image_sizes)
        if targets is not None and len(targets) != samples:
            raise ValueError(f"targets: expected one for each of the {samples} images, got {len(targets)}")
        # No mark: the maps of the backbone have to lead to those of the places alone.
        self.double_early(samples, images.tensors)
        doubled = type(images)(twice(images.tensors), twice(images.image_sizes))
        return doubled, None if targets is None else twice(targets)

    def _double_levels(self, number: int, place: nn.Module, args: Any, output: Any) -> Any:
        """What a place gives: a map, or a dict of levels, each with its own originals."""
        double = functools.partial(self._double_tokens, number, place, args)
        return (
            map_tensors(output, double) if isinstance(output, dict) and self.trains(place) else double(output)
        )

    def _double_others(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Maps that have no second stream."""
        del module, args
        if not self.active:
            return None
        first = next(leaves(output))
        samples = self.streams.current(first).samples
        return map_tensors(output, lambda each: twice(each) if has_rows(each, samples) else each)

    def _mean_loss(
        self, targets: list[Any], head_outputs: dict[str, Tensor], anchors: list[Tensor], *others: Any
    ) -> Any:
        """Of FCOS, the mean over the streams: its sum over no foreground at all is divided by 1, not by N."""
        loss = functools.partial(self.hooks.stock, "compute_loss")
        if not self.active:
            return loss(targets, head_outputs, anchors, *others)
        samples = len(targets) // 2
        halves = [slice(samples), slice(samples, None)]
        losses = [
            loss(
                targets[half],
                {name: value[half] for name, value in head_outputs.items()},
                anchors[half],
                *others,
            )
            for half in halves
        ]
        return {name: torch.stack([each[name] for each in losses]).mean() for name in losses[0]}


def _places_in(model: nn.Module) -> list[str]:
    backbone = model.get_submodule(_BACKBONE)
    name = type(backbone).__name__
    if name in _FIRST_LEVEL:
        return [_FIRST_LEVEL[name]]
    pyramids = [*_pyramids(backbone)]
    if len(pyramids) == 1:
        path, pyramid = pyramids[0]
        path = f"{_BACKBONE}.{path}" if path else _BACKBONE
        *_, coarsest = pyramid.get_submodule("inner_blocks")._modules
        extra: Any = getattr(pyramid, "extra_blocks", None)
        of_backbone = type(extra).__name__ == "LastLevelP6P7" and not extra.use_P5
        return [f"{path}.inner_blocks.{coarsest}", *([f"{path}.extra_blocks.p6"] if of_backbone else [])]
    if isinstance(getattr(backbone, "out_channels", None), int):
        return [_BACKBONE]
    raise ValueError(
        f"after: expected the path of a block of 'backbone' in {type(model).__name__}, as {name} has neither "
        "a pyramid nor one width (out_channels) for all its outputs, got None"
    )


def _pyramids(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in backbone.named_modules():
        if any(cls.__name__ == "FeaturePyramidNetwork" for cls in type(module).__mro__):
            yield path, module
