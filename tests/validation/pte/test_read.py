""".pte programs: reading and running them against torch and, for portable programs, against ExecuTorch's own
runtime."""

import logging
import random
import subprocess
import sys
import warnings
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from cidermill.converters.mps.edge_passes import lean_passes
from cidermill.models.errors import UnreadableArtifact, UnsupportedOperators
from cidermill.models.patched import operators_listed_once
from cidermill.models.remembered_overrides import remembered_overrides
from cidermill.validation.graph import OperatorFailed
from cidermill.validation.pte.aten_ops import find_kernel
from cidermill.validation.pte.read import open_program
from cidermill.validation.pte.run import run_program


@contextmanager
def quick_lowering():
    """The same bytes in half the time (tests/converters/mps/test_edge_passes.py)."""
    with operators_listed_once(), remembered_overrides(), lean_passes():
        yield


def lower(module, inputs, path, mps=None, portable_methods=None, config=None, dynamic_shapes=None):
    """Export and lower a module with bare ExecuTorch. mps: None for portable kernels, else whether the
    delegate computes in half."""
    logging.disable(logging.CRITICAL)
    handlers = list(logging.root.handlers)
    try:
        with warnings.catch_warnings(action="ignore"), quick_lowering():
            from executorch.exir import EdgeCompileConfig, to_edge

            program = torch.export.export(module.eval(), inputs, dynamic_shapes=dynamic_shapes)
            edge = to_edge(
                program,
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
                constant_methods=portable_methods,
            )
            if mps is not None:
                edge = edge.to_backend(partitioner(mps))
            path.write_bytes(edge.to_executorch(config).buffer)
    finally:
        logging.disable(logging.NOTSET)
        logging.root.handlers[:] = handlers
    return path


def partitioner(half):
    from executorch.backends.apple.mps.operators.node_visitor import NodeVisitor
    from executorch.backends.apple.mps.partition import MPSPartitioner
    from executorch.exir.backend.compile_spec_schema import CompileSpec

    NodeVisitor._tensor_to_id.clear()  # the serializer keeps ids of models lowered earlier in the process
    return MPSPartitioner(compile_specs=[CompileSpec("use_fp16", bytes([half]))])


def run(path, inputs, tap=None):
    program = open_program(path)
    return list(
        run_program(
            program, dict(zip([value.name for value in program.inputs], inputs, strict=True)), tap
        ).values()
    )


