"""All cases, by the name of the model."""

from families import segmenters, vision_transformers
from families.case import Case

CASES: dict[str, Case] = {**vision_transformers.CASES, **segmenters.CASES}
