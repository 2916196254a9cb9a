"""CGE and CompCos: on the image features, before everything else.

--repo: a checkout of ExplainableML/czsl.
"""

from argparse import Namespace
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import checkouts
import torch
from trial import Trial, main

import batchformer as bf

ATTRIBUTES, OBJECTS = ["old", "wet", "red"], ["dog", "car"]
PAIRS = list(product(ATTRIBUTES, OBJECTS))
DATA_SET = Namespace(
    attrs=ATTRIBUTES,
    objs=OBJECTS,
    pairs=PAIRS,
    train_pairs=PAIRS[:4],
    val_pairs=PAIRS,
    all_pair2idx={pair: i for i, pair in enumerate(PAIRS)},
    attr2idx={name: i for i, name in enumerate(ATTRIBUTES)},
    obj2idx={name: i for i, name in enumerate(OBJECTS)},
    feat_dim=64,
    open_world=False,
)


def from_checkout(repo: Path) -> Iterator[Trial]:
    """Stock GraphFull (CGE) and CompCos on a small data set."""
    checkouts.use(repo)
    from models import compcos, graph_method

    # Word embeddings are files of gigabytes.
    graph_method.load_word_embeddings = lambda kind, words: torch.randn(len(words), 16)
    pairs = torch.tensor([0, 1, 2, 3, 1, 0])
    batch = [torch.randn(6, 64), pairs // len(OBJECTS), pairs % len(OBJECTS), pairs]

    common = {
        "train_only": False,
        "dropout": True,
        "norm": True,
        "emb_init": None,
        "emb_dim": 32,
        "nlayers": 2,
    }
    graph = {"fc_emb": "48", "graph_init": None, "gcn_type": "gcn", "gr_emb": "d32,d"}
    cosine = {
        "fc_emb": "48",
        "cosine_scale": 20,
        "relu": False,
        "composition": "mlp_add",
        "static_inp": False,
    }
    for name, make, own in (
        ("CGE", graph_method.GraphFull, graph),
        ("CompCos", compcos.CompCos, cosine),
    ):
        yield Trial(
            name=name,
            model=make(DATA_SET, Namespace(**common, **own)),
            attach=lambda model: bf.attach(model, "czsl"),
            loss=lambda model, _: model(batch)[0],
            evaluate=lambda model: torch.stack([*model(batch)[1].values()]),
        )


if __name__ == "__main__":
    main(__doc__, from_checkout)
