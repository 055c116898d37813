"""Reading packages: what the Graph says, control flow and states, and every way in which a package can be
broken."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cidermill.models.errors import UnreadableArtifact
from cidermill.validation import open_runner
from cidermill.validation.graph import Ref, Value
from cidermill.validation.mil.files import coreml_protos
from cidermill.validation.mil.read import read_package

X = np.arange(6, dtype=np.float32).reshape(2, 3)
WEIGHT = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def small(mb, x):
    return mb.softmax(
        x=mb.linear(x=x, weight=WEIGHT, bias=np.ones(4, np.float32), name="dense"),
        axis=-1,
        name="probabilities",
    )


@pytest.fixture
def package(mil_package):
    return mil_package(small, X)


def rewrite(package, change):
    """Apply `change` to the package's model protobuf."""
    file = package / "Data/com.apple.CoreML/model.mlmodel"
    model = coreml_protos()[0].Model()
    model.ParseFromString(file.read_bytes())
    change(model)
    file.write_bytes(model.SerializeToString())


def operations(model):
    function = model.mlProgram.functions["main"]
    return function.block_specializations[function.opset].operations


def test_graph_names_types_and_literals(package):
    read = read_package(package)
    graph = read.functions["main"]
    dense, softmax = graph.nodes
    assert (dense.op, dense.name, softmax.op) == ("linear", "dense", "softmax")
    # 12 values: in the blob
    assert dense.inputs["x"] == Ref("x0") and isinstance(dense.inputs["weight"], Ref)
    np.testing.assert_array_equal(dense.inputs["bias"], np.ones(4))  # 4 values: in the program
    assert softmax.inputs["axis"] == -1
    assert graph.values[dense.inputs["weight"].name].shape == (4, 3)
    np.testing.assert_array_equal(graph.constants[dense.inputs["weight"].name](), WEIGHT)
    assert read.inputs == (Value("x0", "float32", (2, 3)),) and read.outputs == (
        Value("probabilities", "float32", (2, 4)),
    )
    assert read.specification_version == 9 and read.opsets == {"main": "CoreML8"} and read.states == ()


def test_scope_and_location_attributes(package):
    def annotate(model):
        for operation in operations(model):
            for key, text in (("scope", "encoder.layer.0"), ("location", "model.py:12")):
                value = operation.attributes[key]
                value.type.tensorType.dataType = 2
                value.immediateValue.tensor.strings.values.append(text)

    rewrite(package, annotate)
    node = read_package(package).functions["main"].nodes[0]
    assert (node.scope, node.location) == ("encoder.layer.0", "model.py:12") and set(node.inputs) == {
        "x",
        "weight",
        "bias",
    }


def test_cond_and_while_loop_read_constants_of_the_graph_around_them(run_mil):
    table = np.arange(12, dtype=np.float32)

    def build(mb, x):
        shared = mb.const(val=table)

        def body(i, total):
            return mb.add(x=i, y=1), mb.add(x=total, y=shared)

        _, total = mb.while_loop(_cond=lambda i, total: mb.less(x=i, y=3), _body=body, loop_vars=(0, x))
        large = mb.greater(x=mb.reduce_max(x=x, axes=[0]), y=5.0)
        return total, mb.cond(
            pred=large, _true_fn=lambda: mb.mul(x=x, y=2.0), _false_fn=lambda: mb.sub(x=x, y=shared)
        )

    total, chosen = run_mil(build, np.ones(12, np.float32))
    np.testing.assert_array_equal(total, 1 + 3 * table)
    np.testing.assert_array_equal(chosen, 1 - table)
    np.testing.assert_array_equal(
        run_mil(build, np.full(12, 6, np.float32), name="large")[1], np.full(12, 12)
    )


def test_lists(run_mil):
    def build(mb, x):
        items = mb.make_list(init_length=2, elem_shape=(3,), dtype="fp32")
        items = mb.list_write(ls=items, index=0, value=mb.gather(x=x, indices=1, axis=0))
        items = mb.list_scatter(ls=items, indices=np.array([1, 2], np.int32), value=x)
        return (
            mb.list_read(ls=items, index=2),
            mb.list_gather(ls=items, indices=np.array([0, 1], np.int32)),
            mb.list_length(ls=items),
        )

    last, both, length = run_mil(build, X)
    np.testing.assert_array_equal(last, X[1])
    np.testing.assert_array_equal(both, X[::-1])
    assert length == 3


def test_states_persist_between_calls(mil_package):
    def build(mb, x, state):
        before = mb.read_state(input=state)
        after = mb.coreml_update_state(state=state, value=mb.add(x=before, y=x))
        return after, mb.sub(x=after, y=before)  # what was read stays what it was

    x = np.ones((2, 3), np.float16)
    runner = open_runner(mil_package(build, x, states=[(2, 3)]), host="reference")
    state = runner.make_state()
    assert [value.shape for value in runner.states] == [(2, 3)] and [
        value.name for value in runner.inputs
    ] == ["x0"]
    outputs = [next(iter(runner([x], state=state).values()))[0, 0] for _ in range(3)]
    assert outputs == [1, 2, 3]
    assert list(runner([x], state=state).values())[1][0, 0] == 1
    assert next(iter(runner([x]).values()))[0, 0] == 1  # without a state, every call starts from zero


