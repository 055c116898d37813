"""The worst of several samples, told with its name."""

import numpy as np
import pytest

from cidermill.validation.judge.compare import compare
from cidermill.validation.judge.worst import compare_worst

KINDS = ("normal", "normal", "small numbers")


def arrays(*scales: float, size: int = 1000) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"y": scale * rng.standard_normal(size)} for scale in scales]


def test_small_numbers_are_not_hidden_by_large_ones():
    want = arrays(1, 1, 0.01)
    have = [{"y": want[0]["y"]}, {"y": want[1]["y"] + 1e-4}, {"y": want[2]["y"] + 1e-3}]
    (together,), (worst,) = compare(want, have), compare_worst(want, have, KINDS)
    peak = np.abs(want[2]["y"]).max()
    assert together.psnr_db > 70 and worst.psnr_db == pytest.approx(20 * np.log10(peak / 1e-3))
    assert worst.sample == "3, small numbers" and worst.max_abs_error == pytest.approx(1e-3)
    assert worst.cosine < together.cosine and worst.snr_db < together.snr_db


def test_a_single_number_near_zero_is_measured_against_what_the_output_usually_is():
    want = [{"y": np.array([number])} for number in (1.0, -1.0, 1e-4)]
    have = [{"y": sample["y"] + 1e-3} for sample in want]
    (worst,) = compare_worst(want, have, KINDS)
    assert worst.psnr_db == pytest.approx(20 * np.log10(np.sqrt(2 / 3) / 1e-3), abs=0.1)


def test_a_sample_on_which_the_output_is_constant_says_nothing_by_itself_but_its_error_counts():
    want, have = arrays(1, 1), arrays(1, 1)
    want.append({"y": np.zeros(1000)})
    have.append({"y": np.zeros(1000)})
    (worst,) = compare_worst(want, have, KINDS)
    assert worst.psnr_db == 200 and not worst.vacuous
    have[2]["y"] = np.full(1000, 0.5)
    (worst,) = compare_worst(want, have, KINDS)
    assert worst.psnr_db < 25 and not worst.sample


def test_what_cannot_be_compared_stays_so():
    want = arrays(1, 1, 1)
    (worst,) = compare_worst(want, [{"z": sample["y"]} for sample in want], KINDS)
    assert "no output 'y'" in worst.problem
    nan = [{"y": np.full(1000, np.nan)} for _ in want]
    assert compare_worst(want, nan, KINDS)[0].nonfinite == 3000
    assert compare_worst([{"y": np.ones(4)}] * 3, [{"y": np.ones(4)}] * 3, KINDS)[0].vacuous
