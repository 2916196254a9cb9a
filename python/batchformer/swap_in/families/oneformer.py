"""OneFormer of Hugging Face transformers, with or without its head."""

from typing import Any

from torch import Tensor, nn

from batchformer.swap_in.families.mask2former import Mask2Former
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place, path_of_class


class OneFormer(Mask2Former):
    """transformers' OneFormer, whose pixel decoder is Mask2Former's.

    Its loss contrasts the queries of an image with the texts of the others. There a related row would be a
    negative of its own original, which has the same text. So each stream is contrasted by itself, as many
    samples as in the stock model, and the term is the mean of the two.
    """

    names = ("oneformer",)
    expects = "a OneFormer model (transformers)"
    model_class = "OneFormerModel"

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """As in Mask2Former, around the encoder of the texts, and before the contrastive loss."""
        super().install(model, places, options)
        texts = path_of_class(model, "OneFormerTextMapper")
        if texts is not None:  # config.is_training
            self.once_for_both(model.get_submodule(texts.removesuffix(".")))
        criterion = path_of_class(model, "OneFormerLoss")
        if criterion is not None:
            self._contrastive_loss = f"{criterion}loss_contrastive"
            self.hooks.replace(self._contrastive_loss, self._contrast_streams)

    def _contrast_streams(self, contrastive_queries_logits: Tensor, text_queries: Tensor) -> Any:
        """The contrastive loss of the model, or the mean over that of both streams."""
        if not self.active:
            return self.hooks.stock(self._contrastive_loss, contrastive_queries_logits, text_queries)
        original, related = (
            self.hooks.stock(self._contrastive_loss, *stream)
            for stream in zip(contrastive_queries_logits.chunk(2), text_queries.chunk(2), strict=True)
        )
        return {name: (original[name] + related[name]) / 2 for name in original}
