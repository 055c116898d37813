"""Files made to harm: each kind by hand with the error it must give, a sample of bench/fuzz.py, and that
script's own watchfulness."""

import importlib.util
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cidermill.models.errors import UnreadableArtifact, UserError
from cidermill.validation import open_runner
from cidermill.validation.graph import Graph, Node, OperatorFailed, Ref, Value, interpret, misuse
from cidermill.validation.mil.files import coreml_protos
from cidermill.validation.mil.read import read_package
from cidermill.validation.pte.aten_ops import CHECKS, find_kernel
from cidermill.validation.pte.flatbuffer import Buffer
from cidermill.validation.resources import Allowance, Meter, OverAllowance

BENCH = Path(__file__).resolve().parents[2] / "bench"
X = np.arange(12, dtype=np.float32).reshape(3, 4)
SMALL = Allowance(memory_bytes=1 << 30, seconds=20.0, loops=500)


def small(mb, x):
    weight = np.arange(16, dtype=np.float32).reshape(4, 4)
    return mb.softmax(x=mb.linear(x=x, weight=weight, name="dense"), axis=-1, name="probabilities")


def rewrite(package, change):
    """Apply `change` to the operations of the main block of a package's model protobuf."""
    file = package / "Data/com.apple.CoreML/model.mlmodel"
    model = coreml_protos()[0].Model()
    model.ParseFromString(file.read_bytes())
    function = model.mlProgram.functions["main"]
    change(function.block_specializations[function.opset])
    file.write_bytes(model.SerializeToString())
    return package


def refused(package, allowance=SMALL):
    """The text of the error that opening and calling a package ends with. An operation in it is number 0 of
    its kind: coremltools numbers all that a process makes, other tests' too."""
    with pytest.raises((UserError, OperatorFailed)) as caught:
        open_runner(package, host="reference", allowance=allowance)([X])
    return re.sub(r"\((\w+)_\d+\) failed", r"(\1_0) failed", str(caught.value))


def operation(block, kind):
    return next(operation for operation in block.operations if operation.type == kind)


# Programs that ask for too much


def enlarge(kind, parameter, numbers):
    """-> change: the constant that gives `parameter` of the operator `kind` is replaced."""

    def change(block):
        name = operation(block, kind).inputs[parameter].arguments[0].name
        constant = next(
            other for other in block.operations if other.outputs and other.outputs[0].name == name
        )
        tensor = constant.attributes["val"].immediateValue.tensor
        stored = getattr(tensor, tensor.WhichOneof("value")).values
        del stored[:]
        stored.extend(numbers)

    return change


