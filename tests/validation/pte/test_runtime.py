"""Portable .pte programs: our runner against ExecuTorch's own runtime, call by call, buffers and all."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from cidermill.validation.pte.aten_ops import find_kernel
from cidermill.validation.pte.kernels import KERNELS
from cidermill.validation.pte.read import open_program
from cidermill.validation.pte.run import run_program

X, Y = torch.linspace(-2, 2, 24).reshape(2, 3, 4), torch.linspace(3, -1, 24).reshape(2, 3, 4)
GENERATOR = torch.Generator().manual_seed(0)
TABLE = torch.randint(-128, 127, (10, 8), dtype=torch.int8, generator=GENERATOR)
PACKED = torch.randint(0, 255, (10, 4), dtype=torch.uint8, generator=GENERATOR)
ROW_SCALES, GROUP_SCALES = (
    torch.rand(10, generator=GENERATOR) + 0.1,
    torch.rand(10, 2, generator=GENERATOR) + 0.1,
)
SCALES, ZEROS = torch.tensor([0.1, 0.03, 0.7], dtype=torch.float64), torch.tensor([1, 0, -2])
TOKEN_SCALES, TOKEN_ZEROS = (
    torch.tensor([0.1, 0.02, 0.3, 0.1, 0.2, 0.5], dtype=torch.float64).reshape(2, 3, 1),
    torch.arange(6).reshape(2, 3, 1),
)
IDS = torch.tensor([[1, 3], [9, 0]])
IMAGE = torch.rand(1, 4, 9, 7, generator=GENERATOR)
WEIGHT = torch.rand(6, 2, 3, 3, generator=GENERATOR) - 0.5

RUN_ALL = """
import os, sys, torch
import executorch.kernels.quantized  # registers the quantized kernels
from pathlib import Path
from executorch.runtime import Runtime
for path in sorted(Path(sys.argv[1]).glob("*.pte")):
    child = os.fork()  # what the runtime refuses ends its process
    if child:
        os.waitpid(child, 0)
        continue
    data = path.read_bytes()
    program = Runtime.get().load_program(data)
    method, results = program.load_method("forward"), []
    for inputs in torch.load(path.with_suffix(".in")):
        outputs = method.execute(list(inputs))
        results.append([item.clone() if isinstance(item, torch.Tensor) else item for item in outputs])
    torch.save(results, path.with_suffix(".out"))
    os._exit(0)
"""


class Function(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class Cache(torch.nn.Module):
    """A counter and a cache that is written at a position: what one call leaves, the next one finds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("cache", torch.zeros(1, 6, 4))

    def forward(self, x, position):
        self.count.add_(1)
        self.cache[:, position] = x
        return self.cache.view(6, 4) * self.count, self.count + 0


class Doubling(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.tensor([[3.5, 1.0]]))

    def forward(self, x):
        y = self.factor.view(2) * x
        self.factor.mul_(2)
        return y


def mapped(x, y):
    from torch._higher_order_ops.map import map as torch_map

    return torch_map(lambda row, other: row.sin() + other, x, y)


def scanned(x):
    from torch._higher_order_ops.scan import scan

    return scan(lambda carry, row: (carry + row, carry * 2), torch.zeros(4), x)


def branches(x):
    return torch.cond(x.sum() > 0, lambda x: (x * 2, x + 1), lambda x: (x - 3, x * 1), (x,))


def q():
    import executorch.exir.passes._quant_patterns_and_replacements  # defines the embeddings
    import executorch.kernels.quantized  # noqa: F401  (the results' forms)
    import torch.ao.quantization.fx._decomposed  # defines the others

    return torch.ops.quantized_decomposed


