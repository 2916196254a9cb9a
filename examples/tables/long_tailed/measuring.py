"""The columns of a long-tailed table, with and without calibrated logits."""

from typing import NamedTuple

from torch import Tensor, nn

from examples.tables.accuracy import accuracy_of_classes, mean_accuracy
from examples.tables.calibration import best_multiple
from examples.tables.letters import every_letter, predict
from examples.tables.long_tailed.groups import COLUMNS, by_thirds, group_columns

CALIBRATED = "All, calibrated"
CALIBRATED_COLUMNS = (*COLUMNS, CALIBRATED)
MULTIPLES = [step / 10 for step in range(-15, 16)]  # of the log prior


class Predicted(NamedTuple):
    """Logits `[N, K]` of a set of images, and its labels `[N]`."""

    logits: Tensor
    labels: Tensor


def calibrated_columns(model: nn.Module, counts: Tensor, seed: int, each: int) -> dict[str, float | None]:
    """Accuracies in % on a balanced test set, by the columns of the table.

    "All, calibrated" is after adding the multiple of the log prior that is best on other, validation images.

    Args:
        model: gives logits `[N, 106]`, in evaluation.
        counts (Tensor[106]): training images of each letter.
        seed: of the test and validation images.
        each: number of images of each letter in each face.
    """
    images = [every_letter(seed, purpose, each) for purpose in ("test", "validation")]
    test, validation = (Predicted(predict(model, of_purpose.x), of_purpose.y) for of_purpose in images)
    found = group_columns(accuracy_of_classes(*test), by_thirds(counts))
    return found | {CALIBRATED: calibrated_accuracy(test, validation, counts)}


def calibrated_accuracy(test: Predicted, validation: Predicted, counts: Tensor) -> float:
    """The mean accuracy over the classes in % after adding the multiple of the log prior that is best.

    Args:
        test: what is measured.
        validation: what the multiple is chosen on.
        counts (Tensor[K]): training images of each class; one without any counts as one with a single image.
    """
    present = counts.clamp(min=1)
    log_prior = (present / present.sum()).log()  # [K]
    multiple = best_multiple(*validation, log_prior, MULTIPLES, mean_accuracy)
    return mean_accuracy(test.logits + multiple * log_prior, test.labels)
