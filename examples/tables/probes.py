"""How well simple classifiers recognise the classes from fixed features."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

NEIGHBOURS = 20
TEMPERATURE = 0.1  # in the weights of the neighbours' votes
PENALTY = 1.0  # scikit-learn's C


def linear_accuracy(features: Tensor, test: Tensor, labels: Tensor, test_labels: Tensor) -> float:
    """Accuracy in % of a logistic regression on features `[N, C]`, on the features `[M, C]` of the test."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTY, max_iter=2000))
    probe.fit(features.numpy(), labels.numpy())
    return 100 * float(probe.score(test.numpy(), test_labels.numpy()))


def neighbour_accuracy(features: Tensor, test: Tensor, labels: Tensor, test_labels: Tensor) -> float:
    """Accuracy in % of the vote of the 20 nearest features among `[N, C]`, nearer ones count more.

    Source: Wu et al., "Unsupervised feature learning via non-parametric instance discrimination" (CVPR 2018).
    """
    probe = KNeighborsClassifier(NEIGHBOURS, weights=_votes, algorithm="brute", metric="cosine")
    probe.fit(features.numpy(), labels.numpy())
    return 100 * float(probe.score(test.numpy(), test_labels.numpy()))


def _votes(distances: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return np.exp((1 - distances) / TEMPERATURE)
