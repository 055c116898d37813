import json
import math

import msgspec
import numpy as np
import pytest

from cidermill.validation.judge.compare import LIMIT_DB, TOLERANCE_DB, OutputError, compare, verdict

RAMP = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def error_of(want, have) -> OutputError:
    (error,) = compare([{"y": np.asarray(want)}], [{"y": np.asarray(have)}])
    return error


def test_known_values():
    error = error_of([3.0, 4.0], [3.0, 4.1])
    rms = 0.1 / math.sqrt(2)
    assert error.psnr_db == pytest.approx(20 * math.log10(4.0 / rms))
    assert error.snr_db == pytest.approx(10 * math.log10(25 / 0.01))
    assert error.max_abs_error == pytest.approx(0.1)
    assert error.cosine == pytest.approx((9 + 16.4) / (5 * math.sqrt(9 + 4.1**2)))
    assert error.argmax_agreement == 1.0 and error.nonfinite == 0 and not error.vacuous and not error.problem


def test_psnr_is_over_all_samples_together():
    (error,) = compare(
        [{"y": np.array([1.0, 2.0])}, {"y": np.array([8.0, 4.0])}],
        [{"y": np.array([1.0, 2.0])}, {"y": np.array([8.0, 5.0])}],
    )
    assert error.psnr_db == pytest.approx(20 * math.log10(8 / 0.5))


def test_bit_exact_is_a_finite_number_that_passes():
    error = error_of(RAMP, RAMP)
    assert error.psnr_db == LIMIT_DB and verdict([error], TOLERANCE_DB["float32"]) == "pass"
    assert json.loads(json.dumps(msgspec.to_builtins(error), allow_nan=False))["psnr_db"] == LIMIT_DB


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-30, 1e30, 1e38])
def test_psnr_does_not_depend_on_scale(scale):
    want = np.array([1.0, -3.0, 5.0, 2.0]) * scale
    assert error_of(want, want * 1.001).psnr_db == pytest.approx(
        error_of([1.0, -3.0, 5.0, 2.0], [1.001, -3.003, 5.005, 2.002]).psnr_db, abs=1e-6
    )


def test_float32_sums_do_not_lose_small_errors():
    want = np.full(1 << 20, 1000, np.float32)
    want[0] = -1000
    have = want + np.float32(0.25)
    assert error_of(want, have).psnr_db == pytest.approx(20 * math.log10(4000), abs=1e-6)


def test_extreme_disagreement_stays_a_json_number():
    error = error_of(np.array([1e-300, 2e-300]), np.array([1e300, -1e300]))
    assert error.psnr_db == -LIMIT_DB and math.isfinite(error.max_abs_error)
    json.dumps(msgspec.to_builtins(error), allow_nan=False)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8, np.float16, np.float32, np.float64])
def test_number_types(dtype):
    want = np.array([[1, 2, 100], [7, 5, 3]], dtype)
    assert verdict([error_of(want, want)], 60) == "pass"
    assert verdict([error_of(want, want[:, ::-1])], 60) == "fail"


def test_booleans():
    want = np.array([True, False, True])
    assert error_of(want, want).psnr_db == LIMIT_DB
    assert error_of(want, ~want).psnr_db == pytest.approx(0.0)


def test_unsigned_integers_do_not_wrap():
    assert error_of(np.array([0, 200], np.uint8), np.array([1, 200], np.uint8)).max_abs_error == 1.0


@pytest.mark.parametrize(
    ("want", "vacuous"),
    [
        (np.zeros((2, 3)), True),
        (np.full((2, 3), 7.0), True),
        (np.float32(1) + np.array([0, 1e-7, 0], np.float32), True),
        (np.array([np.nan, 1.0, 2.0]), True),
        (np.array([-np.inf, -np.inf]), True),
        (np.zeros((0, 4)), True),
        (np.float32(0.0), True),
        (np.float32(2.5), False),
        (np.array([1_000_000, 1_000_001]), False),
        (np.array([1.0, 1.001]), False),
    ],
)
def test_vacuous_is_never_a_pass(want, vacuous):
    error = error_of(want, want)
    assert error.vacuous is vacuous
    assert verdict([error], 40) == ("fail" if vacuous else "pass")
    assert bool(error.problem) is vacuous
    json.dumps(msgspec.to_builtins(error), allow_nan=False)


def test_an_output_without_elements_says_so():
    assert error_of(np.zeros((0, 4)), np.zeros((0, 4))).problem == "it has no elements"


def test_a_scalar_that_never_changes_is_vacuous_over_samples():
    sample = [{"y": np.float32(2.5)}]
    assert compare(sample * 3, sample * 3)[0].vacuous


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_results_are_counted_and_fail(bad):
    have = RAMP.copy()
    have[1, 2] = bad
    error = error_of(RAMP, have)
    assert error.nonfinite == 1 and error.psnr_db == LIMIT_DB
    assert verdict([error], 40) == "fail"


def test_every_value_lost():
    error = error_of(RAMP, np.full_like(RAMP, np.nan))
    assert error.nonfinite == 12 and error.psnr_db is None and error.argmax_agreement == 0.0
    assert verdict([error], 40) == "fail"


@pytest.mark.parametrize(
    ("have", "problem"), [(-np.inf, False), (-65504.0, False), (0.3, True), (np.nan, True), (np.inf, True)]
)
def test_masked_logits_may_saturate_but_not_vanish(have, problem):
    error = error_of([1.0, -2.0, -np.inf], [1.0, -2.0, have])
    assert error.nonfinite == 0 and not error.vacuous
    assert bool(error.problem) is problem
    assert verdict([error], 40) == ("fail" if problem else "pass")