BOMBS = {
    "tile": (lambda mb, x: mb.tile(x=x, reps=[2, 1]), "reps", [100_000, 100_000]),
    "fill": (lambda mb, x: mb.add(x=mb.fill(shape=[3, 4], value=1.0), y=x), "shape", [1_000_000, 1_000_000]),
    "pad": (lambda mb, x: mb.pad(x=x, pad=[0, 0, 1, 1], mode="constant"), "pad", [0, 0, 10**9, 10**9]),
    "one_hot": (
        lambda mb, x: mb.one_hot(indices=mb.cast(x=x, dtype="int32"), one_hot_vector_size=5),
        "one_hot_vector_size",
        [10**9],
    ),
    "range_1d": (lambda mb, x: mb.range_1d(start=0, end=12, step=2), "end", [2 * 10**9]),
    "upsample_nearest_neighbor": (
        lambda mb, x: mb.upsample_nearest_neighbor(
            x=mb.expand_dims(x=x, axes=[0, 1]), scale_factor_height=2, scale_factor_width=2
        ),
        "scale_factor_height",
        [10**9],
    ),
    "resize_bilinear": (
        lambda mb, x: mb.resize_bilinear(
            x=mb.expand_dims(x=x, axes=[0, 1]), target_size_height=6, target_size_width=8
        ),
        "target_size_width",
        [2 * 10**9],
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_results_beyond_the_memory_are_refused_before_they_are_allocated(kind, mil_package):
    build, parameter, numbers = BOMBS[kind]
    package = rewrite(mil_package(build, X), enlarge(kind, parameter, numbers))
    start = time.monotonic()
    message = refused(package)
    assert message.startswith(f"operator {kind} ({kind}_0) failed: it would allocate ")
    assert message.endswith(("MiB", "GiB")) and " its declared results and its inputs account for " in message
    assert time.monotonic() - start < 10


def test_broadcasting_two_long_vectors_is_refused(mil_package):
    def build(mb, x):
        long = mb.tile(x=mb.reshape(x=x, shape=[12]), reps=[20_000])
        return mb.reduce_sum(
            x=mb.mul(x=mb.expand_dims(x=long, axes=[0]), y=mb.expand_dims(x=long, axes=[1])), axes=[0, 1]
        )

    assert "it would allocate 215 GiB" in refused(mil_package(build, X))


def test_many_small_results_together_are_refused(mil_package):
    def build(mb, x):
        big = mb.tile(x=x, reps=[1000, 1000])
        return [mb.add(x=big, y=float(i)) for i in range(30)]

    package = mil_package(build, X)
    message = refused(package, Allowance(memory_bytes=200 << 20, seconds=60))
    assert "it would allocate 45.8 MiB" in message and message.endswith(
        "of memory are left (Allowance.memory_bytes)"
    )
    assert len(open_runner(package, host="reference")([X])) == 30


def test_lists_of_a_billion_places_are_refused(mil_package):
    def build(mb, x):
        items = mb.make_list(init_length=2, elem_shape=(4,), dtype="fp32")
        return mb.list_read(
            ls=mb.list_write(ls=items, index=1, value=mb.gather(x=x, indices=1, axis=0)), index=1
        )

    message = refused(rewrite(mil_package(build, X), enlarge("make_list", "init_length", [10**9])))
    assert "operator make_list (make_list_0) failed: it would allocate 7.45 GiB" in message


def test_loops_that_never_end_are_stopped(mil_package):
    def build(mb, x):
        return mb.while_loop(
            _cond=lambda i, y: mb.greater_equal(x=i, y=0),
            _body=lambda i, y: (mb.mul(x=i, y=1), mb.add(x=y, y=1.0)),
            loop_vars=(0, x),
        )

    assert (
        refused(mil_package(build, X))
        == "operator while_loop (while_loop_0) failed: the program's loops did not end after 500 turns"
        " (Allowance.loops)"
    )


def test_programs_that_take_too_long_are_stopped(mil_package):
    def build(mb, x):
        return mb.while_loop(
            _cond=lambda i, y: mb.greater_equal(x=i, y=0),
            _body=lambda i, y: (mb.mul(x=i, y=1), mb.add(x=y, y=1.0)),
            loop_vars=(0, x),
        )

    package, start = mil_package(build, X), time.monotonic()
    message = refused(package, Allowance(seconds=1.0, loops=10**9))
    assert (
        "the program would run for longer than the 1 seconds that one call may take (Allowance.seconds)"
        in message
    )
    assert time.monotonic() - start < 5


def test_a_product_that_would_take_too_long_is_not_begun(mil_package):
    def build(mb, x):
        square = mb.tile(x=x, reps=[2048, 1536])  # [6144, 6144]
        return mb.reduce_sum(x=mb.matmul(x=square, y=square), axes=[0, 1])

    assert "operator matmul (matmul_0) failed: the program would run for longer" in refused(
        mil_package(build, X), Allowance(seconds=5)
    )


def test_legitimate_large_results_pass():
    with Meter(Allowance(memory_bytes=1 << 30)):
        assert (torch.ones(5000, 1) * torch.ones(1, 5000)).sum() == 25_000_000  # 100 MB
    with pytest.raises(OverAllowance), Meter(Allowance(memory_bytes=1 << 30)):
        torch.ones(50_000, 1) * torch.ones(1, 50_000)


def test_jumps_that_never_end_are_stopped():
    from cidermill.validation.pte.run import run_instructions

    jump = Node("jump_false", {"condition": False, "destination": 0}, ())
    with pytest.raises(OverAllowance, match="loops did not end after 500 turns"), Meter(SMALL):
        run_instructions(Graph((), (), (jump,)), {}, lambda *_: ())


@pytest.mark.parametrize(
    "condition, why", [(Ref("nobody"), "nobody"), (torch.ones(2), "more than one value is ambiguous")]
)
def test_jumps_on_no_single_value(condition, why):
    from cidermill.validation.pte.run import run_instructions

    jump = Node("jump_false", {"condition": condition, "destination": 0}, (), "instruction_3")
    with pytest.raises(
        OperatorFailed,
        match=rf"operator jump_false \(instruction_3\) failed: its condition is no single value .*{why}",
    ):
        run_instructions(Graph((), (), (jump,)), {}, lambda *_: ())


def test_outputs_of_a_branch_that_was_not_taken():
    with pytest.raises(OperatorFailed, match="no operation that ran computes the output 'branch'"):
        interpret(Graph((), ("branch",), ()), lambda *_: (), {})


def test_defaults_that_do_not_fit_their_inputs():
    pytest.importorskip("ml_dtypes")  # teaches numpy the name bfloat16, which torch cannot take from it
    from cidermill.validation.borders import check_inputs
    from cidermill.validation.mil.interface import Feature

    values, features = (Value("x", "bfloat16", (2,)),), {"x": Feature(default=0.0)}
    with pytest.raises(UserError, match="the default of x, 0.0, does not fit bfloat16: "):
        check_inputs({}, values, features, "model.mlpackage")


# Graphs that refer in circles


def test_cycles_are_refused(mil_package):
    def cycle(block):
        operation(block, "linear").inputs["x"].arguments[0].name = "probabilities"

    message = refused(rewrite(mil_package(small, X), cycle))
    assert (
        "is corrupt: its operator linear (dense) uses 'probabilities', which nothing before it defines"
        in message
    )


def test_values_defined_twice_are_refused(mil_package):
    def twice(block):
        operation(block, "softmax").outputs[0].name = "dense"

    assert "its operator softmax defines 'dense', which is defined before it" in refused(
        rewrite(mil_package(small, X), twice)
    )


def test_outputs_that_nothing_defines_are_refused(mil_package):
    def rename(block):
        block.outputs[0] = "nobody"

    assert "its output 'nobody' is defined by nothing" in refused(rewrite(mil_package(small, X), rename))


def test_values_of_an_inner_graph_are_not_known_outside():
    value = Value("inner", "float32", ())
    block = Graph((), ("inner",), (Node("identity", {"x": Ref("x")}, (value,), "one"),))
    outside = Node("add", {"x": Ref("inner"), "y": 1}, (Value("sum", "float32", ()),), "two")
    graph = Graph(
        (Value("x", "float32", ()),),
        ("sum",),
        (Node("cond", {"pred": True}, (), "choice", blocks=(block, block)), outside),
    )
    assert misuse(graph) == "its operator add (two) uses 'inner', which nothing before it defines"


def test_blocks_within_blocks(mil_package):
    def nest(block):
        inner = block
        for _ in range(200):
            inner = inner.operations.add(type="cond").blocks.add()

    # protobuf's own limit
    assert "is truncated or corrupt: it is not a Core ML model" in refused(
        rewrite(mil_package(small, X), nest)
    )


def test_operators_with_the_wrong_number_of_blocks(mil_package):
    def nest(block):
        operation(block, "softmax").blocks.add()

    assert "its operator softmax (probabilities) has 1 blocks instead of 0" in refused(
        rewrite(mil_package(small, X), nest)
    )


# Declarations that cannot be


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1, 1 << 48])
def test_absurd_sizes(size, mil_package):
    def grow(block):
        operation(block, "softmax").outputs[0].type.tensorType.dimensions[0].constant.size = size

    assert f"is corrupt: a value of shape [{size}, 4] in its program" in refused(
        rewrite(mil_package(small, X), grow)
    )


