"""EoMT of Hugging Face transformers: a plain vision transformer that segments, on DINOv2 or DINOv3."""

from torch import nn

from batchformer.swap_in.families.vision_transformer import VisionTransformer
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, find_blocks, path_of_class

_MODELS = ("EomtForUniversalSegmentation", "EomtDinov3ForUniversalSegmentation")


class Eomt(VisionTransformer):
    """transformers' EoMT and EoMT-DINOv3: queries join the patches for the last blocks.

    The first place has to come before those blocks, as each of them has a loss.
    """

    names = ("eomt",)
    expects = "an EoMT model (transformers)"
    carries_along = True

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """EoMT on either backbone."""
        return path_of_class(model, *_MODELS) is not None

    @classmethod
    def find_places(cls, model: nn.Module, options: Options) -> list[Place]:
        """Blocks, the ninth if none is named, as in other vision transformers.

        Raises:
            ValueError: no block before the queries. From there on each block has a loss, and one before the
                first place would have a loss of the originals alone.
        """
        path = path_of_class(model, *_MODELS) or ""
        blocks = find_blocks(model, f"{path}layers", options.after, default=8)
        config = model.get_submodule(path.removesuffix(".")).config
        before_queries = config.num_hidden_layers - config.num_blocks  # type: ignore[union-attr, operator]
        first = int(blocks[0].path.rpartition(".")[2])
        if first >= before_queries:
            raise ValueError(
                f"after: expected a first block from 0 to {before_queries - 1}, as later blocks get the "
                f"queries and have a loss each, got {first}"
            )
        return blocks
