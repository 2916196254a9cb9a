"""One table of every error sentence: the call that meets it, its class, its cause and its remedy."""

from collections.abc import Iterable, Mapping

from error_table.attach import ATTACH
from error_table.attached import ATTACHED, CHECKPOINTS
from error_table.larger_batches import LARGER_BATCHES
from error_table.loading import IMPORT, UNREACHED
from error_table.memory import MEMORY
from error_table.modules import BATCHFORMER, BATCHFORMER_V2, ENCODER_LAYER
from error_table.ops import DERIVATIVES, OP
from error_table.ranks import RANKS
from error_table.relations import RELATIONS
from error_table.row import Row, Unreached
from error_table.targets import TARGETS
from error_table.training import TRAINING

TABLE: dict[str, tuple[Row, ...]] = {
    "Importing batchformer": IMPORT,
    "BatchFormer": BATCHFORMER,
    "BatchFormerV2": BATCHFORMER_V2,
    "TransformerEncoderLayer and accelerate": ENCODER_LAYER,
    "Batches larger than a process": LARGER_BATCHES,
    "Memory banks": MEMORY,
    "Targets": TARGETS,
    "attach": ATTACH,
    "Models with an attachment": ATTACHED,
    "Training with an attachment": TRAINING,
    "Checkpoints of the official forks": CHECKPOINTS,
    "Ranks of a process group": RANKS,
    "relations": RELATIONS,
    "The ops": OP,
    "Derivatives of the ops": DERIVATIVES,
}
ROWS = tuple(row for rows in TABLE.values() for row in rows)
WHATEVER_THE_CALL = "Whatever the call"


def markdown() -> str:
    """The table for the documentation: a heading for each subject, a line for each sentence."""
    sections: Mapping[str, Iterable[Row | Unreached]] = TABLE | {WHATEVER_THE_CALL: UNREACHED}
    return "\n\n".join(
        f"## {subject}\n\n" + "\n".join(dict.fromkeys(map(line, rows))) for subject, rows in sections.items()
    )


def line(row: Row | Unreached) -> str:
    return f"- `{row.error.__name__}: {row.sentence}` {row.cause} **Instead:** {row.remedy}"