INT8 = (-128, 127, torch.int8)
PROGRAMS = {  # name: (module or function, the inputs of each call)
    "buffers": (Cache(), [(torch.full((1, 1, 4), 1.0 + i), torch.tensor([i])) for i in range(3)]),
    "initial-buffer": (Doubling(), [(torch.ones(2),)] * 3),
    "map": (mapped, [(X, Y[0])] * 2),
    "scan": (scanned, [(X[0],)] * 2),
    "cond": (branches, [(X + 1,), (X - 1,)]),
    "changed-input": (lambda x: x.add_(1) * 2, [(X,)] * 2),
    "quantize": (lambda x: q().quantize_per_tensor(x, 0.031, 3, *INT8), [(X,), (X * 3,)]),
    "dequantize": (lambda x: q().dequantize_per_tensor(x, 0.031, 3, *INT8), [(TABLE,)]),
    "quantize-channel": (lambda x: q().quantize_per_channel(x, SCALES, ZEROS, 1, *INT8), [(X,)]),
    "dequantize-channel": (lambda x: q().dequantize_per_channel(x, SCALES, ZEROS, 0, *INT8), [(TABLE[:3],)]),
    "quantize-token": (
        lambda x, s, z: q().quantize_per_token(x, s, z, *INT8),
        [(X, TOKEN_SCALES, TOKEN_ZEROS)],
    ),
    "dequantize-token": (
        lambda x, s, z: q().dequantize_per_token(x, s, z, *INT8, torch.float32),
        [(TABLE[:6].reshape(2, 3, 8), TOKEN_SCALES, TOKEN_ZEROS)],
    ),
    "choose-qparams": (
        lambda x: q().choose_qparams.tensor(x, -128, 127, 1e-7, torch.int8),
        [(X,), (X.abs() + 1,), (X * 1e-6,), (-X.abs() * 1e-6,), (X * 0,)],
    ),
    "choose-qparams-token": (
        lambda x: q().choose_qparams_per_token_asymmetric(x, torch.int8),
        [(X,), (X.abs() + 1,)],
    ),
    "embedding-8": (lambda i: q().embedding_byte(TABLE, ROW_SCALES, None, -128, 127, i), [(IDS,)]),
    "embedding-8-zeros": (
        lambda i: q().embedding_byte(TABLE, GROUP_SCALES, GROUP_SCALES.round(), -128, 127, i),
        [(IDS,)],
    ),
    "embedding-4": (lambda i: q().embedding_4bit(PACKED, GROUP_SCALES, None, -8, 7, i), [(IDS,)]),
    "embedding-4-half": (
        lambda i: q().embedding_4bit.dtype(PACKED, GROUP_SCALES, None, -8, 7, i, dtype=torch.float16),
        [(IDS,)],
    ),
    "embedding-2": (lambda i: q().embedding_2bit(PACKED, GROUP_SCALES, None, -2, 1, i), [(IDS,)]),
    "convolution": (lambda x: F.conv2d(x, WEIGHT, None, (2, 1), (1, 2), (1, 1), 2), [(IMAGE,)]),
    "transposed": (lambda x: F.conv_transpose2d(x, WEIGHT[:4], None, 2, 1, 1, 2), [(IMAGE,)]),
    "pooling": (
        lambda x: (*F.max_pool2d(x, 3, 2, 1, 1, True, True), F.avg_pool2d(x, 2, 1, 1, False, False)),
        [(IMAGE,)],
    ),
    "adaptive-pooling": (lambda x: F.adaptive_avg_pool2d(x, (3, 2)), [(IMAGE,)]),
    "resize": (
        lambda x: (F.interpolate(x, (5, 11), mode="bilinear"), F.interpolate(x, scale_factor=2.0)),
        [(IMAGE,)],
    ),
    "pads": (
        lambda x: (
            F.pad(x, (1, 2, 0, 1), "reflect"),
            F.pad(x, (1, 2), value=3.0),
            F.pad(x, (2, 1, 1, 0), "replicate"),
        ),
        [(IMAGE,)],
    ),
    "norms": (
        lambda x: (F.group_norm(x, 2), F.layer_norm(x, (7,)), F.batch_norm(x, torch.zeros(4), torch.ones(4))),
        [(IMAGE,)],
    ),
    "statistics": (
        lambda x: (
            x.var(1),
            x.std(),
            x.mean((0, 2)),
            x.prod(1),
            x.logsumexp(1),
            x.amin(2),
            *x.max(1),
            x.min(1)[0],
        ),
        [(X,)],
    ),
    "comparisons": (
        lambda x, y: (
            x > y,
            (x == y) | (x != x),
            torch.maximum(x, y),
            torch.where(x < 0, x, 2),
            x.clamp(-1, 1),
        ),
        [(X, Y)],
    ),
    "integers": (lambda i: (i // 2, i % 3, -i // 2, i ^ 5, ~i, i.float() / 3, i * 1.5), [(IDS - 4,)]),
    "remainders": (
        lambda i, j: (i % 3, i % j, i.float() % 3, i % j.float()),
        [(IDS - 4, torch.tensor([[2, -3], [3, 3]]))],
    ),
    "special": (
        lambda x: (
            x.erf(),
            x.atan2(x + 1),
            (x.abs() + 1).log1p(),
            x.sign(),
            x.round(),
            x.fmod(0.7),
            x.remainder(0.7),
        ),
        [(X,)],
    ),
    "indexing": (
        lambda x, i: (
            x[i % 2],
            x[:, i % 3, i % 2],
            x.gather(2, i[None] % 4),
            x.index_select(1, i[0] % 3),
            x.roll(1, 2),
        ),
        [(X, IDS)],
    ),
    "scatter": (
        lambda x, i: (
            x.scatter(2, i[None] % 4, 9.0),
            x.scatter_add(2, i[None] % 4, x),
            x.masked_fill(x > 0, 0.5),
        ),
        [(X, IDS)],
    ),
    "shapes": (
        lambda x: (
            x.flip(1),
            x.repeat(1, 2, 1),
            x.tril(),
            x.unbind(1)[2],
            x.split([1, 3], 2)[1],
            torch.stack([x, x], 1),
        ),
        [(X,)],
    ),
    "cumulative": (lambda x: x.cumsum(1), [(X,)]),
    "types": (
        lambda x: (
            x.to(torch.int8),
            x.double(),
            x.half(),
            x.bool(),
            (x * 300).half() * 300,
            x.to(torch.bfloat16).float(),
        ),
        [(X,)],
    ),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), [(X[:, None],)]),
    "strings": (
        lambda x: (
            *(torch.div(x, 0.3, rounding_mode=mode) for mode in ("floor", "trunc")),
            F.gelu(x, approximate="tanh"),
        ),
        [(X,)],
    ),
}