def test_too_many_dimensions(mil_package):
    def grow(block):
        for _ in range(40):
            operation(block, "softmax").outputs[0].type.tensorType.dimensions.add().constant.size = 1

    assert "is corrupt: a value of shape [3, 4, 1, 1, 1, 1, 1, 1, ...] in its program" in refused(
        rewrite(mil_package(small, X), grow)
    )


def test_more_results_than_the_operator_has(mil_package):
    def add(block):
        operation(block, "softmax").outputs.add(name="more").type.tensorType.dataType = 11
        block.outputs.append("more")

    message = refused(rewrite(mil_package(small, X), add))
    assert message == "operator softmax (probabilities) failed: it computes 1 results, the program declares 2"


def test_names_of_many_characters(mil_package):
    def rename(block):
        operation(block, "softmax").outputs[0].name = "a" * 100_000

    message = refused(rewrite(mil_package(small, X), rename))
    assert "has 100000 characters" in message and len(message) < 1000


def test_states_without_a_fixed_shape(mil_package):
    def build(mb, x, state):
        return mb.coreml_update_state(state=state, value=mb.add(x=mb.read_state(input=state), y=x))

    package = mil_package(build, X.astype(np.float16), states=[(3, 4)])
    file = package / "Data/com.apple.CoreML/model.mlmodel"
    model = coreml_protos()[0].Model()
    model.ParseFromString(file.read_bytes())
    state = next(
        value
        for value in model.mlProgram.functions["main"].inputs
        if value.type.WhichOneof("type") == "stateType"
    )
    state.type.stateType.wrappedType.tensorType.dimensions[0].unknown.variadic = False
    file.write_bytes(model.SerializeToString())
    with pytest.raises(
        UnreadableArtifact, match=r"its state '.*' is float16 \[None, 4\], without a fixed shape"
    ):
        read_package(package)


