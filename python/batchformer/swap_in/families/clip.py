"""CLIP and SigLIP of transformers: two towers, whose features are contrasted in the model itself."""

import dataclasses
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from batchformer.swap_in.family import Family
from batchformer.swap_in.make import feature_modules, token_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, input_width

_PROJECTIONS = ("visual_projection", "text_projection")
_HEADS = ("vision_model.head", "text_model.head")
_PLACES = {
    "CLIPModel": _PROJECTIONS,
    "AltCLIPModel": _PROJECTIONS,
    "ChineseCLIPModel": _PROJECTIONS,
    "MetaClip2Model": _PROJECTIONS,
    "SiglipModel": _HEADS,
    "Siglip2Model": _HEADS,
}

Loss = Callable[[Tensor], Tensor]


class Clip(Family):
    """transformers' CLIP, AltCLIP, Chinese CLIP, MetaCLIP 2, SigLIP and SigLIP 2.

    Each tower sees its N samples once. BatchFormer goes in before the projections of both; SigLIP, which has
    none, gets it after the heads that pool. Towers of one width share a module, as the encoders of MoCo do,
    unless ``shared=False``; else each has its own.

    With ``return_loss=True`` the model returns the mean of its own loss over all pairings of an image stream
    with a text stream, each with its own N negatives; with ``pairings="aligned"`` over equal streams only.
    Embeddings have 2N rows in training, originals first, and logits `[2N, 2N]`, with those pairings in their
    four blocks. A criterion of your own, on either, is wrapped, and called for each pairing.
    """

    names = ("clip", "siglip")
    expects = "two towers and their projections or heads (CLIP and SigLIP of transformers)"
    place = "before the projections of both towers, or after SigLIP's heads"
    takes = ("shared", "pairings", "wrapped")
    targets = ()
    own_loss = "model(..., return_loss=True)"
    gives_pairs = True

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A model whose forward is transformers' own."""
        paths = _PLACES.get(_stock_class(model).__name__)
        # SigLIP without its pooling head contrasts nothing.
        return paths is not None and all(_has(model, path) for path in paths)

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """The projections, or SigLIP's heads."""
        del options
        paths = _PLACES[_stock_class(model).__name__]
        return [Place(path, model.get_submodule(path)) for path in paths]

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """One module for towers of one width, else one for each."""
        if _stock_class(model).__name__.startswith("Siglip"):
            return token_modules(model, places, "NC", options)
        differ = options.dim is None and len({input_width(place.module) for place in places}) > 1
        return feature_modules(
            model, places, dataclasses.replace(options, shared=False) if differ else options
        )

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the projections or heads, and where the model returns its loss."""
        del options
        stock = _stock_class(model)
        self._loss: Loss = _sigmoid_loss if stock.__name__.startswith("Siglip") else _stock_loss(stock)
        if places[0].path in _HEADS:
            self.double_tokens_after(places)
        else:
            self.double_features_before(places)
        self.hooks.output(model, self._pair_streams)

    def _pair_streams(self, model: nn.Module, args: Any, output: Any) -> Any:
        """The output with the mean of the losses of all pairings for its loss, if it has one."""
        del model, args
        if not self.active:
            return None
        if isinstance(output, tuple):  # return_dict=False leaves out what is None
            has_loss = output[0].dim() == 0
            logits = output[2 if has_loss else 1]
        else:
            has_loss, logits = output.loss is not None, output.logits_per_text
        if not has_loss:
            return None
        forward = self.streams.current(logits)
        forward.answered = forward.has_loss = True
        loss = self._mean_loss(logits)
        if isinstance(output, tuple):
            return (loss, *output[1:])
        output.loss = loss
        return output

    def _mean_loss(self, logits: Tensor) -> Tensor:
        blocks = [texts.chunk(2, dim=1) for texts in logits.chunk(2)]  # each [N, N]
        losses = [
            self._loss(blocks[text][image])
            for text, image in itertools.product((0, 1), repeat=2)
            if self.pairings == "all" or text == image
        ]
        return sum(losses[1:], losses[0]) / len(losses)


def _stock_class(model: nn.Module) -> type:
    """The class that defines the forward of a model, if it is one of transformers; else nn.Module."""
    owner = next(each for each in type(model).__mro__ if "forward" in vars(each))
    return owner if owner.__module__.startswith("transformers.models.") else nn.Module


def _has(model: nn.Module, path: str) -> bool:
    """Whether there is a module at a path that computes something."""
    found = dict(model.named_modules(remove_duplicate=False)).get(path)
    return found is not None and not isinstance(found, nn.Identity)


def _stock_loss(stock: type) -> Loss:
    """The loss function in the module of a class of transformers."""
    found: Loss = vars(inspect.getmodule(stock))["image_text_contrastive_loss"]
    return found


def _sigmoid_loss(logits: Tensor) -> Tensor:
    """SigLIP's loss, for which transformers has no function, over the pairs of N texts with N images.

    Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (ICCV 2023), equation 1; the sum over
    the pairs of a text, and the mean over the texts.
    """
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -nn.functional.logsigmoid(signs * logits).sum(dim=-1).mean()
