"""A pytest plugin (`-p coremltools_plugin`) that lets coremltools' own tests predict with our reference
runner instead of Core ML.

coremltools hands every model that it makes to a native proxy, by the path of a saved .mlpackage. On Linux
there is no proxy, so its tests stop before they predict. This plugin puts `SavedPackage` there, which opens
the saved bytes with `open_runner`, and makes coremltools believe in a recent macOS. It then watches: each
case starts from its own random seed (the tests draw their data from the global state, so that cases would
depend on their order), its predictions and comparisons are counted, and a comparison that coremltools accepts
is judged again by `strictly_equal`, because coremltools accepts half-precision results that are off by 0.5.

`--cases FILE` writes what happened: {case: {"outcome", "reason", "seconds", "predictions", "comparisons"}}.
"""

import gc
import importlib.util
import json
import logging
import os
import random
import re
import sys
import zlib
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import pytest
import torch

from cidermill.converters.coreml.tools import import_coremltools
from cidermill.validation import open_runner
from cidermill.validation.borders import as_arrays, to_picture
from cidermill.validation.graph import OperatorFailed

MACOS = (15, 5)
KINDS = ("fp16", "TORCHEXPORT")  # words in the names of cases that differ in kind
LARGEST_SPECIFICATION = 10
TIMED = frozenset({"test_efficient_type_inference"})  # fails where the machine is slow, whoever predicts
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function in the name of a case
FOLDERS = ("mil/ops/tests/", "frontend/torch/test/")
COUNTS = dict.fromkeys(("predictions", "comparisons", "disagreements", "conversions", "refusals"), 0)
# (relative to the value, relative to the largest value of the result; inputs count up to 1). Half precision
# keeps 11 bits (5e-4); a case rounds its inputs, its weights and some intermediate results, and sums that
# cancel keep the error of their terms.
TOLERANCES = {"fp16": (1e-2, 2e-3), "fp32": (1e-4, 1e-5)}
if importlib.util.find_spec("tensorflow") is None:  # some tests are for it
    import_coremltools()  # before coremltools' own conftest does, whose way in leaves packages half imported


class SavedPackage:
    """Stands where coremltools expects its `_MLModelProxy`: a saved package that predicts. `WRONG_BY` is
    added to results (to test us)."""

    WRONG_BY = float(os.environ.get("CIDERMILL_PEER_WRONG_BY", 0))

    @staticmethod
    def maximum_supported_specification_version():
        return LARGEST_SPECIFICATION

    def __init__(self, path, compute_units, function, hints, asset):
        self.path, self.function, self.runner = path, function or "main", None

    def open(self):
        if self.path.endswith(".mlmodel"):
            pytest.skip("a neural network, not an ML Program")
        self.runner = self.runner or open_runner(self.path, host="reference", function=self.function)
        return self.runner

    def has_half_precision(self):
        return any(value.dtype == "float16" for value in self.open().graph.values.values())

    def newState(self):
        return SavedState(self.open().make_state())

    def predict(self, data, state):
        COUNTS["predictions"] += 1
        runner = self.open()
        wanted = {value.name: value for value in runner.inputs}
        given = {
            name: as_multi_array(item, wanted[name]) if name in wanted else item
            for name, item in data.items()
        }
        try:
            answer = runner(given, state=None if state is None else state.tensors)
        except OperatorFailed as error:
            COUNTS["disagreements"] += 1
            raise RuntimeError(
                f"Unable to compute the prediction using ML Program: {error}"
            ) from error  # how Core ML begins it
        results = as_arrays(answer, runner.pictures)
        return {
            name: as_core_ml_gives(off_by(result, self.WRONG_BY), runner.pictures.get(name))
            for name, result in results.items()
        }

    def batchPredict(self, data):
        return [self.predict(item, None) for item in data]


class SavedState:
    def __init__(self, tensors):
        self.tensors = tensors

    def read_state(self, name):
        return self.tensors[name].numpy()

    def write_state(self, name, value):
        self.tensors[name].copy_(torch.as_tensor(value))


