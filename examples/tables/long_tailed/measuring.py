"""The columns of a long-tailed table, with and without calibrated logits."""

from torch import Tensor, nn

from examples.tables.accuracy import accuracy_of_classes, mean_accuracy
from examples.tables.calibration import best_multiple
from examples.tables.letters import every_letter, predict
from examples.tables.long_tailed.groups import COLUMNS, by_thirds, group_columns

CALIBRATED = "All, calibrated"
CALIBRATED_COLUMNS = (*COLUMNS, CALIBRATED)
MULTIPLES = [step / 10 for step in range(-15, 16)]  # of the log prior


def calibrated_columns(model: nn.Module, counts: Tensor, seed: int, each: int) -> dict[str, float | None]:
    """Accuracies in % on a balanced test set, by the columns of the table.

    "All, calibrated" is after adding the multiple of the log prior that is best on other, validation images.

    Args:
        model: gives logits `[N, 106]`, in evaluation.
        counts (Tensor[106]): training images of each letter.
        seed: of the test and validation images.
        each: number of images of each letter in each face.
    """
    log_prior = (counts / counts.sum()).log()  # [K]
    test, validation = (every_letter(seed, purpose, each) for purpose in ("test", "validation"))
    multiple = best_multiple(predict(model, validation.x), validation.y, log_prior, MULTIPLES, mean_accuracy)
    logits = predict(model, test.x)
    found = group_columns(accuracy_of_classes(logits, test.y), by_thirds(counts))
    return found | {CALIBRATED: mean_accuracy(logits + multiple * log_prior, test.y)}
