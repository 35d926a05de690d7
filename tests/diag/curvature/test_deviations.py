"""Deviations over batches against NumPy."""

import numpy as np
import pytest

from s2ap_diag.curvature.deviations import standard_deviation, standard_error


def test_deviations_are_numpy_s_where_all_weigh_alike() -> None:
    values = [3.0, 1.0, 4.0, 1.5]
    for counts in (None, [7, 7, 7, 7]):
        assert standard_deviation(values, counts) == pytest.approx(np.std(values, ddof=1))
        assert standard_error(values, counts) == pytest.approx(np.std(values, ddof=1) / 2)
    assert standard_error([1.0]) is None
