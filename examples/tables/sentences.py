"""What a table shows and what it does not, in sentences; never more than was measured."""

from collections.abc import Sequence

from examples.tables.arms import BASELINE
from examples.tables.statistics import LEVEL, Difference
from examples.tables.summary import CONVERGED, Summary, numbers

QUICK = "--quick: these numbers mean nothing; they show that everything runs."
ONE_SEED = "One seed: nothing can be said of any difference, as there is nothing to tell it from chance by."


def sentences(summary: Summary) -> list[str]:
    """All of them, the most important first."""
    if summary.quick:
        return [QUICK]
    if not summary.cells:
        return ["There is no result."]
    return [*_shown(summary), *_convergence(summary), *summary.left_out]


def _shown(summary: Summary) -> list[str]:
    compared = [each for each in summary.primary if each.count > 1]
    if not compared:
        several = any(cell.count > 1 for cell in summary.cells)
        return ["No two arms have two seeds in common: no difference can be tested." if several else ONE_SEED]
    together = f"the {len(compared)} comparisons of this table" if len(compared) > 1 else "the one comparison"
    found = [
        f"{_pairs(compared)} Primary columns: {'; '.join(summary.table.primary)}. "
        f"p is corrected by Holm for {together}."
    ]
    holding = [each for each in compared if each.holds]
    found += [f"Shown: {_place(each)}, {_claim(each)}." for each in holding]
    if not holding:
        found.append("Shown: nothing. No difference is statistically significant at 5 %.")
    found += _not_shown(compared)
    lone = [each for each in compared if each.without_zero and not each.holds]
    if lone:
        which = "; ".join(f"{_place(each)}, {each.contrast}" for each in lone)
        found.append(
            f"{len(lone)} of the intervals leave{'s' * (len(lone) == 1)} out 0 without holding after the "
            f"correction ({which}). Were no arm different, about {LEVEL * len(compared):.1f} of "
            f"{len(compared)} would do so by chance."
        )
    if any(not each.has_interval for each in compared):
        without = [f"{_place(each)}, {each.contrast}" for each in compared if not each.has_interval]
        found.append(
            f"The same difference in every pair, so that there is no interval: {'; '.join(without)}."
        )
    return found


def _not_shown(compared: Sequence[Difference]) -> list[str]:
    """A sentence for each contrast: where it is not significant, and what the intervals leave possible."""
    found = []
    for first, second in dict.fromkeys((each.first, each.second) for each in compared):
        of_contrast = [each for each in compared if (each.first, each.second) == (first, second)]
        open_ones = [each for each in of_contrast if not each.holds]
        bounded = [each for each in open_ones if each.has_interval]
        if not open_ones:
            continue
        number = (
            f"{len(open_ones)} of {len(of_contrast)} comparisons"
            if len(of_contrast) > 1
            else "the one comparison"
        )
        sentence = f"Not shown: that {first} differs from {second}, in {number}."
        if bounded:
            widest = max(bounded, key=lambda each: each.excluded)
            tightest = min(bounded, key=lambda each: each.excluded)
            excluded = _points(widest.excluded)
            if len(bounded) > 1:
                excluded = (
                    f"{_points(tightest.excluded)} at the narrowest ({_place(tightest)}), "
                    f"{excluded} at the widest ({_place(widest)})"
                )
            sentence += (
                f" Each interval, by itself, excludes differences above {excluded}; "
                f"smaller ones remain possible."
            )
        found.append(sentence)
    return found


def _convergence(summary: Summary) -> list[str]:
    if not any(cell.arm == BASELINE for cell in summary.cells):
        return []
    compared = [each for each in summary.convergence if each.count > 1]
    verdicts = {
        "the same in every pair, so that there is no interval": [e for e in compared if not e.has_interval],
        f"less than {_points(CONVERGED)}, so it has converged": [e for e in compared if e.within(CONVERGED)],
        f"not shown to have converged to within {_points(CONVERGED)}": [
            e for e in compared if e.has_interval and not e.within(CONVERGED)
        ],
    }
    found = [
        f"What twice the steps add to the baseline, {verdict}: {'; '.join(map(_moved, those))}."
        for verdict, those in verdicts.items()
        if those
    ]
    measured = {(each.system, each.column) for each in compared}
    missing = [
        system
        for system in summary.systems
        if summary.cell(system, BASELINE, summary.table.primary[0])
        and not any((system, column) in measured for column in summary.table.primary)
    ]
    if missing:
        found.append(f"Not measured: whether the baseline has converged ({'; '.join(missing)}).")
    return found


def _pairs(compared: Sequence[Difference]) -> str:
    return f"{numbers((each.count for each in compared), ' to ')} seeds, paired."


def _claim(each: Difference) -> str:
    direction = "above" if each.mean > 0 else "below"
    return (
        f"{each.first} is {direction} {each.second} by {_points(abs(each.mean))} "
        f"(95 % interval {each.low:+.2f} to {each.high:+.2f}; p {p_value(each.corrected)} after Holm)"
    )


def _moved(each: Difference) -> str:
    interval = f"95 % interval {each.low:+.2f} to {each.high:+.2f}, " if each.has_interval else ""
    return f"{_place(each)} {each.mean:+.2f} points ({interval}{each.count} seeds)"


def _place(each: Difference) -> str:
    return f"{each.system}: {each.column}"


def _points(value: float) -> str:
    return "1 point" if value == 1 else f"{value:.2f} points"


def p_value(p: float) -> str:
    """What p is, never 0.

    Example:
        >>> p_value(0.0312), p_value(0.0)
        ('= 0.031', '< 0.0001')
    """
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}" if p < 0.001 else f"= {p:.3f}"