@pytest.fixture(scope="module")
def lower():
    path = Path(__file__).with_name("test_read.py")
    spec = importlib.util.spec_from_file_location("pte_lowering", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.lower


@pytest.fixture(scope="module")
def programs(lower, tmp_path_factory):
    """Every program lowered to a file, and what the runtime answers. It has a process of its own: it prints,
    keeps state and aborts."""
    folder = tmp_path_factory.mktemp("programs")
    for name, (function, calls) in PROGRAMS.items():
        module = function if isinstance(function, torch.nn.Module) else Function(function)
        lower(module, tuple(item.clone() for item in calls[0]), folder / f"{name}.pte")
        torch.save([tuple(item.clone() for item in inputs) for inputs in calls], folder / f"{name}.in")
    script = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN_ALL, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert script.returncode == 0, script.stderr[-2000:]
    return folder


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_computes_what_the_runtime_computes(programs, name):
    program = open_program(programs / f"{name}.pte")
    names, state = [value.name for value in program.inputs], program.make_state()
    wanted = torch.load(programs / f"{name}.out")
    for inputs, want in zip(PROGRAMS[name][1], wanted, strict=True):
        results = list(
            run_program(
                program, dict(zip(names, (item.clone() for item in inputs), strict=True)), state=state
            ).values()
        )
        for result, expected in zip(results, want, strict=True):
            tolerance = 2e-3 if expected.dtype in (torch.float16, torch.bfloat16) else 1e-5
            torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name, arguments", [
    ("mixed_mm", (X[0].T.contiguous(), TABLE[:3], ROW_SCALES[:3], None)),
    ("mixed_linear", (X[0] @ torch.ones(4, 8) + torch.arange(8.0), TABLE, GROUP_SCALES, None)),
    ("mixed_linear", (torch.rand(2, 7, generator=GENERATOR), TABLE[:, :7].contiguous(), GROUP_SCALES, None)),
    ("add", (PACKED, 0.1, 3, 0, 255, PACKED.flip(0), 0.2, 5, 0, 255, 0.3, 7, 0, 255)),
])  # fmt: skip
def test_operators_without_a_graph_form_against_executorchs_kernels(name, arguments):
    import executorch.kernels.quantized  # noqa: F401

    kernel = find_kernel(f"quantized_decomposed::{name}.out")
    rows, columns = (
        arguments[0].shape[0],
        (arguments[1].shape[-1] if name == "mixed_mm" else arguments[1].shape[0] if name != "add" else 4),
    )
    out = torch.empty(rows, columns, dtype=arguments[0].dtype)
    getattr(torch.ops.quantized_decomposed, name).out(*arguments, out=out)
    result = kernel.run((), **dict(zip(kernel.parameters, arguments)))[0]
    torch.testing.assert_close(result.to(out.dtype), out, rtol=1e-5, atol=1e-4)


def test_embedding_codes_by_hand():
    from cidermill.validation.pte.kernels import unpack

    assert unpack(torch.tensor([[0x8F, 0x07]], dtype=torch.uint8), 4).tolist() == [[0, 7, -8, -1]]
    assert unpack(torch.tensor([[0b11100100]], dtype=torch.uint8), 2).tolist() == [[-2, -1, 0, 1]]


