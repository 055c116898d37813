"""Fixtures for reading ML Programs: `mil_package` writes a tiny .mlpackage with coremltools' MIL builder,
`run_mil` also runs it."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings

# For properties of operators: the same examples every time, and no shrinking, which costs more than it shows
# where examples are small.
settings.register_profile(
    "operators",
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)

MIL_TYPES = {"float16": "fp16", "float32": "fp32", "int32": "int32", "bool": "bool"}

NAMED = {  # the builder names inputs after the parameters of a function
    1: lambda f: lambda x0: f(x0),
    2: lambda f: lambda x0, x1: f(x0, x1),
    3: lambda f: lambda x0, x1, x2: f(x0, x1, x2),
    4: lambda f: lambda x0, x1, x2, x3: f(x0, x1, x2, x3),
}


@pytest.fixture(scope="session")
def mb(ct):
    from coremltools.converters.mil import Builder

    return Builder


def write_package(ct, build, inputs, folder, opset="iOS18", states=()):
    """build(builder, *variables) -> variable or tuple. Integers and booleans that an interface cannot carry
    leave as int32."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.backend.mil.load import load
    from coremltools.converters.mil.mil import types

    def program(*variables):
        results = build(mb, *variables)
        results = results if isinstance(results, (tuple, list)) else (results,)
        kept = {types.fp16, types.fp32, types.int32}
        return tuple(out if out.dtype in kept else mb.cast(x=out, dtype="int32") for out in results)

    target = getattr(ct.target, opset)
    specs = [
        mb.TensorSpec(shape=array.shape, dtype=getattr(types, MIL_TYPES[str(array.dtype)]))
        for array in inputs
    ]
    specs += [mb.StateTensorSpec(shape=shape, dtype=types.fp16) for shape in states]
    built = mb.program(input_specs=specs, opset_version=target)(NAMED[len(specs)](program))
    weights = folder / "Data" / "com.apple.CoreML" / "weights"
    weights.mkdir(parents=True)
    model = load(built, weights_dir=str(weights), specification_version=target.value)
    (weights.parent / "model.mlmodel").write_bytes(model.SerializeToString())
    entries = {
        key: {
            "path": f"com.apple.CoreML/{name}",
            "name": name,
            "author": "com.apple.CoreML",
            "description": "a test",
        }
        for key, name in (("model", "model.mlmodel"), ("weights", "weights"))
    }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": "model"}
    (folder / "Manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def mil_package(ct, tmp_path):
    def write(build, *inputs, opset="iOS18", states=(), name="model"):
        return write_package(ct, build, inputs, tmp_path / f"{name}.mlpackage", opset, states)

    return write


@pytest.fixture
def run_mil(mil_package):
    """run_mil(build, *arrays) -> the outputs, in order, of the saved program run by the reference runner."""
    from cidermill.validation import open_runner

    def run(build, *inputs, opset="iOS18", name="model"):
        arrays = [np.asarray(array) for array in inputs]
        return list(
            open_runner(mil_package(build, *arrays, opset=opset, name=name), host="reference")(
                arrays
            ).values()
        )

    return run


@pytest.fixture(scope="session")
def open_saved(ct, tmp_path_factory):
    """open_saved(build, *arrays) -> the reference runner of a program that was saved and read back, for
    properties: each call replaces the package of the one before."""
    from cidermill.validation import open_runner

    folder = tmp_path_factory.mktemp("packages") / "model.mlpackage"

    def save(build, *inputs, opset="iOS18", states=()):
        shutil.rmtree(folder, ignore_errors=True)
        return open_runner(write_package(ct, build, inputs, folder, opset, states), host="reference")

    return save


@pytest.fixture(scope="session")
def run_saved(open_saved):
    """As run_mil, for properties. Intermediate values too must be numbers of the type that the program
    declares."""

    def run(build, *inputs, opset="iOS18"):
        arrays = [np.asarray(array) for array in inputs]
        runner = open_saved(build, *arrays, opset=opset)

        def tap(name, value):
            declared = runner.graph.values.get(name)
            if declared is not None and declared.dtype == "float16":
                assert ((value.half().float() == value) | value.isnan()).all(), (
                    f"{name} is declared float16 and holds other numbers"
                )

        return list(runner(arrays, tap=tap).values())

    return run


@pytest.fixture(scope="session")
def agree():
    """agree(outputs, expected, exact=False): every saved result against what torch or NumPy computes in
    float32 (or exactly).

    float16 results may differ from the rounded float32 value by one unit in the last place, since the value
    may lie at a tie; float32 results by the error of summing in another order. `exact` results, integers and
    booleans must be equal.
    """

    def check(outputs, expected, exact=False):
        for place, (out, want) in enumerate(zip(outputs, expected, strict=True)):
            want = np.asarray(want)
            assert out.shape == want.shape, (place, out.shape, want.shape)
            if exact or out.dtype.kind != "f":
                np.testing.assert_array_equal(out, want.astype(out.dtype), err_msg=f"result {place}")
                continue
            want = want.astype(np.float64)
            size = np.abs(want[np.isfinite(want)]).max(initial=1.0)
            slack = 2e-6 * size + 1e-5 * np.abs(want)
            if out.dtype == np.float16:
                with np.errstate(over="ignore", invalid="ignore"):
                    want = want.astype(np.float16)
                    slack = 1e-7 * size + np.nan_to_num(np.abs(np.spacing(want)).astype(np.float64))
                want = want.astype(np.float64)
            assert np.array_equal(np.isnan(out), np.isnan(want)), f"result {place}"
            finite = np.isfinite(want)
            np.testing.assert_array_equal(
                out[~finite], want[~finite].astype(out.dtype), err_msg=f"result {place}"
            )
            distance = np.abs(out.astype(np.float64) - want, where=finite, out=np.zeros(want.shape))
            assert (distance <= np.where(finite, slack, 0)).all(), (
                f"result {place}: off by {distance.max()}: {out} for {want}"
            )

    return check
