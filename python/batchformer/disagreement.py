"""What ranks report to each other about their calls, and the error if the reports differ."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, NoReturn

_LISTED = 4  # ranks or values that an error lists; it counts the others


class Report(NamedTuple):
    """What one rank is about to do."""

    samples: int
    equal: bool
    """Whether it assumes that all ranks have equally many samples, as a compiled graph does."""
    fault: str | None
    """The message of this rank's own error, if it has one."""
    facts: dict[str, str]


def plain(facts: Mapping[str, int | str]) -> dict[str, str]:
    """Facts as strings. True is 1, as it is among the numbers that a graph holds."""
    return {name: value if isinstance(value, str) else str(int(value)) for name, value in facts.items()}


def digest(facts: Mapping[str, str]) -> int:
    """A hash of the facts, from -2⁶³ to 2⁶³ - 1; the same in each process."""
    content = repr(sorted(facts.items())).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def pack(facts: Mapping[str, int | str]) -> tuple[str, list[int]]:
    """Facts as arguments of an op: lines of names and strings, and the numbers, which may be symbolic."""
    lines = [f"{name}\t{value}" if isinstance(value, str) else name for name, value in facts.items()]
    return "\n".join(lines), [value for value in facts.values() if not isinstance(value, str)]


def unpack(names: str, numbers: Sequence[int]) -> dict[str, int | str]:
    """The facts of :func:`pack`."""
    rest = iter(numbers)
    pairs = [line.partition("\t") for line in names.split("\n") if line]
    return {name: value if tab else next(rest) for name, tab, value in pairs}


def refuse(reports: Sequence[Report]) -> NoReturn:
    """Raise the ValueError for the reports of all ranks, one of which is known to be wrong."""
    ranks = range(len(reports))
    faults = {rank: report.fault for rank, report in enumerate(reports) if report.fault is not None}
    if faults:
        raise ValueError(f"{_who_has_what(faults)}; an error on one rank stops all {len(reports)}")
    for name in dict.fromkeys(name for report in reports for name in report.facts):
        values = {rank: reports[rank].facts.get(name, "nothing") for rank in ranks}
        if len(set(values.values())) > 1:
            what, _, advice = name.partition("; ")
            argument, _, what = what.partition(": ")
            raise ValueError(
                f"{argument}: expected the same {what or 'value'} on every rank, "
                f"got {_who_has_what(values)}{advice and f'; {advice}'}"
            )
    samples = {rank: reports[rank].samples for rank in ranks}
    if not any(samples.values()):
        raise ValueError(f"x: expected at least 1 sample on one of {len(reports)} ranks, got 0 on each")
    compiled = [rank for rank in ranks if reports[rank].equal]
    raise ValueError(
        f"x: expected the same number of samples on every rank, as {_ranks(compiled)} "
        f"assumed (a compiled graph does), got {_who_has_what(samples)}"
    )


def _who_has_what(values: Mapping[int, int | str]) -> str:
    """As in "49 on ranks 0 and 1 and 64 on rank 2"."""
    by_value: dict[str, list[int]] = {}
    for rank, value in values.items():
        by_value.setdefault(str(value), []).append(rank)
    return _joined(f"{value} on {_ranks(ranks)}" for value, ranks in by_value.items())


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {_joined(map(str, ranks))}"


def _joined(items: Iterable[str]) -> str:
    listed = list(items)
    if len(listed) > _LISTED + 1:
        listed[_LISTED:] = [f"{len(listed) - _LISTED} more"]
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
