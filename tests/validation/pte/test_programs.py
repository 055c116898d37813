"""Several methods, buffers that they keep and share, data files, Core ML delegates, and runs without
rounding."""

import json
import logging
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from cidermill.models.errors import UnreadableArtifact, UnsupportedOperators, UserError
from cidermill.validation import open_runner
from cidermill.validation.pte.coreml_read import unflatten
from cidermill.validation.pte.read import open_program
from tests.validation.pte.test_read import quick_lowering

X = torch.linspace(-1, 1, 6).reshape(2, 3)


def lowered(modules, inputs, path, config=None, partitioner=None, specs=None):
    """Programs {method: module} of bare ExecuTorch, written to `path` with a data file beside it, where the
    configuration asks for one."""
    handlers = list(logging.root.handlers)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"), quick_lowering():
            from executorch.exir import EdgeCompileConfig, to_edge

            exported = {name: torch.export.export(module.eval(), inputs) for name, module in modules.items()}
            edge = to_edge(exported, compile_config=EdgeCompileConfig(_check_ir_validity=False))
            edge = edge if partitioner is None else edge.to_backend(partitioner())
            program = edge.to_executorch(config)
    finally:
        logging.disable(logging.NOTSET)
        logging.root.handlers[:] = handlers
    path.write_bytes(program.buffer)
    program.write_tensor_data_to_file(str(path.parent))
    return path


class Reader(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(3, 3)
        self.register_buffer("total", torch.zeros(2, 3))

    def forward(self, x):
        self.total.mul_(1)  # a buffer that is not changed is a constant
        return self.linear(x) + self.total


class Writer(torch.nn.Module):
    """Methods share the buffers that have one name."""

    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(2, 3))

    def forward(self, x):
        self.total.add_(x)
        return self.total * 1


class Only(torch.nn.Module):
    def forward(self, x):
        return x * 2


@pytest.fixture(scope="module")
def two_methods(tmp_path_factory):
    from executorch.exir import ExecutorchBackendConfig
    from executorch.exir.passes import MemoryPlanningPass

    config = ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass(share_mutable_buffers=True))
    return lowered(
        {"read": Reader(), "write": Writer()}, (X,), tmp_path_factory.mktemp("methods") / "two.pte", config
    )


def output(runner, *inputs, **options):
    (result,) = runner(list(inputs), **options).values()
    return result


def test_a_method_is_chosen_by_name(two_methods):
    np.testing.assert_allclose(
        output(open_runner(two_methods, function="read"), X), Reader()(X).detach(), rtol=1e-5
    )
    np.testing.assert_array_equal(output(open_runner(two_methods, function="write"), X), X)


@pytest.mark.parametrize("name", ["main", "forward", "nothing"])
def test_a_method_that_is_not_there_is_refused_with_the_names(two_methods, name):
    with pytest.raises(
        UnreadableArtifact,
        match=f"has no method '{name}'; it has 'read', 'write'.\nName one of these methods",
    ):
        open_runner(two_methods, function=name)


def test_main_stands_for_the_only_method(tmp_path):
    assert open_program(lowered({"encode": Only()}, (X,), tmp_path / "only.pte")).method == "encode"


def test_without_a_state_every_call_starts_as_loaded(two_methods):
    runner = open_runner(two_methods, function="write")
    for _ in range(2):
        np.testing.assert_array_equal(output(runner, X), X)


def test_a_state_is_read_and_changed_and_shared_between_methods(two_methods):
    write, read = (open_runner(two_methods, function=name) for name in ("write", "read"))
    state = write.make_state()
    np.testing.assert_array_equal(output(write, X, state=state), X)
    second = output(write, X, state=state)
    np.testing.assert_allclose(second, 2 * X, rtol=1e-6)
    np.testing.assert_allclose(output(read, X, state=state), (Reader()(X) + 2 * X).detach(), rtol=1e-5)
    output(write, X, state=state)
    np.testing.assert_allclose(second, 2 * X, rtol=1e-6)  # a result is the caller's own


def test_a_state_of_another_shape_is_refused(two_methods):
    runner = open_runner(two_methods, function="write")
    with pytest.raises(
        UserError, match=r"the state's shared_2_0 does not fit write, which has float32 \[2, 3\]"
    ):
        runner([X], state={"shared_2_0": torch.zeros(3, 2)})


def test_buffers_have_the_models_names_where_the_file_has_them(tmp_path):
    from executorch.exir import ExecutorchBackendConfig

    config = ExecutorchBackendConfig(emit_mutable_buffer_names=True)
    program = open_program(lowered({"forward": Reader()}, (X,), tmp_path / "named.pte", config))
    assert [value.name for value in program.states] == ["total"]


