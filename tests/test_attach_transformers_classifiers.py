"""Classifiers of transformers: both streams by hand, and what the oracle of the families does not show."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers as T

import batchformer as bf
from attach_oracle import EQUAL, assert_step, assert_stock_step, equal_streams, mean_of, refused, related
from families.images import CLASSES, LABELS, N
from families.transformers_classifiers import PADDED, PADDING, SWIN, TEXT, WORDS
from families.vision_transformers import SMALL

LENGTH = PADDED.shape[1]
LAST = [3, LENGTH - 1, LENGTH - 1, 0]  # of PADDED; the second has no padding, the third has it on the left


def llama(**config):
    sizes = TEXT | {"num_key_value_heads": 2, "num_labels": CLASSES}
    return T.LlamaForSequenceClassification(T.LlamaConfig(**(sizes | config))).train()


def bert(**config):
    sizes = TEXT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": CLASSES}
    return T.BertForSequenceClassification(T.BertConfig(**(sizes | config))).train()


def attached(make, **options):
    """A stock model, and one with BatchFormer in it."""
    stock = make()
    model = copy.deepcopy(stock)
    return stock, model, bf.attach(model, dropout=0.0, **options)


def both_streams(model, attachment, last, **inputs):
    """Logits of both streams, from the tokens of the language model that stand at `last`."""
    tokens = model.model(**inputs).last_hidden_state[torch.arange(N), last]
    return [model.score(each) for each in (tokens, related(attachment, tokens))]


@pytest.mark.parametrize("by_position", [True, False])
def test_the_last_token_of_each_sample_is_related(by_position):
    _, model, attachment = attached(llama)
    call = ((PADDED, PADDING["attention_mask"]), {}) if by_position else ((), PADDING)
    loss = model(*call[0], **call[1], labels=LABELS).loss
    attachment.eval()
    expected = mean_of(F.cross_entropy, both_streams(model, attachment, LAST, **PADDING), LABELS)
    attachment.train()
    assert_step(loss, expected, model, attachment)


def test_the_last_token_of_embeddings_is_that_at_the_end():
    _, model, attachment = attached(llama)
    embeddings = torch.randn(N, LENGTH, TEXT["hidden_size"], requires_grad=True)
    loss = model(inputs_embeds=embeddings, labels=LABELS).loss
    attachment.eval()
    streams = both_streams(model, attachment, [LENGTH - 1] * N, inputs_embeds=embeddings)
    attachment.train()
    assert_step(loss, mean_of(F.cross_entropy, streams, LABELS), model, attachment)


def test_a_language_model_runs_once_and_what_it_returns_has_its_rows():
    stock, model, _ = attached(llama)
    rows = []
    model.model.layers[0].register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    output = model(**PADDING, labels=LABELS, use_cache=True, output_hidden_states=True)
    assert rows == [N]
    assert len(output.logits) == 2 * N
    expected = stock(**PADDING, use_cache=True, output_hidden_states=True)
    torch.testing.assert_close(output.hidden_states, expected.hidden_states)
    torch.testing.assert_close(output.past_key_values.layers[0].keys, expected.past_key_values.layers[0].keys)


def test_a_model_without_a_related_stream_of_its_own_classifies_related_tokens():
    _, model, attachment = attached(llama, two_stream=False)
    logits = model(**PADDING).logits
    attachment.eval()
    torch.testing.assert_close(logits, both_streams(model, attachment, LAST, **PADDING)[1])


def test_originals_alone_have_the_related_ones_in_a_wrapped_criterion():
    _, model, attachment = attached(llama, outputs="originals")
    criterion = attachment.wrap(F.cross_entropy)
    logits = model(**PADDING).logits
    assert len(logits) == N
    loss = criterion(logits, LABELS)
    attachment.eval()
    expected = mean_of(F.cross_entropy, both_streams(model, attachment, LAST, **PADDING), LABELS)
    attachment.train()
    assert_step(loss, expected, model, attachment)


TASKS = {
    "one label": ({}, LABELS),
    "several labels": ({"problem_type": "multi_label_classification"}, torch.rand(N, CLASSES).round()),
    "regression": ({"num_labels": 1}, torch.randn(N)),
    "regression of several": ({"problem_type": "regression"}, torch.randn(N, CLASSES)),
}
BY_TASK = pytest.mark.parametrize(("config", "labels"), TASKS.values(), ids=TASKS)


@BY_TASK
@pytest.mark.parametrize("make", [llama, bert])
def test_labels_of_each_kind_are_doubled(make, config, labels):
    stock = make(**config)
    model = copy.deepcopy(stock)
    attachment = equal_streams(bf.attach(model, **EQUAL))
    loss, expected = (each(WORDS, labels=labels).loss for each in (model, stock))
    assert_stock_step(loss, expected, model, stock, attachment)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # transformers calls it by a new name
def test_a_copy_and_a_checkpointed_model_give_the_same_loss():
    _, model, _ = attached(llama)
    expected = model(**PADDING, labels=LABELS).loss
    copied = copy.deepcopy(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for each in (model, copied):
        loss = each(**PADDING, labels=LABELS, use_cache=False).loss
        torch.testing.assert_close(loss, expected)
        loss.backward()


class PoolsAnotherWay(T.LlamaForSequenceClassification):
    def forward(self, input_ids, labels=None):
        return F.cross_entropy(self.score(self.model(input_ids).last_hidden_state).mean(1), labels)


class OfGpt2(T.GPT2ForSequenceClassification):
    def forward(self, input_ids, labels=None):
        return super().forward(input_ids, labels=labels)


class WithAnAuxiliaryHead(T.BertForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        self.auxiliary = torch.nn.Linear(config.hidden_size, config.num_labels)


REFUSED = {
    "a forward of its own": lambda: OfGpt2(
        T.GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=20, num_labels=CLASSES, pad_token_id=0)
    ),
    "two heads": lambda: WithAnAuxiliaryHead(bert().config),
    "tokens": lambda: T.BertForTokenClassification(T.BertConfig(**TEXT)),
    "questions": lambda: T.LlamaForQuestionAnswering(llama().config),
    "another pooling": lambda: PoolsAnotherWay(llama().config),
    "EuroBERT, late": lambda: T.EuroBertForSequenceClassification(
        T.EuroBertConfig(**TEXT, num_key_value_heads=2, classifier_pooling="late")
    ),
    "no classifier": lambda: T.SwinForImageClassification(T.SwinConfig(**SWIN, num_labels=0)),
    "masked images": lambda: T.ViTForMaskedImageModeling(T.ViTConfig(**SMALL)),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("preset", [None, "transformers_classifier"])
def test_a_model_without_features_of_samples_is_refused_with_the_reason(make, preset):
    with refused(ValueError, saying="(classifies tokens|targets are its input images)"):
        bf.attach(make(), preset)


def test_tokens_of_a_classifier_that_is_named_are_no_features():
    model = llama()
    bf.attach(model, before="score")
    with refused(ValueError, saying="axis 0 is the batch"):
        model(**PADDING, labels=LABELS)
