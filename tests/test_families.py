"""Every model that attach() recognises: right with BatchFormer, and the stock model without."""

import pytest

from families.case import measure
from families.cases import CASES


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_family_trains_on_both_streams_and_leaves_the_stock_model(case):
    figures = measure(case)
    assert figures.family == case.family
    assert figures.loss == pytest.approx(figures.stock_loss + case.more, rel=1e-5)
    assert figures.grads_differ < 1e-4
    assert figures.gradient > 0
    assert figures.related == figures.rows
    assert figures.evaluation_is_stock
    assert figures.removed_is_stock
