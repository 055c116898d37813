"""A pytest plugin beside coremltools_plugin (`-p coremltools_plugin -p coremltools_torch_plugin`) for the
tests of coremltools' torch frontend.

It lets them test both frontends: coremltools leaves torch.export out on x86_64. Conversions are counted,
those that coremltools ends with an error ("refusals") apart, so that what fails to convert is told from what
predicts wrong numbers. A comparison with torch that coremltools accepts is judged again by `strictly_equal`:
coremltools accepts half-precision results that are off by 0.5.
"""

import functools
import importlib.machinery
import importlib.util
import platform
import sys
import types

import numpy as np
import pytest
import torch
from coremltools_plugin import COUNTS, TOLERANCES, largest_of, strictly_equal

MACHINE = "arm64"
IMPORTED_BY_TESTS = ("torchvision", "peft")
UNJUDGED = 100  # the absolute tolerance by which a test says that its values are random


class AbsentLibrary(types.ModuleType):
    """Stands for a library that test files import and few of their tests use: those are skipped."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return AbsentName(self.__name__)


class AbsentName:
    """What a test file imports from an absent library; to use it skips the test."""

    def __init__(self, library):
        self._library = library

    def __getattr__(self, name):
        if name.startswith("_"):  # pytest looks at what test files hold
            raise AttributeError(name)
        pytest.skip(f"needs {self._library}")

    def __call__(self, *arguments, **options):
        pytest.skip(f"needs {self._library}")


def count_conversions():
    from coremltools.converters import _converters_entry

    convert = _converters_entry.mil_convert

    @functools.wraps(convert)
    def counted(*arguments, **options):
        try:
            model = convert(*arguments, **options)
        except Exception:
            COUNTS["refusals"] += 1
            raise
        COUNTS["conversions"] += 1
        return model

    _converters_entry.mil_convert = counted


def judge_comparisons():
    """coremltools' comparison of a model with torch, then ours, on the same predictions. A program of a
    float32 case that holds half-precision values is judged as half precision: its results are rounded to 11
    bits."""
    from coremltools.converters.mil.frontend.torch.test import testing_utils

    theirs = testing_utils.convert_and_compare

    @functools.wraps(theirs)
    def convert_and_compare(input_data, model_spec, expected_results=None, atol=1e-4, rtol=1e-05, **options):
        given = input_data if isinstance(input_data, (list, tuple)) else [input_data]
        if expected_results is None:
            expected_results = runnable(model_spec)(*testing_utils._copy_input_data(given))
        try:
            results = theirs(input_data, model_spec, expected_results, atol, rtol, **options)
            _, model, arrays, predicted = results
            if predicted is not None and atol < UNJUDGED:
                expected = testing_utils.flatten_and_detach_torch_results(expected_results)
                judge_outputs(model, predicted, expected, largest_of(arrays.values()), (atol, rtol))
        except AssertionError:
            COUNTS["disagreements"] += 1
            raise
        return results

    testing_utils.convert_and_compare = convert_and_compare


def runnable(model_spec):
    """The torch module that a test converts, as coremltools' comparison calls it."""
    if isinstance(model_spec, str):
        return torch.jit.load(model_spec)
    return model_spec.module() if isinstance(model_spec, torch.export.ExportedProgram) else model_spec


def judge_outputs(model, predicted, expected, given, stated):
    """predicted: {name: array}; expected: arrays in the order of the model's outputs; given: the largest
    input; stated: the tolerances of the test, which count where they are beyond coremltools' defaults."""
    atol, rtol = stated
    asked = (atol if atol > 1e-4 else 0, rtol if rtol > 1e-5 else 0)
    tolerances = TOLERANCES["fp16" if model.__proxy__.has_half_precision() else "fp32"]
    for output, wanted in zip(model._spec.description.output, expected):
        COUNTS["comparisons"] += 1
        got = predicted[output.name]
        if isinstance(got, np.ndarray):
            strictly_equal(output.name, got, np.asarray(wanted), tolerances, given, asked)


@pytest.hookimpl(trylast=True)  # after coremltools_plugin: coremltools sees a Mac by then
def pytest_configure(config):
    platform.machine = lambda: MACHINE
    for name in IMPORTED_BY_TESTS:
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = AbsentLibrary(name)
    count_conversions()
    judge_comparisons()