@pytest.fixture(scope="module")
def with_data(tmp_path_factory):
    from executorch.exir import ExecutorchBackendConfig

    path = tmp_path_factory.mktemp("data") / "linear.pte"
    lowered({"forward": Reader().linear}, (X,), path, ExecutorchBackendConfig(external_constants=True))
    return path


def test_weights_are_read_from_the_data_file_beside_the_program(with_data, tmp_path):
    data = with_data.parent / "_default_external_constant.ptd"
    for name in (data.name, "linear.ptd", "linear.weights.ptd", None):
        folder = tmp_path / str(name)
        folder.mkdir()
        (folder / "linear.pte").write_bytes(with_data.read_bytes())
        if name:
            (folder / name).write_bytes(data.read_bytes())
        runner = open_runner(folder / "linear.pte", data=None if name else [data])
        np.testing.assert_allclose(output(runner, X), Reader().linear(X).detach(), rtol=1e-5)


def test_a_program_without_its_data_file_says_what_is_missing(with_data, tmp_path):
    (tmp_path / "linear.pte").write_bytes(with_data.read_bytes())
    with pytest.raises(
        UnreadableArtifact,
        match="keeps the weight '(weight|bias)' in another file, and no data file was found",
    ):
        open_runner(tmp_path / "linear.pte")
    with pytest.raises(UnreadableArtifact, match="cannot be read as a .ptd data file"):
        open_runner(tmp_path / "linear.pte", data=[tmp_path / "missing.ptd"])
    with pytest.raises(UserError, match="data must be a list of .ptd files"):
        open_runner(tmp_path / "linear.pte", data="linear.ptd")


def test_a_data_file_of_another_model_is_refused(with_data, tmp_path):
    from executorch.exir import ExecutorchBackendConfig

    other = lowered(
        {"forward": torch.nn.Linear(3, 5)},
        (X,),
        tmp_path / "other.pte",
        ExecutorchBackendConfig(external_constants=True),
    )
    with pytest.raises(
        UnreadableArtifact,
        match=r"needs the weight '(weight|bias)' as float32 .*, the data file has float32 \[5",
    ):
        open_runner(with_data, data=[other.parent / "_default_external_constant.ptd"])


def test_truncated_data_files_are_unreadable(with_data, tmp_path):
    content = (with_data.parent / "_default_external_constant.ptd").read_bytes()
    for size in range(1, len(content), 37):
        (tmp_path / "part.ptd").write_bytes(content[:size])
        with pytest.raises(UnreadableArtifact):
            open_runner(with_data, data=[tmp_path / "part.ptd"])


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(3, 4)

    def forward(self, x):
        return torch.softmax(self.linear(x), -1), (x * 1.5).sum(1)


@pytest.fixture(scope="module")
def coreml_program(tmp_path_factory):
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    return lowered(
        {"forward": Classifier()},
        (X,),
        tmp_path_factory.mktemp("coreml") / "coreml.pte",
        partitioner=CoreMLPartitioner,
    )


def test_a_core_ml_delegate_runs_as_an_ml_program(coreml_program):
    runner, exact, seen = open_runner(coreml_program), open_runner(coreml_program, precision="float32"), []
    assert [node.op for node in runner.graph.nodes] == [
        "delegate:CoreMLBackend"
    ] and runner.precision == "float16"
    results, wanted = runner([X], tap=lambda name, value: seen.append(name)), Classifier()(X)
    for result, unrounded, want in zip(results.values(), exact([X]).values(), wanted, strict=True):
        np.testing.assert_allclose(result, want.detach(), atol=2e-3)
        np.testing.assert_allclose(unrounded, want.detach(), rtol=1e-3)
        assert not np.array_equal(result, unrounded)
    assert seen and all(name.startswith(("d0.", "t")) for name in seen)
    assert not [entry for entry in os.listdir("/tmp") if entry.startswith("cidermill-delegate-")]


def container(files, nodes=None):
    """What executorchcoreml.flatten_directory_contents writes, with a list of nodes of our own."""
    content = b"".join(files.values())
    return memoryview(content + json.dumps({"nodes": nodes}).encode()[::-1])


def entry(offset, size):
    return {"name": "x", "kind": 0, "dataRegion": {"offset": offset, "size": size}, "children": {}}


