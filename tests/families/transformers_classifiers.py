"""Classifiers of images, audio and sequences of transformers, before whose last layer BatchFormer goes in."""

import functools

import torch
import transformers as T

from families.case import Case
from families.images import CLASSES, IMAGES, LABELS, N

BODY = {"num_labels": CLASSES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "vocab_size": 20,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PYRAMID = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "num_labels": CLASSES}
SWIN = {
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
    "patch_size": 4,
    "image_size": 32,
}

WORDS = torch.randint(5, 20, (N, 6))
WORDS[:, -1] = 2  # the end, which BART looks for
PADDED = WORDS.clone()
PADDED[0, 4:], PADDED[2, :3], PADDED[3, 1:] = 0, 0, 0  # right, left, right
PADDING = {"input_ids": PADDED, "attention_mask": (PADDED != 0).long()}


def _case(name, config, **inputs):
    cls = getattr(T, name)
    make = functools.partial(lambda: cls(cls.config_class(**config)))
    return Case("transformers_classifier", make, inputs | {"labels": LABELS})


def _of_images(name, config):
    return _case(name, config | {"num_labels": CLASSES}, pixel_values=IMAGES)


def _of_text(name, **config):
    return _case(name, BODY | TEXT | config, input_ids=WORDS)


def _of_last_token(name, **config):
    return _case(name, {"num_labels": CLASSES} | TEXT | config, **PADDING)


CASES = {
    "Swin": _of_images("SwinForImageClassification", SWIN | {"drop_path_rate": 0.0}),
    "Swin V2": _of_images("Swinv2ForImageClassification", SWIN | {"drop_path_rate": 0.0}),
    "ConvNeXt": _of_images("ConvNextForImageClassification", PYRAMID),
    "ConvNeXt V2": _of_images("ConvNextV2ForImageClassification", PYRAMID),
    "ResNet": _of_images(
        "ResNetForImageClassification", PYRAMID | {"embedding_size": 8, "layer_type": "basic"}
    ),
    "RegNet": _of_images("RegNetForImageClassification", PYRAMID | {"embedding_size": 8, "groups_width": 8}),
    "BiT": _of_images("BitForImageClassification", PYRAMID | {"embedding_size": 8, "num_groups": 4}),
    "PoolFormer": _of_images("PoolFormerForImageClassification", PYRAMID | {"drop_path_rate": 0.0}),
    "SegFormer": _of_images(
        "SegformerForImageClassification",
        PYRAMID
        | {"num_attention_heads": [1, 1, 2, 2], "drop_path_rate": 0.0, "classifier_dropout_prob": 0.0}
        | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
    "MobileNet V2": _of_images(
        "MobileNetV2ForImageClassification",
        {"depth_multiplier": 0.1, "finegrained_output": False, "classifier_dropout_prob": 0.0},
    ),
    "EfficientNet": _of_images(
        "EfficientNetForImageClassification",
        {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128, "image_size": 32}
        | {"dropout_rate": 0.0, "drop_connect_rate": 0.0},
    ),
    "BERT": _of_text("BertForSequenceClassification"),
    "RoBERTa": _of_text("RobertaForSequenceClassification"),
    "XLM-R": _of_text("XLMRobertaForSequenceClassification"),
    "DistilBERT": _of_text(
        "DistilBertForSequenceClassification",
        dim=32,
        n_layers=1,
        n_heads=4,
        hidden_dim=32,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
    ),
    "ALBERT": _of_text("AlbertForSequenceClassification", embedding_size=32, classifier_dropout_prob=0.0),
    "ELECTRA": _of_text("ElectraForSequenceClassification", embedding_size=32),
    "DeBERTa": _of_text("DebertaForSequenceClassification", pooler_hidden_size=32),
    "DeBERTa V2": _of_text("DebertaV2ForSequenceClassification", pooler_hidden_size=32),
    "MPNet": _of_text("MPNetForSequenceClassification"),
    "ModernBERT": _of_text(
        "ModernBertForSequenceClassification", cls_token_id=1, sep_token_id=2, local_attention=4
    ),
    "BART": _of_text(
        "BartForSequenceClassification",
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        dropout=0.0,
        decoder_start_token_id=2,
    ),
    "Wav2Vec2": _case(
        "Wav2Vec2ForSequenceClassification",
        BODY
        | TEXT
        | {"conv_dim": [8, 8], "conv_kernel": [8, 3], "conv_stride": [4, 2], "num_feat_extract_layers": 2}
        | {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16}
        | {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "layerdrop": 0.0}
        | {"feat_proj_dropout": 0.0, "final_dropout": 0.0, "apply_spec_augment": False},
        input_values=torch.randn(N, 200),
    ),
    "Llama": _of_last_token("LlamaForSequenceClassification", num_key_value_heads=2),
    "Mistral": _of_last_token("MistralForSequenceClassification", num_key_value_heads=2),
    "Qwen 2": _of_last_token("Qwen2ForSequenceClassification", num_key_value_heads=2),
    "Qwen 3": _of_last_token("Qwen3ForSequenceClassification", num_key_value_heads=2, head_dim=8),
    "Gemma 2": _of_last_token("Gemma2ForSequenceClassification", num_key_value_heads=2, head_dim=8),
    "Phi": _of_last_token(
        "PhiForSequenceClassification", resid_pdrop=0.0, embd_pdrop=0.0, attention_dropout=0.0
    ),
    "GPT-2": _of_last_token(
        "GPT2ForSequenceClassification",
        n_embd=32,
        n_layer=1,
        n_head=4,
        n_positions=16,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    ),
    "ModernBERT decoder": _of_last_token("ModernBertDecoderForSequenceClassification", local_attention=4),
}
