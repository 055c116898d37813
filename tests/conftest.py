"""Shared by all tests: no network, one thread per worker, and the zoo's tiny architectures built once per
session."""

import gc
import importlib.util
import logging
import os
import sys
import warnings
from pathlib import Path

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_WAIT_POLICY="PASSIVE",
    CIDERMILL_CACHE="off",
)
TESTS = Path(__file__).resolve().parent
SLOW_CASES = [
    line for line in (TESTS / "slow_cases.txt").read_text().splitlines() if not line.startswith("#")
]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the slow cases. A line that names none of a test's cases is wrong."""
    cases = {item.nodeid.removeprefix("tests/"): item for item in items}
    functions = {case.partition("[")[0] for case in cases}
    for case in SLOW_CASES:
        if case in cases:
            cases[case].add_marker(pytest.mark.slow)
        elif case.partition("[")[0] in functions and len(items) > 1000:
            raise pytest.UsageError(f"tests/slow_cases.txt: {case} is no case of its test")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


MODULES = [0]  # how many were imported when the garbage collector was last told to leave everything alone


def pytest_runtest_setup(item):
    """coremltools collects garbage in every conversion, which takes longer than the conversion where it walks
    all of torch each time."""
    if len(sys.modules) > MODULES[0] + 50:
        MODULES[0] = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def captured():
    """(module, *inputs) -> Captured with only the program filled in."""
    import torch

    from cidermill.models.capture import Captured
    from cidermill.models.composites import kept_composites

    def capture(module: torch.nn.Module, *inputs: torch.Tensor) -> Captured:
        table = torch.export.default_decompositions()
        for operator in kept_composites():
            table.pop(operator, None)
        program = torch.export.export(module.eval(), inputs).run_decompositions(table)
        return Captured(None, program, (), (), None, ())

    return capture


@pytest.fixture(scope="session")
def stateful():
    """The module tests/zoo/stateful.py: stateful(name) -> a model that changes its buffers, calls(name)."""
    spec = importlib.util.spec_from_file_location("cidermill_stateful", TESTS / "zoo" / "stateful.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def zoo():
    """The module tests/zoo/zoo.py: build(name) -> (model, inputs), save(name, folder)."""
    spec = importlib.util.spec_from_file_location("cidermill_zoo", TESTS / "zoo" / "zoo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def zoo_path(zoo, tmp_path_factory):
    """name -> the architecture as a user keeps it: its Hugging Face folder, or its .pt2 where it has none."""
    folder = tmp_path_factory.mktemp("zoo")

    def path(name: str) -> Path:
        if not (folder / f"{name}.pt2").exists():
            zoo.save(name, folder)
        return folder / name if (folder / name).is_dir() else folder / f"{name}.pt2"

    return path


@pytest.fixture(scope="session")
def ct():
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools
    return coremltools


@pytest.fixture(autouse=True)
def numbers_of_its_own(request):
    """A test draws the same numbers whichever tests ran before it: a module's generators begin anew."""
    import torch

    for value in vars(request.module).values() if request.module else ():
        if isinstance(value, torch.Generator):
            value.manual_seed(value.initial_seed())