def as_multi_array(item, value):
    """Core ML converts an array of any number type to the input's type; coremltools' tests give float32 for
    all of them."""
    if not isinstance(item, (np.ndarray, np.generic, list, int, float)):
        return item
    array = np.asarray(item)
    return array.astype(value.dtype) if array.dtype.kind in "biuf" else array


def as_core_ml_gives(result, channels=None):
    """A multi-array has at least one axis; an output that is an image is a PIL picture."""
    if channels is not None:
        return to_picture(torch.from_numpy(result).float(), channels)
    return np.atleast_1d(result) if isinstance(result, np.ndarray) else result


def off_by(result, amount):
    return (result + amount).astype(result.dtype) if amount and isinstance(result, np.ndarray) else result


def pretend_macos():
    """Every coremltools module that looks at the platform sees a Mac, and models are given our proxy."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools.converters.mil.testing_utils
    import coremltools.models.model

    seen = {"_IS_MACOS": True, "_is_macos": lambda: True, "_macos_version": lambda: MACOS}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "coremltools":
            for key, value in seen.items():
                if key in vars(module):
                    setattr(module, key, value)
    coremltools.models.model._MLModelProxy = SavedPackage


def judge_comparisons():
    """coremltools' comparison, then ours, on the same prediction. A program of a float32 case that holds
    half-precision values is judged as half precision: its results are rounded to 11 bits."""
    from coremltools.converters.mil import testing_utils

    theirs = testing_utils.compare_backend

    def compare_backend(
        mlmodel, input_key_values, expected_outputs, dtype="fp32", atol=1e-4, rtol=1e-5, **options
    ):
        dtype = "fp16" if mlmodel.__proxy__.has_half_precision() else dtype
        results = theirs(mlmodel, input_key_values, expected_outputs, dtype, atol, rtol, **options)
        COUNTS["comparisons"] += len(expected_outputs or ())
        ratio = options.get("allow_mismatch_ratio", 0.0)
        # what a test states itself, beyond the defaults
        asked = (atol if atol > 1e-4 else 0, (rtol if rtol > 1e-5 else 0))
        for name, expected in (expected_outputs or {}).items():
            got = testing_utils._get_coreml_out_from_dict(results, name)
            if isinstance(got, np.ndarray):
                scale = {
                    "given": largest_of(input_key_values.values()),
                    "asked": asked,
                    "mismatches_allowed": ratio,
                }
                strictly_equal(name, got, np.asarray(expected), TOLERANCES[dtype], **scale)
        return results

    testing_utils.compare_backend = compare_backend


def largest_of(arrays):
    """The largest finite number."""
    flat = [
        np.abs(array[np.isfinite(array)]).max(initial=0)
        for array in map(np.asarray, arrays)
        if array.dtype.kind in "biuf"
    ]
    return float(max(flat, default=0))


def strictly_equal(name, got, expected, tolerances, given=0.0, asked=(0, 0), mismatches_allowed=0.0):
    """Integers and booleans exactly; floats within the tolerances, or what the test asks for up to 1e-2. What
    a type cannot hold is infinite."""
    with np.errstate(over="ignore"):
        expected = (
            expected.reshape(got.shape)
            .astype(got.dtype if expected.dtype.kind == "f" else np.float64)
            .astype(np.float64)
        )
    largest = max(largest_of([expected]), min(given, 1))
    atol, rtol = (
        max(own * scale, min(stated, 1e-2))
        for own, scale, stated in zip(tolerances[::-1], (largest, 1), asked)
    )
    if np.issubdtype(got.dtype, np.integer) or got.dtype == bool:
        atol = rtol = 0
    wrong = np.atleast_1d(~np.isclose(got.astype(np.float64), expected, atol=atol, rtol=rtol, equal_nan=True))
    if wrong.sum() > mismatches_allowed * wrong.size:
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        values = np.atleast_1d(got)[at], np.atleast_1d(expected)[at]
        raise AssertionError(
            f"strictly: {name} differs in {int(wrong.sum())} of {wrong.size}, at {at} {values[0]}, not"
            f" {values[1]}"
        )


def case_name(nodeid):
    """iOS14/test_conv.py::TestConv::test_builder[...]"""
    for folder in FOLDERS:
        nodeid = nodeid.rpartition(folder)[2]
    return nodeid


def pytest_addoption(parser):
    parser.addoption("--cases", help="write the outcome of every case to this JSON file")
    parser.addoption("--sample", type=int, help="run so many cases of every test function, always the same")
    parser.addoption("--functions", type=int, help="run so many of the test functions, always the same")
    parser.addoption("--seed", default="", help="of --sample: another text, another choice")


def pytest_configure(config):
    torch.set_num_threads(1)
    pretend_macos()
    judge_comparisons()
    if config.getoption("--cases") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Cases(Path(config.getoption("--cases"))))


@pytest.hookimpl(tryfirst=True)
def pytest_make_parametrize_id(val, argname):
    """As coremltools calls its cases, without the addresses in which processes differ."""
    text = f"{argname}={val!s}"
    return ADDRESS.sub("", text) if ADDRESS.search(text) else None


def pytest_collection_modifyitems(config, items):
    """Keep the ML Program cases (some tests name their backend themselves) that do not measure time."""
    kept = [item for item in items if "neuralnetwork" not in item.nodeid and item.originalname not in TIMED]
    if config.getoption("--functions"):
        kept = of_functions(kept, config.getoption("--functions"))
    if config.getoption("--sample"):
        kept = sample(kept, config.getoption("--sample"), config.getoption("--seed"))
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept


def of_functions(items, count):
    """The cases of `count` test functions, always the same."""
    functions = {item.nodeid.partition("[")[0] for item in items}
    kept = set(sorted(functions, key=lambda name: zlib.crc32(name.encode()))[:count])
    return [item for item in items if item.nodeid.partition("[")[0] in kept]


def sample(items, count, seed):
    """Of every test function `count` cases, those of the smallest checksums, from each of its kinds of cases
    (precision, frontend) in turn."""
    functions = {}
    for item in sorted(items, key=lambda item: zlib.crc32((seed + case_name(item.nodeid)).encode())):
        kinds = functions.setdefault(item.nodeid.partition("[")[0], {})
        kinds.setdefault(tuple(word in item.nodeid for word in KINDS), []).append(item)
    chosen = set()
    for kinds in functions.values():
        turns = (item for turn in zip_longest(*kinds.values()) for item in turn if item is not None)
        chosen.update(islice(turns, count))
    return [item for item in items if item in chosen]


def pytest_collection_finish(session):
    """coremltools collects garbage in each conversion, which takes ten times as long as the conversion if it
    walks all modules and tests."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    seed = zlib.crc32(case_name(item.nodeid).encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    COUNTS.update(dict.fromkeys(COUNTS, 0))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call":
        report.user_properties += list(COUNTS.items())


class Cases:
    """Collects the reports of all processes."""

    def __init__(self, path):
        self.path, self.cases = path, {}

    def pytest_runtest_logreport(self, report):
        case = self.cases.setdefault(
            case_name(report.nodeid),
            {"outcome": "unfinished", "reason": "", "seconds": 0.0, **dict.fromkeys(COUNTS, 0)},
        )
        case["seconds"] += report.duration
        case.update(dict(report.user_properties))
        if report.outcome != "passed":
            case["outcome"], case["reason"] = report.outcome, last_line(report)
        elif report.when == "call":
            case["outcome"] = "passed"

    def pytest_sessionfinish(self):
        self.path.write_text(json.dumps(self.cases, indent=0))


def last_line(report):
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2]
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join((crash.message if crash else str(report.longrepr)).split())[:600]
