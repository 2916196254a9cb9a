"""All cases, by the name of the model."""

from families import contrastive, vision_transformers
from families.case import Case

CASES: dict[str, Case] = {**vision_transformers.CASES, **contrastive.CASES}
