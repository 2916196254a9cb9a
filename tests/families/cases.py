"""All cases, by the name of the model."""

from families import timm_classifiers, torchvision_classifiers, vision_transformers
from families.case import Case

CASES: dict[str, Case] = {
    **vision_transformers.CASES,
    **timm_classifiers.CASES,
    **torchvision_classifiers.CASES,
}
