import numpy as np
import pytest

from schattor.theory.spectra import condensed, gaussian, spectra


@pytest.mark.parametrize("aspect", [1, 2, 8])
def test_gaussian_is_a_gaussian_matrix(aspect):
    drawn = np.random.default_rng(0).standard_normal((300, 300 * aspect))
    values = np.linalg.svd(drawn, compute_uv=False)
    assert gaussian(300, aspect) == pytest.approx(values / values[0], abs=0.03)


def test_family_descends_from_one():
    for name, s in spectra((16, 300)).items():
        assert s[0] == pytest.approx(1.0) and np.all(np.diff(s) <= 0) and s[-1] > 0, name
        assert len(s) == int(name.replace(" aspect", "").split()[-2 if "gaussian" in name else -1])


def test_condensed_keeps_power_sums():
    for name, s in spectra((5000,)).items():
        values, count = condensed(s)
        assert len(values) <= 192 and count.sum() == len(s)
        for power in (1.0, 2.0, 4.0, 16.0):
            assert count @ values**power == pytest.approx((s**power).sum(), rel=0.02), name


def test_a_short_spectrum_is_kept():
    s = gaussian(20, 1)
    values, count = condensed(s)
    assert np.array_equal(values, s) and np.array_equal(count, np.ones(20))