@pytest.mark.parametrize(
    "name, arguments, want",
    [
        ("floordiv.Scalar", (-7, 2), -4),
        ("floordiv.int", (-7, 2), -3),
        ("mod.Scalar", (-7, 3), -1),
        ("truediv.Scalar", (7, 2), 3.5),
        ("floordiv.Scalar", (-1.0, 0.0), float("-inf")),
        ("floordiv.Scalar", (7, -2.0), -4.0),
        ("round.Scalar", (2.5,), 2),
        ("sym_ite.Scalar", (True, 3, 4), 3),
        ("sym_ite.Scalar", (False, 3, 4), 4),
        ("sym_not.Scalar", (False,), True),
        ("trunc.Scalar", (-2.7,), -2),
        ("sym_max.Scalar", (3, 5), 5),
        ("sym_min.Scalar", (3, 5), 3),
        ("sym_float.Scalar", (3,), 3.0),
        ("sym_int.Scalar", (3.9,), 3),
        ("ceil.Scalar", (2.1,), 3),
        ("neg.Scalar", (4,), -4),
        ("sub.Scalar", (4, 6), -2),
        ("ge.Scalar", (3, 3), True),
        ("le.Scalar", (4, 3), False),
    ],
)
def test_arithmetic_of_sizes(name, arguments, want):
    kernel = KERNELS[f"executorch_prim::{name}"]
    result = kernel.run((), **dict(zip(kernel.parameters, arguments, strict=True)))[0]
    assert result == want and type(result) is type(want)


def declared_operators():
    import executorch

    folder = Path(list(executorch.__path__)[0])
    for file in ("portable/functions.yaml", "portable/custom_ops.yaml", "quantized/quantized.yaml"):
        for entry in yaml.safe_load((folder / "kernels" / file).read_text()):
            name = entry.get("op") or entry["func"].partition("(")[0]
            yield name if "::" in name else f"aten::{name}"


def test_every_operator_that_the_wheel_declares_has_a_kernel():
    names = list(declared_operators())
    assert len(names) == 230
    assert [name for name in names if find_kernel(name) is None] == []


def test_every_operator_that_the_runtime_registers_has_a_kernel():
    script = "import executorch.kernels.quantized; from executorch.runtime import Runtime\n"
    script += "print(*Runtime.get().operator_registry.operator_names, sep='\\n')"
    printed = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    names = [line for line in printed.split() if "::" in line]
    assert len(names) > 250
    assert [name for name in names if find_kernel(name) is None] == []


@pytest.fixture(scope="module")
def llama():
    custom_ops = pytest.importorskip("executorch.extension.llm.custom_ops.custom_ops")
    assert custom_ops
    return torch.ops.llama


def test_attention_with_a_cache_computes_what_its_own_kernel_computes(llama):
    query, key, value = (torch.rand(1, 3, heads, 8, generator=GENERATOR) for heads in (4, 2, 2))
    caches = torch.zeros(2, 1, 10, 2, 8)
    ours, theirs = caches.clone(), caches.clone()
    kernel = KERNELS["llama::sdpa_with_kv_cache.out"]
    for start, length in ((0, 3), (3, 2)):
        parts = [part[:, :length].contiguous() for part in (query, key, value)]
        want = llama.sdpa_with_kv_cache(*parts, theirs[0], theirs[1], start, length, None, 0.0, True, None)
        arguments = dict(query=parts[0], key=parts[1], value=parts[2], key_cache=ours[0], value_cache=ours[1])
        result = kernel.run((), **arguments, start_pos=start, seq_len=length, is_causal=True)[0]
        torch.testing.assert_close(result, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours, theirs)


def test_cache_updates_compute_what_their_own_kernels_compute(llama):
    value, indices = torch.rand(2, 2, 1, 4, generator=GENERATOR), torch.tensor([[4, 1], [0, 3]])
    ours, theirs = torch.zeros(2, 6, 1, 4), torch.zeros(2, 6, 1, 4)
    llama.update_cache(value, theirs, 3)
    KERNELS["llama::update_cache.out"].run((X_VALUE,), value=value, cache=ours, start_pos=3)
    torch.testing.assert_close(ours, theirs)
    llama.update_cache_with_indices(value, theirs, 0, indices)
    KERNELS["llama::update_cache_with_indices.out"].run(
        (X_VALUE,), value=value, cache=ours, start_pos=0, indices=indices
    )
    torch.testing.assert_close(ours, theirs)


def test_hadamard_computes_what_its_own_kernel_computes(llama):
    rows = torch.rand(3, 16, generator=GENERATOR)
    torch.testing.assert_close(
        KERNELS["llama::fast_hadamard_transform.out"].run((), mat=rows)[0],
        llama.fast_hadamard_transform(rows),
    )


class X_VALUE:
    shape = (1,)
