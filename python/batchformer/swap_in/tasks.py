"""The task of a model of transformers, by the names of its classes."""

from typing import Any

from torch import nn

CLASSIFICATION = (
    "ForImageClassification",
    "ForVideoClassification",
    "ForAudioClassification",
    "ForSequenceClassification",
)
# Classes whose forward takes the rightmost token that is no padding; most inherit it from the first.
TAKE_THE_LAST = (
    "GenericForSequenceClassification",
    "BioGptForSequenceClassification",
    "BloomForSequenceClassification",
    "CTRLForSequenceClassification",
    "FalconForSequenceClassification",
    "GPT2ForSequenceClassification",
    "GPTBigCodeForSequenceClassification",
    "GPTJForSequenceClassification",
    "GPTNeoForSequenceClassification",
    "GPTNeoXForSequenceClassification",
    "Gemma3ForSequenceClassification",
    "ModernBertDecoderForSequenceClassification",
    "MptForSequenceClassification",
    "OPTForSequenceClassification",
    "OpenAIGPTForSequenceClassification",
    "Qwen3_5ForSequenceClassification",
    "Zamba2ForSequenceClassification",
    "ZambaForSequenceClassification",
)
_OF_TOKENS = ("ForTokenClassification", "ForQuestionAnswering")
_ALL_IN_ONE = ("TimmWrapperForImageClassification",)  # whose base model is timm's, with its classifier
_RECONSTRUCTION = ("ForMaskedImageModeling", "ForPreTraining")


def is_for(model: nn.Module, *tasks: str) -> bool:
    """Whether a model is one of transformers for one of the tasks, or of a class that inherits from such."""
    return any(
        each.__name__.endswith(tasks) and each.__module__.startswith("transformers.")
        for each in type(model).__mro__
    )


def takes_images(model: nn.Module) -> bool:
    """Whether the input of a model of transformers is images, or frames."""
    return getattr(model, "main_input_name", None) == "pixel_values"


def classifier_of(model: nn.Module) -> str | None:
    """The path to the last Linear after the base model that gives a number for each label; None if none."""
    labels = _labels_of(model)
    base = "" if is_for(model, *_ALL_IN_ONE) else getattr(model, "base_model_prefix", "")
    found = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features == labels
        and not (base and path.startswith(f"{base}."))
    ]
    heads = {path.partition(".")[0] for path in found}
    return found[-1] if len(heads) == 1 else None  # with two heads it is not known which is trained


def _labels_of(model: nn.Module) -> Any:
    return getattr(getattr(model, "config", None), "num_labels", 0)


def check_servable(model: nn.Module) -> None:
    """Raise ValueError for a model of transformers that is known to have no place, and say why.

    Models of masked images compare their outputs with their inputs, which have one stream; and a classifier
    of tokens takes no features `[N, C]`, which BatchFormer relates.
    """
    name = type(model).__name__
    if is_for(model, *_RECONSTRUCTION) and takes_images(model):
        raise ValueError(
            f"model: expected one that is trained on labels, got {name}, whose targets are its input images, "
            "which cannot be doubled"
        )
    if is_for(model, *CLASSIFICATION, *_OF_TOKENS):
        raise ValueError(
            f"model: expected one Linear after the base model that gives the {_labels_of(model)} numbers of "
            f"config.num_labels from features [N, C], or a place by its path (before=, after=), got {name}, "
            f"which has none or two, classifies tokens, pools after that layer, or has a forward of its own"
        )
