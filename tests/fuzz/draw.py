"""Which call a number is: the same for the same seed, whatever ran before."""

import random

from fuzz import helpers, near_layer, near_modules, properties, wrong
from fuzz.call import Call

SHARES = {
    near_layer.draw_layer: 34,
    near_modules.draw_module: 20,
    near_layer.draw_op: 8,
    near_layer.draw_direct: 8,
    properties.draw_dropout: 8,
    properties.draw_evaluation: 4,
    helpers.draw_targets: 2,
    helpers.draw_relations: 3,
    helpers.draw_accelerate: 2,
    wrong.draw: 11,
}


def draw(seed: int, number: int) -> Call:
    """The call with that number under that seed."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    return kind(rng)