def executorch_runtime(path, inputs):
    from executorch.runtime import Runtime

    # the runtime copies neither the bytes nor the program: both must outlive the method
    data = path.read_bytes()
    program = Runtime.get().load_program(data)
    method = program.load_method("forward")
    return [output.clone() for output in method.execute(list(inputs))]


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class Block(torch.nn.Module):
    """Convolution, batch norm, pooling, attention-like products and a classifier: most kinds of arguments at
    once."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8)
        self.layer_norm, self.linear = torch.nn.LayerNorm(8), torch.nn.Linear(8, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2, 2).flatten(2).transpose(1, 2)
        x = x + torch.softmax(x @ x.transpose(1, 2) * 0.3, -1) @ self.layer_norm(x)
        return self.linear(F.gelu(x).mean(1))


IMAGE = (torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
X, Y, IDS = (
    torch.linspace(-2, 2, 24).reshape(2, 3, 4),
    torch.linspace(3, -1, 24).reshape(2, 3, 4),
    torch.tensor([[0, 2], [1, 1]]),
)

PORTABLE = {
    "arithmetic": (lambda x, y: (x + 2 * y, x * y - 1, x / (y.abs() + 1)), (X, Y)),
    "split": (lambda x: x.split([1, 2], 1), (X,)),
    "unbind": (lambda x: torch.unbind(x, 1), (X,)),
    "chunks-cat": (lambda x: torch.cat(x.chunk(2, -1)[::-1], 1), (X,)),
    "index": (lambda x, i: (x[0][i % 2, i], x[:, i]), (X, IDS)),
    "index-put": (lambda x: torch.ops.aten.index_put(x, [torch.tensor([1])], torch.zeros(3, 4)), (X,)),
    "where": (lambda x, y: torch.where(x > y, x, float("-inf")), (X, Y)),
    "reductions": (lambda x: (x.sum(1), x.mean((0, 2)), x.amax(-1), x.var(1), x.argmax(1), x.any(2)), (X,)),
    "topk": (lambda x: tuple(torch.topk(x, 2, -1)), (X,)),
    "casts": (lambda x: (x.to(torch.int32), (x > 0).to(torch.float32), x.half()), (X,)),
    "views": (lambda x: (x.permute(2, 0, 1).reshape(4, 6), x[None].expand(2, 2, 3, 4), x.squeeze(0)), (X,)),
    "pad-slice": (lambda x: F.pad(x[:, ::2, 1:], (1, 0, 0, 2), value=0.5), (X,)),
    "embedding": (lambda i: F.embedding(i, torch.arange(12.0).reshape(3, 4)), (IDS,)),
    "creation": (lambda x: x + torch.arange(4) + torch.full((3, 1), 2.0) + torch.ones_like(x), (X,)),
    "norms": (lambda x: F.layer_norm(x, (4,)) + F.group_norm(x, 3), (X,)),
    "scalar-output": (lambda x: x.sum(), (X,)),
    "input-as-output": (lambda x: (x, x + 1), (X,)),
    "cumsum": (lambda x: x.cumsum(1), (X,)),
    "copy": (lambda x: torch.zeros(2, 3, 4).copy_(x), (X,)),
}  # fmt: skip


def assert_all_close(results, wanted, tolerance=1e-5):
    wanted = list(wanted) if isinstance(wanted, (tuple, list)) else [wanted]
    for result, want in zip(results, wanted, strict=True):
        torch.testing.assert_close(result, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PORTABLE)
def test_portable_programs_compute_what_torch_computes(name, tmp_path):
    function, inputs = PORTABLE[name]
    path = lower(Function(function), inputs, tmp_path / "model.pte")
    assert_all_close(run(path, inputs), function(*inputs))


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    return lower(Block(), IMAGE, tmp_path_factory.mktemp("pte") / "block.pte")


def test_a_portable_model_agrees_with_the_executorch_runtime(block):
    script = (  # its own process: the runtime prints and keeps state
        f"import sys; sys.path.insert(0, {str(__file__)!r}.rsplit('/', 1)[0])\n"
    )
    script += "import torch, test_read as t, pathlib\n"
    script += f"p = pathlib.Path({str(block)!r})\n"
    script += (
        "torch.testing.assert_close(t.run(p, t.IMAGE)[0], t.executorch_runtime(p, t.IMAGE)[0], rtol=1e-5,"
        " atol=1e-5)"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], check=True, capture_output=True, timeout=120
    )


def test_a_portable_model_agrees_with_torch(block):
    assert_all_close(run(block, IMAGE), Block().eval()(*IMAGE))


@pytest.mark.parametrize("half, tolerance", [(False, 1e-5), (True, 2e-3)])
def test_a_delegated_model_agrees_with_torch(half, tolerance, tmp_path):
    path = lower(Block(), IMAGE, tmp_path / "model.pte", mps=half)
    program = open_program(path)
    assert [node.op for node in program.graph.nodes] == ["delegate:MPSBackend"]
    assert program.precision == ("float16" if half else "float32")
    result, want = run(path, IMAGE)[0], Block().eval()(*IMAGE)
    torch.testing.assert_close(result, want, rtol=tolerance, atol=tolerance)
    assert torch.equal(result, want) is False or not half  # half precision must show


def test_delegates_and_kernels_mix(tmp_path):
    function = lambda x: torch.relu(torch.cumsum(x * 2, 1) + 1)
    path = lower(Function(function), (X,), tmp_path / "model.pte", mps=False)
    ops = [node.op for node in open_program(path).graph.nodes]
    assert ops.count("delegate:MPSBackend") == 2 and "aten::cumsum.out" in ops
    assert_all_close(run(path, (X,)), function(X))


@pytest.mark.parametrize("inline", [True, False])
def test_delegate_data_is_read_inline_and_from_segments(inline, tmp_path):
    from executorch.exir import ExecutorchBackendConfig

    config = ExecutorchBackendConfig(extract_delegate_segments=not inline)
    path = lower(Block(), IMAGE, tmp_path / "model.pte", mps=False, config=config)
    assert_all_close(run(path, IMAGE), Block().eval()(*IMAGE))


@pytest.mark.parametrize("sign", [1, -1])
def test_both_branches_of_a_condition(sign, tmp_path):
    def choose(x):
        return torch.cond(x.sum() > 0, lambda x: x * 2 + 1, lambda x: x - 3, (x,))

    path = lower(Function(choose), (X + 1,), tmp_path / "model.pte")
    assert "jump_false" in [node.op for node in open_program(path).graph.nodes]
    inputs = (X + sign,)
    assert_all_close(run(path, inputs), choose(*inputs))


def test_sizes_computed_at_run_time(tmp_path):
    function = lambda x: x.reshape(x.shape[0] * 3, 4) * x.shape[0]
    shapes = ({0: torch.export.Dim("batch", min=1, max=8)},)
    path = lower(Function(function), (X,), tmp_path / "model.pte", dynamic_shapes=(shapes,))
    for batch in (2, 5):
        inputs = (X[:1].repeat(batch, 1, 1),)
        assert_all_close(run(path, inputs), function(*inputs))


def test_names_come_from_constant_methods(tmp_path):
    names = {"cidermill_inputs": ["left", "right"], "cidermill_outputs": ["total"]}
    path = lower(Function(torch.add), (X, Y), tmp_path / "model.pte", portable_methods=names)
    program = open_program(path)
    assert [value.name for value in program.inputs] == ["left", "right"]
    assert_all_close([run_program(program, {"right": Y, "left": X})["total"]], X + Y)


def test_names_are_numbered_where_the_file_has_none(tmp_path):
    program = open_program(lower(Function(torch.add), (X, Y), tmp_path / "model.pte"))
    assert [value.name for value in program.inputs + program.outputs] == ["input_0", "input_1", "output_0"]
    assert program.inputs[0].shape == (2, 3, 4) and program.inputs[0].dtype == "float32"


def test_one_name_for_two_outputs_is_not_used(tmp_path):
    path = lower(
        Function(lambda x: (x + 1, x - 1)),
        (X,),
        tmp_path / "model.pte",
        portable_methods={"cidermill_outputs": ["same"] * 2},
    )
    assert [value.name for value in open_program(path).outputs] == ["output_0", "output_1"]


def test_a_tap_sees_values_inside_delegates(tmp_path):
    seen = {}
    run(
        lower(Block(), IMAGE, tmp_path / "model.pte", mps=True),
        IMAGE,
        lambda name, value: seen.setdefault(name, value),
    )
    assert len(seen) > 10 and all(name.startswith(("d0.v", "t", "output")) for name in seen)


def test_every_instruction_names_its_operator_and_its_arguments(block):
    nodes = {node.op: node for node in open_program(block).graph.nodes}
    assert {"input", "weight", "stride", "groups"} <= set(nodes["aten::convolution.out"].inputs)
    assert nodes["aten::convolution.out"].outputs[0].shape == (1, 8, 8, 8)


def test_a_method_that_is_not_there(block):
    with pytest.raises(UnreadableArtifact, match="has no method 'backward'; it has 'forward'"):
        open_program(block, "backward")


def test_files_that_are_no_programs(tmp_path):
    for content in (b"", b"text", b"\0" * 4 + b"EX99" + b"\0" * 64, random.Random(0).randbytes(500)):
        (tmp_path / "model.pte").write_bytes(content)
        with pytest.raises(
            UnreadableArtifact, match="cannot be read as an ExecuTorch program|is truncated or corrupt"
        ):
            open_program(tmp_path / "model.pte")
    with pytest.raises(UnreadableArtifact, match="cannot be read as an ExecuTorch program"):
        open_program(tmp_path / "missing.pte")
    with pytest.raises(UnreadableArtifact, match="cannot be read as an ExecuTorch program"):
        open_program(tmp_path)


def test_weights_laid_out_channels_last(tmp_path):
    module = torch.nn.Bilinear(3, 3, 4)  # any module with a weight; only its layout matters here
    module.weight = torch.nn.Parameter(torch.rand(4, 3, 3, 3).to(memory_format=torch.channels_last))
    module.forward = lambda x: x.sum() + module.weight
    path = lower(module, IMAGE, tmp_path / "model.pte")
    assert_all_close(run(path, IMAGE), module(*IMAGE))


def test_weights_in_another_file_are_refused(tmp_path):
    from executorch.exir import ExecutorchBackendConfig

    path = lower(
        torch.nn.Linear(4, 2),
        (X,),
        tmp_path / "model.pte",
        config=ExecutorchBackendConfig(external_constants=True),
    )
    with pytest.raises(UnreadableArtifact, match="keeps the weight '(weight|bias)' in another file"):
        open_program(path)


def test_truncated_programs_are_unreadable(block, tmp_path):
    data = block.read_bytes()
    for size in range(1, len(data) - 4096, len(data) // 60):
        (tmp_path / "model.pte").write_bytes(data[:size])
        with pytest.raises(UnreadableArtifact, match="is truncated or corrupt"):
            open_program(tmp_path / "model.pte")


def test_flipped_bits_never_crash_the_reader(block, tmp_path):
    data, rng = block.read_bytes(), random.Random(0)
    for _ in range(200):
        broken = bytearray(data)
        broken[rng.randrange(8, min(len(data), 20000))] ^= 1 << rng.randrange(8)
        (tmp_path / "model.pte").write_bytes(broken)
        try:
            open_program(tmp_path / "model.pte")
        except UnreadableArtifact as error:
            assert error.hint


def test_unknown_operators_are_all_named_at_once(block, tmp_path):
    data = (
        block.read_bytes()
        .replace(b"aten::gelu", b"aten::gxxx")
        .replace(b"aten::convolution", b"mine::convolution")
    )
    (tmp_path / "model.pte").write_bytes(data)
    with pytest.raises(
        UnsupportedOperators,
        match="cannot express 2 operators(.|\n)*mine::convolution.out(.|\n)*aten::gxxx.out",
    ):
        run(tmp_path / "model.pte", IMAGE)


def test_a_failing_operator_is_named(block):
    with pytest.raises(OperatorFailed, match="aten::convolution.out .instruction_0"):
        run(block, (torch.rand(1, 4, 8, 8),))


def test_operators_that_open_files_are_not_run():
    assert find_kernel("aten::from_file.out") is None and find_kernel("aten::from_file") is None
    assert find_kernel("aten::add.out").outs == ("out",) and find_kernel("aten::no_such_thing.out") is None


@pytest.mark.parametrize("axis", [0, 1])
def test_quantized_weights_of_portable_programs(axis):
    weight, scales, zeros = (
        torch.linspace(-3, 3, 12).reshape(3, 4),
        torch.rand(4)[: 3 + axis] + 0.1,
        torch.arange(4)[: 3 + axis],
    )
    codes = find_kernel("quantized_decomposed::quantize_per_channel.out").run(
        (), input=weight, scales=scales, zero_points=zeros, axis=axis, quant_min=-128, quant_max=127, dtype=1
    )[0]
    back = find_kernel("quantized_decomposed::dequantize_per_channel.out").run(
        (),
        input=codes,
        scales=scales,
        zero_points=zeros,
        axis=axis,
        quant_min=-128,
        quant_max=127,
        dtype=1,
        out_dtype=None,
    )[0]
    want = torch.dequantize(torch.quantize_per_channel(weight, scales, zeros, axis, torch.qint8))
    torch.testing.assert_close(back, want)
