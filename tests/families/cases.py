"""All cases, by the name of the model."""

from families import torchvision_detectors, vision_transformers
from families.case import Case

CASES: dict[str, Case] = {**torchvision_detectors.CASES, **vision_transformers.CASES}
