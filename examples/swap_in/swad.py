"""SWAD and DomainBed: before the classifier, so that samples of all domains attend to one another.

--repo: a checkout of facebookresearch/DomainBed or of khanrc/swad.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import checkouts
import torch
from trial import Trial, main

import batchformer as bf

DOMAINS = [(torch.randn(4, 2, 28, 28), torch.tensor([0, 1, 2, 1])) for _ in range(3)]
HPARAMS = {
    "lr": 1e-3,
    "weight_decay": 0.0,
    "optimizer": "adam",
    "nonlinear_classifier": False,
    "vit": False,
    "dinov2": False,
    "resnet18": True,
    "resnet_dropout": 0.0,
    "pretrained": False,
    "freeze_bn": True,
}


def from_checkout(repo: Path) -> Iterator[Trial]:
    """ERM, whose update() computes the loss and steps the optimizer; of SWAD also the average of weights."""
    checkouts.use(repo, "backpack", "backpack.extensions", "higher")
    from domainbed import algorithms

    swad = (repo / "domainbed" / "swad.py").exists()
    algorithm = algorithms.ERM((2, 28, 28), 5, 3, HPARAMS)

    def attach(algorithm):
        attachment = bf.attach(algorithm, "swad" if swad else "domainbed")
        algorithm.optimizer.add_param_group({"params": [*attachment.parameters()], "lr": 1e-4})
        return attachment

    def step(algorithm, _):
        images, labels = zip(*DOMAINS, strict=True)
        result = algorithm.update([*images], [*labels]) if swad else algorithm.update(DOMAINS)
        if swad:
            average_weights(algorithm)
        return torch.tensor(result["loss"])

    yield Trial(
        name="SWAD, ERM" if swad else "DomainBed, ERM",
        model=algorithm,
        attach=attach,
        loss=step,
        evaluate=lambda algorithm: algorithm.predict(DOMAINS[0][0]),
        optimizer=algorithm.optimizer,
    )


def average_weights(algorithm) -> None:
    """SWAD's copy of the algorithm has its own module, and its average is taken over the same parameters."""
    from domainbed.lib import swa_utils

    averaged = swa_utils.AveragedModel(algorithm)
    averaged.update_parameters(algorithm, step=0)
    names = [name for name, _ in algorithm.named_parameters()]
    assert [name for name, _ in averaged.module.named_parameters()] == names
    copied = copy.deepcopy(averaged).eval().predict(DOMAINS[0][0])
    algorithm.eval()
    assert torch.allclose(copied, algorithm.predict(DOMAINS[0][0]))
    algorithm.train()


if __name__ == "__main__":
    main(__doc__, from_checkout)
