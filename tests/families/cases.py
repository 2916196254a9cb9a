"""All cases, by the name of the model."""

from families import (
    contrastive,
    detectors,
    segmenters,
    timm_classifiers,
    torchvision_classifiers,
    torchvision_detectors,
    transformers_classifiers,
    vision_transformers,
)
from families.case import Case

_GROUPS = (
    vision_transformers,
    transformers_classifiers,
    timm_classifiers,
    torchvision_classifiers,
    detectors,
    segmenters,
    torchvision_detectors,
    contrastive,
)

CASES: dict[str, Case] = {name: case for group in _GROUPS for name, case in group.CASES.items()}

assert len(CASES) == sum(len(group.CASES) for group in _GROUPS), "a name stands in two groups"