# Weight files


def record(package, offset, code, number):
    """Overwrite a field of the first record of the weight file."""
    file = package / "Data/com.apple.CoreML/weights/weight.bin"
    data = bytearray(file.read_bytes())
    struct.pack_into(code, data, 64 + offset, number)
    file.write_bytes(data)
    return package


@pytest.mark.parametrize(
    "offset, code, number, message",
    [
        (8, "<Q", 1 << 62, "ends at 4611686018427388032, the file at"),
        (8, "<Q", 0, "is float32 of 0 bytes, the program declares float32 [4, 4] of 64 bytes"),
        (16, "<Q", (1 << 64) - 1, "is truncated: the value at byte 64 ends at 18446744073709551679"),
        (4, "<I", 99, "is type 99 of 64 bytes"),
        (0, "<I", 1, "no record at byte 64"),
    ],
)
def test_records_that_lie(offset, code, number, message, mil_package):
    assert message in refused(record(mil_package(small, X), offset, code, number))


def test_records_outside_of_the_weight_file(mil_package):
    def move(block):
        constant = next(
            operation
            for operation in block.operations
            if operation.attributes["val"].HasField("blobFileValue")
        )
        constant.attributes["val"].blobFileValue.offset = 1 << 60

    assert "is truncated: a record at byte 1152921504606846976, but only" in refused(
        rewrite(mil_package(small, X), move)
    )


def test_a_weight_file_that_shrinks_after_it_was_opened(mil_package):
    package = mil_package(small, X)
    runner = open_runner(package, host="reference")
    with (package / "Data/com.apple.CoreML/weights/weight.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(OperatorFailed, match="it was changed while it was read"):
        runner([X])


def test_fewer_packed_bytes_than_a_shape_needs():
    from cidermill.validation.mil.blob import unpack

    with pytest.raises(
        ValueError, match="1000000000000 values of 3 bits need 375000000000 bytes, 4 are stored"
    ):
        unpack(np.zeros(4, np.uint8), 3, 10**12)


# Paths


def test_links_that_leave_the_package(mil_package, tmp_path):
    for name in (
        "Data",
        "Data/com.apple.CoreML",
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
        "Manifest.json",
    ):
        package = mil_package(small, X, name=name.replace("/", "_"))
        outside = tmp_path / f"outside_{name.replace('/', '_')}"
        shutil.move(package / name, outside)
        (package / name).symlink_to(outside)
        with pytest.raises(
            UnreadableArtifact, match="names a file outside of itself: .* \\(a link to .*outside_"
        ):
            open_runner(package, host="reference")


def test_links_that_nothing_names(mil_package):
    package = mil_package(small, X)
    (package / "Data" / "notes").symlink_to("/dev/zero")
    assert "names a file outside of itself: notes (a link to /dev/zero)" in refused(package)


def test_links_inside_the_package_are_followed(mil_package):
    package = mil_package(small, X)
    shutil.move(package / "Data/com.apple.CoreML/weights", package / "Data/w")
    (package / "Data/com.apple.CoreML/weights").symlink_to(package / "Data/w")
    assert open_runner(package, host="reference")([X])["probabilities"].shape == (3, 4)


@pytest.mark.parametrize(
    "entry", ["../../outside.mlmodel", "/etc/passwd", "com.apple.CoreML/../../../outside.mlmodel"]
)
def test_manifests_that_leave_the_package(entry, mil_package):
    package = mil_package(small, X)
    shutil.copy(package / "Data/com.apple.CoreML/model.mlmodel", package.parent / "outside.mlmodel")
    manifest = json.loads((package / "Manifest.json").read_text())
    manifest["itemInfoEntries"]["model"]["path"] = entry
    (package / "Manifest.json").write_text(json.dumps(manifest))
    assert f"names a file outside of itself: {entry}" in refused(package)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 200_000, "RecursionError"),
        ('{"a": "' + "b" * (17 << 20) + '"}', "a manifest has a few hundred"),
        ("\0", "it names no model"),
        ('{"rootModelIdentifier": 3, "itemInfoEntries": []}', "it names no model"),
    ],
)
def test_manifests_that_are_none(text, message, mil_package):
    package = mil_package(small, X)
    (package / "Manifest.json").write_text(text)
    assert message in refused(package)