@pytest.mark.parametrize("nodes, message", [
    ([entry(0, 3), {"kind": 1, "children": {"../x": 0}}], "it has a file called '../x'"),
    ([entry(0, 3), {"kind": 1, "children": {"..": 0}}], "it has a file called '..'"),
    ([entry(0, 3), {"kind": 1, "children": {"/etc": 0}}], "it has a file called '/etc'"),
    ([entry(0, 999), {"kind": 1, "children": {"x": 0}}], "x lies at 0 with 999 bytes, outside of its"),
    ([entry(-1, 2), {"kind": 1, "children": {"x": 0}}], "x lies at -1"),
    ([{"kind": 1, "children": {"x": 0}}], "refer to node 0 of 1 more than once"),
    ([entry(0, 3), {"kind": 1, "children": {"x": 7}}], "refer to node 7 of 2"),
])  # fmt: skip
def test_core_ml_containers_that_reach_outside_are_refused(nodes, message):
    with pytest.raises(UnreadableArtifact, match=message):
        list(unflatten(container({"x": b"abc"}, nodes), "a delegate"))


def test_core_ml_containers_are_unpacked_as_they_were_packed(tmp_path):
    from executorch.backends.apple.coreml import executorchcoreml

    (tmp_path / "in" / "folder").mkdir(parents=True)
    (tmp_path / "in" / "folder" / "wörter.bin").write_bytes(bytes(range(200)))
    (tmp_path / "in" / "metadata.json").write_text("{}")
    packed = bytes(executorchcoreml.flatten_directory_contents(str(tmp_path / "in")))
    files = {name: bytes(content) for name, content in unflatten(memoryview(packed), "a delegate")}
    assert files == {"metadata.json": b"{}", "folder/wörter.bin": bytes(range(200))}
    for size in range(0, len(packed), 11):
        with pytest.raises(UnreadableArtifact, match="a delegate cannot be read: its list of files"):
            list(unflatten(memoryview(packed[:size]), "a delegate"))


def test_another_backend_is_refused_by_name(tmp_path):
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    path = lowered({"forward": Classifier()}, (X,), tmp_path / "xnnpack.pte", partitioner=XnnpackPartitioner)
    with pytest.raises(UnsupportedOperators, match="XnnpackBackend: a delegate for another backend"):
        open_runner(path)([X])


class Large(torch.nn.Module):
    def forward(self, x):
        return torch.sqrt(x * x)


def test_overflow_in_half_precision_does_not_happen_without_rounding(tmp_path):
    """300 * 300 is beyond half precision; the same program without rounding shows what the overflow hides."""
    x = torch.tensor([300.0, 2.0]).half()
    path = lowered({"forward": Large()}, (x,), tmp_path / "large.pte")
    assert output(open_runner(path), x).tolist() == [np.inf, 2.0]
    exact = output(open_runner(path, precision="float32"), x)
    assert exact.dtype == np.float32 and exact.tolist() == [300.0, 2.0]


def test_a_half_delegate_without_rounding_is_float32(tmp_path):
    script = f"""
import torch, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from pathlib import Path
import test_read as t
function = t.Function(lambda x: torch.sqrt(x * x) + 1 / 3)
t.lower(function, (torch.tensor([300.0, 2.0]),), Path({str(tmp_path / "half.pte")!r}), mps=True)
"""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], check=True, capture_output=True, timeout=120
    )
    x, seen = torch.tensor([300.0, 2.0]), {}
    rounded = output(
        open_runner(tmp_path / "half.pte"), x, tap=lambda name, value: seen.update({name: value.dtype})
    )
    assert rounded[0] == np.inf and torch.float16 in seen.values()
    (delegate,) = open_program(tmp_path / "half.pte").graph.nodes
    # as it is computed, not as the file declares it
    assert {value.dtype for value in delegate.blocks[0].nodes[1].outputs} == {"float16"}
    exact = output(open_runner(tmp_path / "half.pte", precision="float32"), x)
    np.testing.assert_allclose(exact, x + 1 / 3, rtol=3e-4)  # the constant is stored in half precision


class Sliced(torch.nn.Module):
    def forward(self, x):
        return x[1:] * 2


def test_dynamic_inputs_up_to_their_bound(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from executorch.exir import EdgeCompileConfig, to_edge

        shapes = ({0: torch.export.Dim("rows", min=3, max=5)},)
        exported = torch.export.export(Sliced(), (torch.ones(4, 3),), dynamic_shapes=shapes)
        edge = to_edge(exported, compile_config=EdgeCompileConfig(_check_ir_validity=False))
        (tmp_path / "dynamic.pte").write_bytes(edge.to_executorch().buffer)
    runner = open_runner(tmp_path / "dynamic.pte")
    for rows in (3, 5):
        x = torch.ones(rows, 3)
        np.testing.assert_array_equal(output(runner, x), 2 * x[1:])
    with pytest.raises(
        UserError, match=r"input_0 is \[6, 3\], the program was exported for at most \[5, 3\]"
    ):
        runner([torch.ones(6, 3)])


def test_constants_share_the_files_memory(with_data):
    weight = next(iter(open_program(with_data).graph.constants.values()))
    assert weight().data_ptr() == weight().data_ptr()