def broken(package, how):
    data = package / "Data/com.apple.CoreML"
    model, weights = data / "model.mlmodel", data / "weights/weight.bin"
    if how == "half a model":
        model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])
    elif how == "empty model":
        model.write_bytes(b"")
    elif how == "random model":
        model.write_bytes(np.random.default_rng(0).bytes(500))
    elif how == "half the weights":
        weights.write_bytes(weights.read_bytes()[:160])
    elif how == "empty weights":
        weights.write_bytes(b"")
    elif how == "no weights":
        weights.unlink()
    elif how == "damaged record":
        weights.write_bytes(weights.read_bytes()[:64] + b"\0" * 64 + weights.read_bytes()[128:])
    elif how == "no manifest":
        (package / "Manifest.json").unlink()
    elif how == "text manifest":
        (package / "Manifest.json").write_text("hello")
    elif how == "no model":
        model.unlink()
    else:
        shutil.rmtree(package)


@pytest.mark.parametrize(
    "how, message",
    [
        ("half a model", "is truncated or corrupt"),
        ("empty model", "it holds no model"),
        ("random model", "is not a Core ML model"),
        ("half the weights", "is truncated: the value at byte 64"),
        ("empty weights", "0 bytes, less than its 64-byte header"),
        ("no weights", "weight.bin does not exist"),
        ("damaged record", "no record at byte 64"),
        ("no manifest", "it has no Manifest.json"),
        ("text manifest", "it names no model"),
        ("no model", "its manifest names com.apple.CoreML/model.mlmodel, which does not exist"),
        ("no package", "model.mlpackage does not exist"),
    ],
)
def test_broken_packages_are_named(package, how, message):
    broken(package, how)
    with pytest.raises(UnreadableArtifact) as caught:
        open_runner(package, host="reference")
    assert message in str(caught.value) and "Traceback" not in str(caught.value)


def test_every_truncation_of_the_model_is_refused_or_the_same(package):
    file = package / "Data/com.apple.CoreML/model.mlmodel"
    whole = file.read_bytes()
    for length in range(0, len(whole), 37):
        file.write_bytes(whole[:length])
        with pytest.raises(UnreadableArtifact):
            read_package(package)


def test_flipped_bits_never_show_a_traceback(package):
    file = package / "Data/com.apple.CoreML/model.mlmodel"
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        try:
            read_package(package)
        except UnreadableArtifact:
            continue


def test_paths_may_not_leave_the_package(package):
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"]["model"]["path"] = "../../secret"
    (package / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UnreadableArtifact, match="names a file outside of itself"):
        read_package(package)


def test_blob_paths_may_not_leave_the_package(package):
    def escape(model):
        constant = next(op for op in operations(model) if op.attributes["val"].HasField("blobFileValue"))
        constant.attributes["val"].blobFileValue.fileName = "@model_path/../../../weight.bin"

    rewrite(package, escape)
    with pytest.raises(UnreadableArtifact, match="names a file outside of itself"):
        read_package(package)


def test_undefined_values_are_refused(package):
    def cut(model):
        operations(model)[-1].inputs["x"].arguments[0].name = "nobody"

    rewrite(package, cut)
    with pytest.raises(
        UnreadableArtifact,
        match=r"its operator softmax \(probabilities\) uses 'nobody', which nothing before it defines",
    ):
        read_package(package)


def test_a_weight_of_another_size_is_refused(package):
    def grow(model):
        for operation in operations(model):
            if operation.attributes["val"].HasField("blobFileValue"):
                operation.outputs[0].type.tensorType.dimensions[0].constant.size = 8

    rewrite(package, grow)
    with pytest.raises(
        UnreadableArtifact, match=r"is float32 of 48 bytes, the program declares float32 \[8, 3\] of 96 bytes"
    ):
        read_package(package)


def test_older_kinds_of_model_are_refused(package):
    def older(model):
        model.specificationVersion = 4
        model.neuralNetwork.layers.add().name = "conv1"

    rewrite(package, older)
    with pytest.raises(
        UnreadableArtifact, match=r"holds a neuralNetwork \(specification version 4\); only ML Programs"
    ):
        read_package(package)


def test_reading_prints_nothing_and_does_not_import_coremltools(package):
    code = (
        f"import sys, numpy; from cidermill.validation import open_runner; open_runner({str(package)!r},"
        " host='reference')([numpy.ones((2, 3), 'float32')]); assert 'coremltools' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=package.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
