"""The DETR family of Hugging Face transformers: Detr, ConditionalDetr, DeformableDetr, with any head.

The heads size their views by the batch of the images, and take the labels, so both are doubled at the door.
The backbone still sees every image once: its input is halved, its output doubled. Then as in detr.py.
"""

from typing import Any

from torch import nn

from batchformer.swap_in.family import Family
from batchformer.swap_in.make import initialised_as_detr, token_modules
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, find_blocks
from batchformer.swap_in.signature import Call, by_name, parameters
from batchformer.targets import duplicate, original

_INNER = ("DetrModel", "ConditionalDetrModel", "DeformableDetrModel")
_BATCH_SIZED = ("pixel_values", "pixel_mask", "decoder_attention_mask", "decoder_inputs_embeds")
_BATCH_AXES = {  # of an encoder layer's arguments
    "hidden_states": 0,
    "attention_mask": 0,
    "spatial_position_embeddings": 0,
    "reference_points": 0,
    "spatial_shapes": None,
    "spatial_shapes_list": None,
    "level_start_index": None,
    "output_attentions": None,
    "kwargs": None,
}
_PAST_THE_BACKBONE = ("inputs_embeds", "encoder_outputs")


class TransformersDetr(Family):
    """transformers' Detr, ConditionalDetr and DeformableDetr."""

    name = "detr"
    expects = "a Detr, ConditionalDetr or DeformableDetr model (transformers)"
    takes = ("after", "shared", "wrapped")
    takes_labels = True

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A model of the family, with or without a head."""
        return _path_of_inner(model) is not None

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """Encoder layers, the first if none is named."""
        return find_blocks(model, f"{_path_of_inner(model)}encoder.layers", options.after, default=0)

    @classmethod
    def make_modules(cls, model: nn.Module, places: list[Place], options: Options) -> list[nn.Module]:
        """BatchFormerV2, initialised as the official one."""
        return initialised_as_detr(token_modules(model, places, "NLC", options))

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the door, around the backbone, and at the outputs of the encoder layers."""
        del options
        self._names = parameters(model.forward)
        backbone = model.get_submodule(f"{_path_of_inner(model)}backbone")
        self.hooks.inputs(model, self._double_arguments)
        self.hooks.inputs(backbone, self._each_image_once)
        self.hooks.output(backbone, self._double_maps)
        layers = model.get_submodule(f"{_path_of_inner(model)}encoder.layers")
        self.overwrite_tokens_after(places, layers, _BATCH_AXES)

    def _double_arguments(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        if not self.active:
            return None
        del model
        given = by_name(self._names, args, kwargs)
        for name in _PAST_THE_BACKBONE:
            if given.get(name) is not None:
                raise ValueError(f"{name}: expected None in training with BatchFormer, got a value")
        self.double_early(len(given["pixel_values"]), given["pixel_values"])
        return (), given | {name: duplicate(given[name]) for name in _BATCH_SIZED if name in given}

    def _each_image_once(
        self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        del backbone
        if not self.active:
            return None
        samples = self.streams.current(args[0]).samples
        if samples is None or len(args[0]) != 2 * samples:
            model = type(self.model).__name__
            raise RuntimeError(
                f"model: expected a call of {model}, which has BatchFormer, got one of a part of it"
            )
        return tuple(original(images) for images in args), kwargs

    def _double_maps(self, backbone: nn.Module, args: Any, output: Any) -> Any:
        del backbone, args
        if not self.active:
            return None
        forward = self.streams.current(output[0][0])
        at_door = self.double_early(forward.samples, output[0][0])
        return [tuple(at_door(each) for each in level) for level in output]


def _path_of_inner(model: nn.Module) -> str | None:
    """The path to the model inside of its heads, as a prefix."""
    for path, module in model.named_modules():
        if type(module).__name__ in _INNER and type(module).__module__.startswith("transformers."):
            return f"{path}." if path else ""
    return None
