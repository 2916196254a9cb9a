"""Language models of transformers that classify a sequence by its last token: Llama, Mistral, Qwen, GPT-2.

They classify every token, and then take the logits of the last one of each sample, for as many samples as
there are input_ids. So the input_ids are doubled at the model's input, for that alone: the language model
gets the first half of them, and costs the same as without BatchFormer. At the classifier, BatchFormer relates
the tokens that will be taken, one of each sample, `[N, C]`; the related ones are put into a second half of
all tokens.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from batchformer import marks
from batchformer.swap_in import tasks
from batchformer.swap_in.families.transformers_classifier import TransformersClassifier
from batchformer.swap_in.options import Options
from batchformer.swap_in.places import Place
from batchformer.swap_in.signature import Call, by_name, by_place, first_of, in_place, name_of, parameters
from batchformer.targets import duplicate

_ROWS_OF = ("input_ids", "inputs_embeds")  # by which the model counts its samples


class LastToken(NamedTuple):
    """What is known when a forward begins."""

    samples: Any  # N; with torch.compile a symbol
    positions: Tensor | int  # of the token of each sample that is classified


class TransformersLastToken(TransformersClassifier):
    """BatchFormer on the token of each sample by which it is classified, in Llama and its kin.

    The model inside sees N samples. Which token is the last follows from ``config.pad_token_id``, which has
    to be set; with ``inputs_embeds`` it is the last position, as in the stock model.
    """

    expects = "a sequence classification model that takes the last token (transformers)"
    place = "before the classifier, at the last token"

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """A model whose forward is one of those."""
        forward = next((each for each in type(model).__mro__ if "forward" in vars(each)), object)
        known = forward.__module__.startswith("transformers.") and forward.__name__ in tasks.TAKE_THE_LAST
        return known and tasks.classifier_of(model) is not None

    def install(self, model: nn.Module, places: list[Place], options: Options) -> None:
        """At the model's input, before the language model, and at the input of the classifier."""
        del options
        language_model = model.get_submodule(str(model.base_model_prefix))
        self._names = parameters(model.forward)
        self._inner_names = parameters(language_model.forward)
        self.hooks.inputs(model, self._double_rows)
        self.hooks.inputs(language_model, self._take_originals_in)
        self.hooks.inputs(places[0].module, self._relate_last_tokens)

    def _double_rows(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Doubles what the model counts its samples by, and finds the last token of each."""
        if not (self.attachment.training or self.streams.watching):
            return None
        given = by_name(self._names, args, kwargs)
        counted = next((given[name] for name in _ROWS_OF if given.get(name) is not None), None)
        if counted is None:
            return None  # for which the model raises an error
        padding = model.config.get_text_config().pad_token_id
        if padding is None and self.active:
            raise ValueError(
                "pad_token_id: expected one in the config of the model, as both streams are at least two "
                "samples, got None"
            )
        positions: Tensor | int = -1
        if padding is not None and given.get("input_ids") is not None:
            order = torch.arange(counted.shape[-1], device=counted.device, dtype=torch.int32)
            positions = (order * (counted != padding).to(torch.int32)).argmax(-1)  # [N], as the model does
        self.streams.current(counted).last_token = LastToken(counted.shape[0], positions)
        if not self.active:
            return None
        return self._each_of_rows(self._names, args, kwargs, duplicate)

    def _take_originals_in(
        self, language_model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        del language_model
        given = by_name(self._inner_names, args, kwargs)
        counted = next((given[name] for name in _ROWS_OF if given.get(name) is not None), None)
        known = None if counted is None or not self.active else self.streams.current(counted).last_token
        if known is None:
            return None  # a call of the language model by itself

        def originals(rows: Tensor) -> Tensor:
            return rows[: known.samples] if rows.shape[0] == 2 * known.samples else rows

        return self._each_of_rows(self._inner_names, args, kwargs, originals)

    def _each_of_rows(
        self, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any], function: Any
    ) -> Call:
        given = by_place(args, kwargs)
        changed = {
            key: function(value) if value is not None and name_of(names, key) in _ROWS_OF else value
            for key, value in given.items()
        }
        return in_place(changed, args, kwargs)

    def _relate_last_tokens(
        self, classifier: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call | None:
        """All tokens of both streams, `[2N, L, C]`, of which the last of each sample is related."""
        if not self.trains(classifier):
            return None
        given = by_place(args, kwargs)
        key = first_of(classifier.forward, given)
        tokens = given[key]  # [N, L, C]
        known = self.streams.current(tokens).last_token
        if known is None or tokens.dim() != 3:
            raise RuntimeError(
                f"model: expected a call of {type(self.model).__name__}, whose input_ids tell the last token "
                f"of each sample, got one of its classifier"
            )
        positions = known.positions
        if isinstance(positions, Tensor):
            positions = positions.to(tokens.device)
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        related = self.streams.relate(0, classifier, tokens[rows, positions])  # [2N, C]
        if self.active:
            tokens, rows = duplicate(tokens), torch.cat([rows, rows + rows.shape[0]])  # [2N, L, C]
            positions = duplicate(positions) if isinstance(positions, Tensor) else positions
        index = (
            rows,
            torch.full_like(rows, tokens.shape[1] - 1) if isinstance(positions, int) else positions,
        )
        given[key] = tokens.index_put(index, related.to(tokens.dtype))
        if self.active and not torch.compiler.is_compiling():
            mark = marks.find(related)
            if mark is not None:
                marks.put_by_history(given[key], mark)
        return in_place(given, args, kwargs)