@pytest.mark.parametrize("shape", [(12,), (4, 3), (1, 3, 4), (3, 1)])
def test_shape_mismatch_fails_even_where_it_would_broadcast(shape):
    error = error_of(RAMP, np.resize(RAMP, shape))
    assert f"shape {list(shape)}" in error.problem and "[3, 4]" in error.problem
    assert error.psnr_db is None and verdict([error], 0) == "fail"


def test_missing_output_fails_and_names_what_is_there():
    (error,) = compare([{"logits": RAMP}], [{"var_12": RAMP}])
    assert "no output 'logits'" in error.problem and "'var_12'" in error.problem
    assert verdict([error], 0) == "fail"


def test_one_bad_output_fails_the_whole():
    errors = compare([{"a": RAMP, "b": RAMP}], [{"a": RAMP, "b": -RAMP}])
    assert [error.output for error in errors] == ["a", "b"]
    assert verdict(errors[:1], 40) == "pass" and verdict(errors, 40) == "fail"


def test_nothing_compared_is_not_a_pass():
    assert verdict(compare([], []), 40) == "fail"


def test_sample_counts_must_agree():
    with pytest.raises(ValueError, match="1 reference samples against 0"):
        compare([{"y": RAMP}], [])


@pytest.mark.parametrize(("db", "expected"), [(39.9, "fail"), (40.0, "pass")])
def test_the_tolerance_itself_passes(db, expected):
    assert verdict([OutputError("y", (1,), psnr_db=db)], 40.0) == expected


def test_argmax_agreement_counts_rows_and_forgives_ties():
    want = np.array([[1.0, 2.0], [5.0, 5.0], [3.0, 1.0], [0.0, 1.0]])
    have = np.array([[1.0, 2.0], [5.1, 5.0], [1.0, 3.0], [0.0, np.nan]])
    assert error_of(want, have).argmax_agreement == 0.5


@pytest.mark.parametrize("shape", [(), (5, 1)])
def test_argmax_agreement_needs_classes(shape):
    want = np.arange(1.0, 1 + math.prod(shape)).reshape(shape)
    assert error_of(want, want).argmax_agreement is None


def test_json_names_are_the_schema():
    names = [
        "output",
        "shape",
        "psnr_db",
        "snr_db",
        "cosine",
        "max_abs_error",
        "argmax_agreement",
        "nonfinite",
        "vacuous",
    ]
    assert list(msgspec.to_builtins(error_of(RAMP, RAMP))) == names
    assert list(msgspec.to_builtins(error_of(RAMP, RAMP[0]))) == [*names, "problem"]


def test_integers_and_truth_values_are_judged_by_agreement():
    """PSNR of codes says nothing: 31 instead of 0 is no worse than 1."""
    codes = np.arange(1000) % 32
    flipped = codes.copy()
    flipped[:5] = 31
    (error,) = compare([{"y": codes}], [{"y": flipped}])
    assert error.psnr_db < 40 and error.agreement == 0.995 and verdict([error], 40) == "pass"
    flipped[:20] = 31
    assert verdict(compare([{"y": codes}], [{"y": flipped}]), 40) == "fail"
    truth = np.arange(1000) % 3 == 0
    assert compare([{"y": truth}], [{"y": truth}])[0].agreement == 1.0
    assert error_of([1.0, 2.0], [1.0, 2.0]).agreement is msgspec.UNSET


def test_near_ties_are_set_apart_and_counted():
    want = np.linspace(0, 1, 100)
    have, apart = want.copy(), np.zeros(100, bool)
    have[:3] += 0.5
    apart[:4] = True
    (error,) = compare([{"y": want}], [{"y": have}], [{"y": apart}])
    assert error.psnr_db == LIMIT_DB and error.near_ties == 4
    have[50] += 0.5
    assert verdict(compare([{"y": want}], [{"y": have}], [{"y": apart}]), 40) == "fail"
    codes, other = np.arange(100), np.arange(100)
    other[:3] = 7
    (error,) = compare([{"y": codes}], [{"y": other}], [{"y": apart}])
    assert error.agreement == 1.0 and error.near_ties == 4


def test_where_nearly_everything_is_a_near_tie_nothing_is_proven():
    codes, apart = np.arange(100), np.ones(100, bool)
    (error,) = compare([{"y": codes}], [{"y": codes[::-1]}], [{"y": apart}])
    assert verdict([error], 40) == "fail" and "100 of its 100 elements are near ties" in error.problem
    assert verdict(compare([{"y": codes}], [{"y": codes}], [{"y": apart}]), 40) == "pass"


def test_near_ties_that_fell_alike_are_judged():
    """A mean over an output of which everything is chosen (the entropy of a router, a codebook's use)."""
    apart = [{"y": np.ones((), bool)}] * 2
    want = [{"y": np.float32(2.0)}, {"y": np.float32(0.5)}]
    (error,) = compare(want, [{"y": np.float32(2.001)}, {"y": np.float32(0.5)}], apart)
    assert verdict([error], 40) == "pass" and not error.near_ties
    assert verdict([error], 80) == "fail"
    (error,) = compare(want, [{"y": np.float32(2.001)}, {"y": np.float32(0.51)}], apart)
    assert verdict([error], 40) == "fail" and "2 of its 2 elements are near ties" in error.problem