def test_pipes_folders_and_loops_where_files_belong(mil_package):
    for number, put in enumerate((os.mkfifo, os.mkdir, lambda path: os.symlink(path, path))):
        package = mil_package(small, X, name=f"model{number}")
        for name in (
            "Data/com.apple.CoreML/weights/weight.bin",
            "Data/com.apple.CoreML/model.mlmodel",
            "Manifest.json",
        ):
            shutil.move(package / name, package / "kept")
            put(package / name)
            with pytest.raises(
                UnreadableArtifact, match="does not exist|cannot be found|has no Manifest.json"
            ):
                open_runner(package, host="reference")
            (package / name).rmdir() if (package / name).is_dir() else (package / name).unlink()
            shutil.move(package / "kept", package / name)


# .pte programs


def test_tables_that_refer_to_themselves():
    data = bytearray(64)
    struct.pack_into("<IiHHHH", data, 0, 8, 0, 8, 8, 4, 0)
    buffer = Buffer(memoryview(bytes(data)), "loop.pte")
    table = buffer.root()
    with pytest.raises(
        UnreadableArtifact,
        match="loop.pte is truncated or corrupt: its tables refer to each other more often|lie outside",
    ):
        while True:
            table = table.table(0) or table


@pytest.mark.parametrize(
    "name",
    ["aten::from_file", "aten::set_.source_Storage", "aten::_linalg_svd.U", "aten::_efficientzerotensor.out"],
)
def test_operators_that_executorch_does_not_have_are_not_torchs(name):
    assert find_kernel(name) is None


def test_batch_norm_with_too_few_channels_does_not_read_beyond_them():
    node = Node(
        "aten::_native_batch_norm_legit_no_training.out",
        {},
        tuple(Value(name, "float32", ()) for name in "abc"),
        "norm",
    )
    arguments = {
        "input": torch.ones(1, 8, 4, 4),
        "weight": torch.ones(8),
        "bias": torch.ones(8),
        "running_mean": torch.ones(0),
        "running_var": torch.ones(8),
        "momentum": 0.1,
        "eps": 1e-5,
    }
    with pytest.raises(
        ValueError, match=r"running_mean is float32 \[0\], the input \[1, 8, 4, 4\] has 8 channels"
    ):
        CHECKS["_native_batch_norm_legit_no_training"](arguments)
    from cidermill.validation.pte import aten_ops

    graph = Graph((), ("a",), (Node(node.op, arguments, node.outputs, "norm"),))
    with pytest.raises(OperatorFailed, match="running_mean is"):
        interpret(graph, aten_ops.call, {})


# bench/fuzz.py


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, str(BENCH))
    try:
        spec = importlib.util.spec_from_file_location("fuzz", BENCH / "fuzz.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["fuzz"] = module
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(BENCH))


def misbehave(index):
    if index == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if index == 2:
        time.sleep(60)
    if index == 3:
        os._exit(3)
    return "ran", ""


def test_the_script_notices_crashes_and_hangs(fuzz):
    outcomes = {
        outcome.index: outcome for outcome in fuzz.run_jobs(misbehave, range(8), workers=2, seconds=2)
    }
    assert {index: outcome.kind for index, outcome in outcomes.items() if not outcome.clean} == {
        1: "crash: SIGSEGV",
        2: "hang",
        3: "crash: exit 3",
    }
    assert len(outcomes) == 8


def test_the_script_notices_tracebacks_and_refusals_of_the_allocator(fuzz):
    def allocate():
        return torch.empty(1 << 60)

    def wrapped():
        try:
            allocate()
        except RuntimeError as error:
            raise OperatorFailed("operator x failed") from error

    assert fuzz.attempt(lambda: {}["x"])[0] == "dirty: KeyError"
    assert fuzz.attempt(wrapped)[0] == "over memory"
    assert fuzz.attempt(lambda: "ran") == ("ran", "")


def test_a_seed_makes_the_same_mutants(fuzz, mil_package, tmp_path):
    healthy = tmp_path / "healthy"
    shutil.copytree(mil_package(small, X), healthy / "model.mlpackage")
    for index in range(20):
        trees = []
        for name in ("a", "b"):
            fuzz.make([healthy], 3, index, tmp_path / name)
            trees.append(
                {
                    str(path.relative_to(tmp_path / name)): path.read_bytes()
                    for path in sorted((tmp_path / name).rglob("*"))
                    if path.is_file() and not path.is_symlink() and "outside" not in str(path)
                }
            )
        assert trees[0] == trees[1]


def test_a_sample_of_damaged_files_ends_in_order(tmp_path):
    command = [
        sys.executable,
        str(BENCH / "fuzz.py"),
        "--files",
        "200",
        "--seed",
        "7",
        "--quick",
        "--keep",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "0 that ended otherwise than they should" in done.stdout
