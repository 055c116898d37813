"""converters/mps/portable.py: what stays outside of the delegate is what ExecuTorch's runtime computes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cidermill.converters.mps.portable import refusal
from cidermill.converters.mps.write import write_pte
from cidermill.models.errors import UnsupportedOperators
from cidermill.quantization.compress import compress
from cidermill.quantization.recipe import parse_recipe
from cidermill.validation import open_runner
from cidermill.validation.graph import resolve
from cidermill.validation.pte.aten_ops import find_kernel
from cidermill.validation.pte.read import open_program
from cidermill.validation.pte.run import OWN, run_program
from tests.converters.mps.test_lower import captured_of, random
from tests.validation.pte.single_kernels import Call, Out, run_by_executorch

HALF, FLOAT, INT, LONG = torch.float16, torch.float32, torch.int32, torch.int64
X, PICKS = torch.ones(2, 4), torch.zeros(2, 4, dtype=LONG)
PLANE, VOLUME = torch.ones(1, 2, 6, 6), torch.ones(1, 2, 4, 4, 4)


def psnr_of(function, recipe, tmp_path, *arrays):
    """Of the saved artifact against torch, in dB."""
    captured = captured_of(function, *arrays)
    write_pte(compress(captured, parse_recipe(recipe)), tmp_path / "m.pte")
    want = function(*(torch.from_numpy(array) for array in arrays)).numpy()
    result = open_runner(tmp_path / "m.pte", host="reference")(list(arrays))["output"]
    assert np.isfinite(result).all()
    error = np.sqrt(np.mean((result.astype(np.float64) - want) ** 2))
    return 20 * np.log10(np.abs(want).max() / max(error, 1e-12))


ONES, FIRST = np.ones(4096, np.float32), np.zeros(4096, np.int32)
SUMS = {  # in half precision, 2048 + 1 is 2048
    "scatter_add": (lambda x, i: torch.zeros(3).scatter_add(0, i.long(), x), ONES, FIRST),
    "index_add": (lambda x, i: torch.zeros(3).index_add(0, i, x), ONES, FIRST),
    "index_put": (lambda x, i: torch.zeros(2, 3).index_put((i, i), x, accumulate=True), ONES, FIRST),
    "index_add between": (
        lambda x, i: torch.zeros(1, 3, 1).index_add(1, i, x[None, :, None]), ONES, FIRST
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SUMS)
def test_sums_outside_the_delegate_are_in_float32(name, tmp_path):
    function, *arrays = SUMS[name]
    assert psnr_of(function, "float16", tmp_path, *arrays) > 60


@pytest.mark.parametrize("shape", [(2, 3, 8), (1, 3, 8, 8), (1, 3, 4, 4, 4)])
def test_instance_norms_are_within_the_delegate(shape, tmp_path):
    """The portable kernel takes E[x^2] - E[x]^2: NaN for high values, zeros for steep ones in half."""
    function = lambda x: F.instance_norm(x, weight=torch.tensor([1.0, 2.0, -0.5]), bias=torch.ones(3))
    assert psnr_of(function, "float32", tmp_path, random(*shape) + 1000) > 60
    assert psnr_of(function, "float16", tmp_path, random(*shape) * 900) > 40
    assert {node.op for node in open_program(tmp_path / "m.pte").graph.nodes} == {"delegate:MPSBackend"}


def test_variances_with_means_and_products_of_all_are_within_the_delegate(tmp_path):
    function = lambda x: torch.cat([*torch.var_mean(x, 1), x.prod().reshape(1)])
    assert psnr_of(function, "float32", tmp_path, random(2, 4)) > 100
    assert psnr_of(function, "float16", tmp_path, random(2, 4)) > 40
    assert {node.op for node in open_program(tmp_path / "m.pte").graph.nodes} == {"delegate:MPSBackend"}


# What kernels refuse: a use of an operator that they take, and the same where something differs


def out(like, dtype=None):
    return Out(dtype or like.dtype, tuple(like.shape))


PAIR = [torch.ones(2, 4), torch.ones(2, 4, dtype=HALF)]
USES = {  # name: (operator, its overload in the runtime, arguments, results, why it is refused)
    "argmax": ("argmax.default", "argmax.out", [X, 1, False], [Out(LONG, (2,))], None),
    "argmax of bool": (
        "argmax.default", "argmax.out", [X > 0, 1, False], [Out(LONG, (2,))], "takes no bool"
    ),
    "topk of bool": (
        "topk.default", "topk.values", [X > 0, 2, 1, True, True],
        [Out(torch.bool, (2, 2)), Out(LONG, (2, 2))], "takes no bool",
    ),
    "scatter": ("scatter.src", "scatter.src_out", [X, 1, PICKS, X], [out(X)], None),
    "scatter by int32": (
        "scatter.src", "scatter.src_out", [X, 1, PICKS.int(), X], [out(X)], "indices in int64, not int32"
    ),
    "scatter of halves": (
        "scatter.src", "scatter.src_out", [X, 1, PICKS, X.half()], [out(X)],
        "takes one type, not float32 and float16",
    ),
    "scatter_add by int32": (
        "scatter_add.default", "scatter_add.out", [X, 1, PICKS.int(), X], [out(X)],
        "indices in int64, not int32",
    ),
    "gather by int32": (
        "gather.default", "gather.out", [X, 1, PICKS.int(), False], [out(X)], "indices in int64, not int32"
    ),
    "index": ("index.Tensor", "index.Tensor_out", [X, [PICKS[0].int()]], [Out(FLOAT, (4, 4))], None),
    "index by int16": (
        "index.Tensor", "index.Tensor_out", [X, [PICKS[0].short()]], [Out(FLOAT, (4, 4))],
        "indices in int64 or int32 or bool or uint8, not int16",
    ),
    "index_put of halves": (
        "index_put.default", "index_put.out", [X, [PICKS[0]], X[:1].half(), False], [out(X)],
        "takes one type, not float32 and float16",
    ),
    "masked_scatter": (
        "masked_scatter.default", "masked_scatter.out", [X, X > 0, X], [out(X)], None
    ),
    "masked_scatter by numbers": (
        "masked_scatter.default", "masked_scatter.out", [X, X.int(), X], [out(X)],
        "indices in bool, not int32",
    ),
    "max pool of a volume": (
        "max_pool2d_with_indices.default", "max_pool2d_with_indices.out",
        [VOLUME, [2, 2], [2, 2], [0, 0], [1, 1], False],
        [Out(FLOAT, (1, 2, 4, 2, 2)), Out(LONG, (1, 2, 4, 2, 2))], "takes 3 or 4 axes, not 5",
    ),
    "convolution": (
        "convolution.default", "convolution.out",
        [PLANE, torch.ones(3, 2, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1],
        [Out(FLOAT, (1, 3, 6, 6))], None,
    ),
    "convolution of a volume": (
        "convolution.default", "convolution.out",
        [VOLUME, torch.ones(3, 2, 3, 3, 3), None, [1] * 3, [1] * 3, [1] * 3, False, [0] * 3, 1],
        [Out(FLOAT, (1, 3, 4, 4, 4))], "takes 3 or 4 axes, not 5",
    ),
    "convolution by halves": (
        "convolution.default", "convolution.out",
        [PLANE, torch.ones(3, 2, 3, 3).half(), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1],
        [Out(FLOAT, (1, 3, 6, 6))], "takes one type, not float32 and float16",
    ),
    "grid of halves": (
        "grid_sampler_2d.default", "grid_sampler_2d.out",
        [PLANE, torch.zeros(1, 3, 3, 2).half(), 0, 0, False],
        [Out(FLOAT, (1, 2, 3, 3))], "takes one type, not float32 and float16",
    ),
    "logit": ("logit.default", "logit.out", [X / 2, None], [out(X)], None),
    "logit of halves": (
        "logit.default", "logit.out", [X.half() / 2, None], [out(X, HALF)], "gives no float16"
    ),
    "var of integers": (
        "var.correction", "var.correction_out", [PICKS, [1], 1, False], [Out(FLOAT, (2,))],
        "takes floating-point numbers, not int64",
    ),
    "amax of bool": ("amax.default", "amax.out", [X > 0, [1], False], [Out(torch.bool, (2,))], None),
    "max of bool": (
        "max.dim", "max.dim_max", [X > 0, 1, False], [Out(torch.bool, (2,)), Out(LONG, (2,))], None
    ),
    "slice_scatter with steps": (
        "slice_scatter.default", "slice_scatter.out", [X, X[:, :2].contiguous(), 1, 0, 4, 2], [out(X)], None
    ),
    "unsigned of 16 bits": (
        "amax.default", "amax.out", [X.to(torch.uint16), [1], False], [Out(torch.uint16, (2,))],
        "takes no uint16",
    ),
    "many axes": (
        "amax.default", "amax.out", [X.reshape([1] * 15 + [2, 4]), [16], False],
        [Out(FLOAT, (1,) * 15 + (2,))], "16 axes at most, not 17",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    calls = [Call(f"aten::{kernel}", [*given, *outs]) for _, kernel, given, outs, _ in USES.values()]
    return dict(zip(USES, run_by_executorch(calls, tmp_path_factory.mktemp("uses"))))


def node_of(op, arguments, outs):
    """The use of an operator as a node of a graph."""
    graph = torch.fx.Graph()

    def placed(argument):
        if not isinstance(argument, torch.Tensor):
            return argument
        placeholder = graph.placeholder("x")
        placeholder.meta["val"] = argument
        return placeholder

    name, _, overload = op.partition(".")
    target = getattr(getattr(torch.ops.aten, name), overload)
    node = graph.call_function(target, tuple(torch.fx.node.map_aggregate(arguments, placed)))
    values = [torch.empty(item.shape, dtype=item.dtype) for item in outs]
    node.meta["val"] = values[0] if len(values) == 1 else tuple(values)
    return node


@pytest.mark.parametrize("name", USES)
def test_what_is_refused_is_what_the_runtime_refuses(answers, name):
    op, _, given, outs, reason = USES[name]
    said = refusal(node_of(op, given, outs))
    assert isinstance(answers[name], str) == (reason is not None), answers[name]
    assert (said is None) if reason is None else (reason in said)


def test_a_kernel_that_refuses_is_named_with_its_reason(tmp_path, monkeypatch):
    captured = captured_of(lambda x: x.topk(2)[0], random(2, 4))
    monkeypatch.setitem(refusal.__globals__["LIMITS"], "topk", (lambda node: "the kernel takes nothing",))
    with pytest.raises(UnsupportedOperators, match=r"aten.topk.default \(.* \(the kernel takes nothing\)"):
        write_pte(compress(captured, parse_recipe("float16")), tmp_path / "m.pte")


# The portable part of saved programs in the real runtime


def outside(x, grid, picks):
    """Operators that no node of MPS computes, one after another, and what lies between them."""
    index = picks.long()
    values, places = torch.topk(x, 3)
    pooled, where = F.max_pool2d(x[None, None], 2, return_indices=True)
    sampled = F.grid_sample(x[None, None], grid, align_corners=False)
    apart = torch.stack([x, x * 2], 1)[index[:, 0], :, index[:, 1]]
    return (
        values * 2, places, x.argmax(1), x.amax(0), *x.max(1), x.min(), pooled, where, sampled, apart,
        torch.zeros_like(x).scatter_add(1, index, x[:, :2]),
        torch.zeros_like(x).index_put((index[:, 0], index[:, 1]), x[:, 0] + 1, accumulate=True),
        x.masked_scatter(x > 0, x.flip(0)), x.slice_scatter(x[:, :3], 1, 0, 6, 2),
        (x * 9).int().scatter(1, index, 7),
        torch.div(x, 0.3, rounding_mode="trunc"), x.fmod(x.flip(0) + 3),
    )  # fmt: skip


def portable_calls(path, inputs):
    """Every instruction that is not a delegate's, on the numbers that it gets in a run of the whole program.
    -> [(its call, what our runner computes)]"""
    program, values = open_program(path), {}
    names = [value.name for value in program.inputs]
    values.update(zip(names, inputs, strict=True))
    values.update({name: decode() for name, decode in program.graph.constants.items()})
    run_program(program, dict(values), tap=lambda name, value: values.setdefault(name, value))
    calls = []
    for node in program.graph.nodes:
        if node.op in OWN or node.op.startswith("executorch_prim"):
            continue
        kernel, results = find_kernel(node.op), iter(node.outputs)
        arguments = [
            out_of(next(results)) if name in kernel.outs else resolve(node.inputs[name], values)
            for name in kernel.parameters
        ]
        calls.append((Call(node.op, arguments), [values[value.name] for value in node.outputs]))
    return calls


def out_of(value):
    return Out(getattr(torch, value.dtype), value.fixed_shape)


@pytest.mark.parametrize("recipe", ["float16", pytest.param("float32", marks=pytest.mark.slow)])
def test_the_portable_part_of_a_program_runs_in_the_runtime(recipe, tmp_path):
    grid = np.tanh(random(1, 3, 3, 2))
    picks = np.array([[0, 1], [1, 3], [0, 5], [3, 3]], np.int32)
    arrays = [random(4, 6), grid, picks]
    write_pte(compress(captured_of(outside, *arrays), parse_recipe(recipe)), tmp_path / "m.pte")
    calls = portable_calls(tmp_path / "m.pte", [torch.from_numpy(array) for array in arrays])
    kinds = {call.op.removeprefix("aten::").partition(".")[0] for call, _ in calls}
    assert kinds >= {"topk", "argmax", "amax", "max", "max_pool2d_with_indices", "grid_sampler_2d", "index"}
    assert kinds >= {"scatter_add", "index_put", "masked_scatter", "slice_scatter", "scatter", "_to_copy"}
    answers = run_by_executorch([call for call, _ in calls], tmp_path)
    for (call, results), answer in zip(calls, answers, strict=True):
        assert not isinstance(answer, str), f"{call.op}: {answer}"
        for result, want in zip(results, answer, strict=True):
            tolerance = 1e-3 if want.dtype == HALF else 1e-5 if want.is_floating_point() else 0
            torch.testing.assert_close(result, want, rtol=tolerance, atol=tolerance, msg=call.op)


def test_gradients_are_refused_in_words(tmp_path):
    """Kernels for them exist; the reference runner has none of its own, and would end in an error."""

    def gradient(grad, x, weight):
        sizes = [2], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False]
        return torch.ops.aten.convolution_backward(grad, x, weight, *sizes)[0]

    arrays = random(1, 2, 3, 3), random(1, 2, 5, 5), random(2, 2, 3, 3)
    with pytest.raises(UnsupportedOperators, match="it computes a gradient"):
        write_pte(
            compress(captured_of(gradient, *arrays), parse_recipe("float16")), tmp_path / "gradient.pte"
        )
