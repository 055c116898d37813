"""Fixtures for reading ML Programs: `mil_package` writes a tiny .mlpackage with coremltools' MIL builder, `run_mil` also runs it."""
import json
import logging
import warnings

import numpy as np
import pytest

MIL_TYPES = {"float16": "fp16", "float32": "fp32", "int32": "int32", "bool": "bool"}

NAMED = {  # the builder names inputs after the parameters of a function
    1: lambda f: lambda x0: f(x0),
    2: lambda f: lambda x0, x1: f(x0, x1),
    3: lambda f: lambda x0, x1, x2: f(x0, x1, x2),
    4: lambda f: lambda x0, x1, x2, x3: f(x0, x1, x2, x3),
}


@pytest.fixture(scope="session")
def ct():
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import coremltools
    return coremltools


@pytest.fixture(scope="session")
def mb(ct):
    from coremltools.converters.mil import Builder

    return Builder


def write_package(ct, build, inputs, folder, opset="iOS18", states=()):
    """build(builder, *variables) -> variable or tuple. Integers and booleans that an interface cannot carry leave as int32."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.backend.mil.load import load
    from coremltools.converters.mil.mil import types

    def program(*variables):
        results = build(mb, *variables)
        results = results if isinstance(results, (tuple, list)) else (results,)
        kept = {types.fp16, types.fp32, types.int32}
        return tuple(out if out.dtype in kept else mb.cast(x=out, dtype="int32") for out in results)

    target = getattr(ct.target, opset)
    specs = [mb.TensorSpec(shape=array.shape, dtype=getattr(types, MIL_TYPES[str(array.dtype)])) for array in inputs]
    specs += [mb.StateTensorSpec(shape=shape, dtype=types.fp16) for shape in states]
    built = mb.program(input_specs=specs, opset_version=target)(NAMED[len(specs)](program))
    weights = folder / "Data" / "com.apple.CoreML" / "weights"
    weights.mkdir(parents=True)
    model = load(built, weights_dir=str(weights), specification_version=target.value)
    (weights.parent / "model.mlmodel").write_bytes(model.SerializeToString())
    entries = {
        key: {"path": f"com.apple.CoreML/{name}", "name": name, "author": "com.apple.CoreML", "description": "a test"}
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
        return list(open_runner(mil_package(build, *arrays, opset=opset, name=name), host="reference")(arrays).values())

    return run
