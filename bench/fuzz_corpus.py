"""The artifacts that bench/fuzz.py damages: build_corpus(folder) writes one folder per artifact, each with a
model.mlpackage or model.pte.

Small and varied: convolutions and attention in half precision, every kind of compressed weight, control flow,
lists, states, functions, classifiers; .pte programs with portable kernels, MPS and Core ML delegates, jumps,
mutable buffers and external weights.
"""

import json
import logging
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RNG = np.random.default_rng(0)
W34, W88 = (
    RNG.standard_normal((8, 3, 3, 3)).astype(np.float16),
    RNG.standard_normal((16, 16)).astype(np.float32),
)
IMAGE, ROWS = ((1, 3, 8, 8), "fp16"), ((4, 16), "fp32")
MODEL = "model.mlmodel"


def quiet() -> None:
    """The converters print and warn about their own versions."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")


# ML Programs, written with coremltools' builder


def conv_net(mb, x):
    x = mb.relu(x=mb.conv(x=x, weight=W34, pad_type="custom", pad=[1, 1, 1, 1], strides=[1, 1]))
    x = mb.max_pool(x=x, kernel_sizes=[2, 2], strides=[2, 2], pad_type="valid")
    x = mb.batch_norm(x=x, mean=np.zeros(8, np.float16), variance=np.ones(8, np.float16))
    return mb.softmax(x=mb.reshape(x=x, shape=[1, 8, 16]), axis=-1)


def resizing(mb, x):
    a = mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=2)
    b = mb.resize_bilinear(x=x, target_size_height=16, target_size_width=16)
    c = mb.conv_transpose(x=x, weight=np.ones((3, 2, 2, 2), np.float16), strides=[2, 2])
    return mb.concat(values=[a, b, c], axis=1), mb.pad(x=x, pad=[0, 0, 1, 1], mode="reflect")


def attention(mb, x):
    q, k, v = (mb.linear(x=x, weight=W88) for _ in range(3))
    weights = mb.softmax(x=mb.mul(x=mb.matmul(x=q, y=k, transpose_y=True), y=0.25), axis=-1)
    return mb.layer_norm(x=mb.gelu(x=mb.matmul(x=weights, y=v)), axes=[-1])


def shapes(mb, x):
    y = mb.tile(x=x, reps=[2, 1])
    z = mb.slice_by_index(x=y, begin=[1, 0], end=[7, 16], stride=[2, 1])
    filled = mb.fill(shape=[3, 4], value=1.5)
    numbers = mb.range_1d(start=0, end=10, step=2)
    hot = mb.one_hot(indices=numbers, one_hot_vector_size=11)
    parts = mb.split(x=x, num_splits=2, axis=1)
    return (
        z,
        filled,
        mb.cast(x=hot, dtype="fp32"),
        mb.stack(values=list(parts), axis=0),
        mb.transpose(x=x, perm=[1, 0]),
        mb.cumsum(x=x, axis=0),
    )


def indexing(mb, x):
    rows = mb.gather(x=x, indices=np.array([0, 2, 3], np.int32), axis=0)
    spread = mb.scatter(
        data=x, indices=np.array([0, 1], np.int32), updates=np.ones((2, 16), np.float32), axis=0
    )
    some = mb.gather_nd(x=x, indices=np.array([[0, 1], [3, 4]], np.int32))
    values, places = mb.topk(x=x, k=3, axis=1)
    return (
        rows,
        spread,
        some,
        values,
        places,
        mb.sliding_windows(x=x, axis=1, size=4, stride=2),
        mb.reduce_argmax(x=x, axis=1),
    )


def recurrent(mb, x):
    x = mb.reshape(x=x, shape=[4, 1, 16])
    weights = {
        "weight_ih": RNG.standard_normal((32, 16)).astype(np.float32),
        "weight_hh": RNG.standard_normal((32, 8)).astype(np.float32),
    }
    zeros = np.zeros((1, 8), np.float32)
    return mb.lstm(
        x=x, initial_h=zeros, initial_c=zeros, bias=np.zeros(32, np.float32), output_sequence=True, **weights
    )


def control_flow(mb, x):
    table = np.arange(64, dtype=np.float32).reshape(4, 16)

    def body(i, total):
        return mb.add(x=i, y=1), mb.add(x=total, y=table)

    _, total = mb.while_loop(_cond=lambda i, total: mb.less(x=i, y=5), _body=body, loop_vars=(0, x))
    large = mb.greater(x=mb.reduce_max(x=x, axes=[0, 1]), y=5.0)
    return total, mb.cond(
        pred=large, _true_fn=lambda: mb.mul(x=x, y=2.0), _false_fn=lambda: mb.sub(x=x, y=table)
    )


def lists(mb, x):
    items = mb.make_list(init_length=2, elem_shape=(16,), dtype="fp32")
    items = mb.list_write(ls=items, index=0, value=mb.gather(x=x, indices=1, axis=0))
    items = mb.list_scatter(
        ls=items, indices=np.array([1, 2], np.int32), value=mb.slice_by_size(x=x, begin=[0, 0], size=[2, 16])
    )
    return mb.list_read(ls=items, index=2), mb.list_gather(ls=items, indices=np.array([0, 1], np.int32))


def stateful(mb, x, state):
    before = mb.read_state(input=state)
    return mb.coreml_update_state(state=state, value=mb.add(x=before, y=x))


def compressed(mb, x):
    codes, scale = RNG.integers(-8, 7, (16, 16)).astype(np.int8), np.full((16, 1), 0.1, np.float32)
    eight = mb.constexpr_blockwise_shift_scale(data=codes, scale=scale)
    from coremltools.converters.mil.mil import types

    four_bits = codes.astype(types.nptype_from_builtin(types.int4))
    four = mb.constexpr_blockwise_shift_scale(data=four_bits, scale=np.full((16, 4), 0.1, np.float32))
    indices = RNG.integers(0, 16, (16, 16)).astype(types.nptype_from_builtin(types.uint4))
    table = mb.constexpr_lut_to_dense(
        indices=indices, lut=RNG.standard_normal((1, 1, 16, 1)).astype(np.float32)
    )
    mask = (RNG.random((16, 16)) < 0.5).astype(types.nptype_from_builtin(types.uint1))
    kept = RNG.standard_normal(int(mask.astype(np.int32).sum())).astype(np.float32)
    sparse = mb.constexpr_sparse_to_dense(nonzero_data=kept, mask=mask)
    for weight in (eight, four, table, sparse):
        x = mb.tanh(x=mb.linear(x=x, weight=weight))
    return x


def older_compressed(mb, x):
    codes = RNG.integers(-100, 100, (16, 16)).astype(np.int8)
    affine = mb.constexpr_affine_dequantize(
        quantized_data=codes, zero_point=np.int8(3), scale=np.float32(0.01), axis=0
    )
    lut = mb.constexpr_lut_to_dense(
        indices=RNG.integers(0, 255, 128).astype(np.uint8),
        lut=np.linspace(-1, 1, 16, dtype=np.float32),
        shape=np.array([16, 16], np.uint32),
    )
    mask = np.full(32, 0b01010101, np.uint8)
    sparse = mb.constexpr_sparse_to_dense(
        nonzero_data=np.ones(128, np.float32), mask=mask, shape=np.array([16, 16], np.uint32)
    )
    for weight in (affine, lut, sparse):
        x = mb.tanh(x=mb.linear(x=x, weight=weight))
    return x


def detector(mb, x):
    both = mb.sigmoid(x=mb.linear(x=x, weight=RNG.standard_normal((7, 16)).astype(np.float32)))
    return mb.split(x=both, split_sizes=[3, 4], axis=1)


PROGRAMS: dict[str, tuple[Callable, tuple, str]] = {
    "conv": (conv_net, IMAGE, "iOS17"),
    "resize": (resizing, IMAGE, "iOS16"),
    "attention": (attention, ROWS, "iOS18"),
    "shapes": (shapes, ROWS, "iOS17"),
    "indexing": (indexing, ROWS, "iOS17"),
    "recurrent": (recurrent, ROWS, "iOS15"),
    "control": (control_flow, ROWS, "iOS17"),
    "lists": (lists, ROWS, "iOS16"),
    "state": (stateful, ((4, 16), "fp16"), "iOS18"),
    "compressed": (compressed, ROWS, "iOS18"),
    "older": (older_compressed, ROWS, "iOS16"),
    "detector": (detector, ROWS, "iOS16"),
}


MADE_OVER = ("functions", "classifier", "pipeline")  # some of PROGRAMS with another specification


def write_program(name: str, folder: Path) -> None:
    """One of PROGRAMS as folder/model.mlpackage. "functions" joins two in one package."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    build, (shape, dtype), opset = PROGRAMS[name]
    specs = [mb.TensorSpec(shape=shape, dtype=getattr(types, dtype))]
    wrapped: Callable = lambda x: build(mb, x)
    if name == "state":
        specs.append(mb.StateTensorSpec(shape=shape, dtype=types.fp16))
        wrapped = lambda x, state: build(mb, x, state)
    import coremltools as ct

    target = getattr(ct.target, opset)
    save(mb.program(input_specs=specs, opset_version=target)(wrapped), target.value, folder)


def save(program: Any, version: int, folder: Path) -> None:
    from coremltools.converters.mil.backend.mil.load import load

    data = folder / "model.mlpackage" / "Data" / "com.apple.CoreML"
    (data / "weights").mkdir(parents=True)
    model = load(program, weights_dir=str(data / "weights"), specification_version=version)
    (data / MODEL).write_bytes(model.SerializeToString(deterministic=True))
    entry = {
        "author": "com.apple.CoreML",
        "description": "",
        "name": MODEL,
        "path": f"com.apple.CoreML/{MODEL}",
    }
    weights = entry | {"name": "weights", "path": "com.apple.CoreML/weights"}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {"M": entry, "W": weights},
        "rootModelIdentifier": "M",
    }
    (data.parent.parent / "Manifest.json").write_text(json.dumps(manifest))


CONVERTED = {
    "int4-mps": ("executorch-mps", "int4"),
    "palette": ("coreml", "prune50+palettize4"),
    "int8": ("coreml", "int8"),
}

# .pte programs, written with bare ExecuTorch


def pte_sources() -> dict[str, tuple[Any, tuple, str]]:
    """name -> (module, inputs, how it is lowered)"""
    import torch
    import torch.nn.functional as F
    from torch._higher_order_ops.map import map as map_rows

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.norm, self.out = (
                torch.nn.Conv2d(3, 8, 3, padding=1),
                torch.nn.BatchNorm2d(8),
                torch.nn.Linear(8, 16),
            )

        def forward(self, x):
            x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2, 2).flatten(2).transpose(1, 2)
            x = x + torch.softmax(x @ x.transpose(1, 2) * 0.3, -1) @ x
            return self.out(F.gelu(x).mean(1))

    class Memory(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(4))

        def forward(self, x):
            self.count.add_(x)
            return self.count * 2

    class Branch(torch.nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x - 1, (x,))

    class Shapes(torch.nn.Module):
        def forward(self, x):
            parts = x.split([1, 3], 0)
            padded = F.pad(x[:, ::2], (1, 2), value=0.5)
            made = torch.arange(8) + torch.full((4, 1), 2.0) + x.repeat(1, 2)[:, :8]
            return (
                parts[1],
                padded,
                made,
                x[torch.tensor([0, 2])],
                torch.cat([x, x], 1),
                x.cumsum(1),
                torch.topk(x, 2)[0],
            )

    class Moves(torch.nn.Module):
        def forward(self, x):
            wide = torch.cat([F.pad(x[:, 1:7], (1, 1), value=0.5), x * torch.arange(8)], 1)
            pooled = F.avg_pool2d(wide[None, None], 2, 2, ceil_mode=True)
            return (
                wide.permute(1, 0).reshape(8, 8).clamp(0.1, 0.9),
                pooled[0],
                x[None].expand(3, 4, 8),
                x[2],
                x.mean(0, True),
            )

    class Rounds(torch.nn.Module):
        def forward(self, x):
            return map_rows(lambda row: row * 0.5 + 1, x)

    image, rows = (torch.rand(1, 3, 8, 8),), (torch.rand(4, 8) + 0.1,)
    return {
        "portable": (Net(), image, "portable"),
        "mps16": (Net(), image, "mps16"),
        "mps32": (Net(), image, "mps32"),
        "external": (Net(), image, "external"),
        "coreml-in-pte": (Net(), image, "coreml"),
        "buffer": (Memory(), (torch.rand(4),), "portable"),
        "jumps": (Branch(), rows, "portable"),
        "pte-shapes": (Shapes(), rows, "portable"),
        "mps-shapes": (Moves(), rows, "mps32"),
        "pte-loop": (Rounds(), rows, "portable"),
    }


def write_pte(module: Any, inputs: tuple, how: str, folder: Path) -> None:
    import torch
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge

    edge = to_edge(
        torch.export.export(module.eval(), inputs), compile_config=EdgeCompileConfig(_check_ir_validity=False)
    )
    if how != "portable" and how != "external":
        edge = edge.to_backend(partitioner(how))
    program = edge.to_executorch(ExecutorchBackendConfig(external_constants=how == "external"))
    folder.mkdir(parents=True)
    (folder / "model.pte").write_bytes(program.buffer)
    if how == "external":
        program.write_tensor_data_to_file(str(folder))
        for file in folder.glob("*.ptd"):
            file.rename(folder / "model.ptd")


def convert(folder: Path, target: str, recipe: str) -> None:
    """What cidermill's own command line writes for a small network of linear layers."""
    import torch

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64)).eval()
    folder.mkdir(parents=True)
    torch.export.save(torch.export.export(net, (torch.rand(2, 64),)), folder / "net.pt2")
    command = [
        Path(sys.executable).parent / "convert",
        folder / "net.pt2",
        "--target",
        target,
        "--quant",
        recipe,
        "--out",
        folder / "out",
    ]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    artifact = next(path for path in (folder / "out").iterdir() if path.suffix in (".pte", ".mlpackage"))
    artifact.rename(folder / f"model{artifact.suffix}")
    shutil.rmtree(folder / "out")
    (folder / "net.pt2").unlink()


def partitioner(how: str) -> Any:
    from executorch.exir.backend.compile_spec_schema import CompileSpec

    if how == "coreml":
        from executorch.backends.apple.coreml.compiler import CoreMLBackend
        from executorch.backends.apple.coreml.partition import CoreMLPartitioner

        specs = CoreMLBackend.generate_compile_specs(model_type=CoreMLBackend.MODEL_TYPE.MODEL)
        return CoreMLPartitioner(compile_specs=specs)
    from executorch.backends.apple.mps.operators.node_visitor import NodeVisitor
    from executorch.backends.apple.mps.partition import MPSPartitioner

    NodeVisitor._tensor_to_id.clear()  # the serializer keeps ids of models lowered earlier in the process
    return MPSPartitioner(compile_specs=[CompileSpec("use_fp16", bytes([how == "mps16"]))])


def add_description(folder: Path) -> None:
    """The conv net once more, as a model of two functions with a flexible picture as its input."""
    from cidermill.validation.mil.files import coreml_protos

    path = folder / "model.mlpackage" / "Data" / "com.apple.CoreML" / MODEL
    model = coreml_protos()[0].Model()
    model.ParseFromString(path.read_bytes())
    model.mlProgram.functions["second"].CopyFrom(model.mlProgram.functions["main"])
    model.description.defaultFunctionName = "main"
    name = model.mlProgram.functions["main"].inputs[0].name
    for function in ("main", "second"):
        part = model.description.functions.add(name=function)
        entry = part.input.add(name=name)
        entry.type.multiArrayType.shape.extend([1, 3, 8, 8])
        entry.type.multiArrayType.dataType = 65552
        entry.type.isOptional = True
    path.write_bytes(model.SerializeToString(deterministic=True))


def add_classes(folder: Path) -> None:
    """The attention block once more, ending in a classification; coremltools' builder cannot write its list
    of names."""
    from cidermill.validation.mil.files import coreml_protos

    path = folder / "model.mlpackage" / "Data" / "com.apple.CoreML" / MODEL
    model = coreml_protos()[0].Model()
    model.ParseFromString(path.read_bytes())
    function = model.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    names = block.operations.add(type="const")
    names.outputs.add(name="names").type.listType.type.tensorType.dataType = 2
    for i in range(64):
        value = names.attributes["val"].immediateValue.list.values.add()
        value.type.tensorType.dataType = 2
        value.immediateValue.tensor.strings.values.append(f"class {i}")
    classify = block.operations.add(type="classify")
    classify.inputs["probabilities"].arguments.add().name = block.outputs[0]
    classify.inputs["classes"].arguments.add().name = "names"
    classify.outputs.add(name="best").type.tensorType.dataType = 2
    classify.outputs.add(name="scores").type.dictionaryType.keyType.tensorType.dataType = 2
    block.outputs.extend(["best", "scores"])
    path.write_bytes(model.SerializeToString(deterministic=True))


def add_suppression(folder: Path) -> None:
    """The detector once more, as the first stage of a pipeline that ends in non-maximum suppression."""
    from cidermill.validation.mil.files import coreml_protos

    path = folder / "model.mlpackage" / "Data" / "com.apple.CoreML" / MODEL
    program, whole = coreml_protos()[0].Model(), coreml_protos()[0].Model()
    program.ParseFromString(path.read_bytes())
    whole.specificationVersion = program.specificationVersion
    whole.pipeline.models.add().CopyFrom(program)
    last = whole.pipeline.models.add(specificationVersion=5)
    whole.description.input.extend(program.description.input)
    threshold = whole.description.input.add(name="least")
    threshold.type.doubleType.SetInParent()
    rules = last.nonMaximumSuppression
    rules.confidenceInputFeatureName, rules.coordinatesInputFeatureName = (
        entry.name for entry in program.description.output
    )
    rules.confidenceOutputFeatureName, rules.coordinatesOutputFeatureName = "confidence", "boxes"
    rules.confidenceThresholdInputFeatureName = "least"
    rules.iouThreshold, rules.confidenceThreshold, rules.pickTop.perClass = 0.4, 0.2, True
    rules.stringClassLabels.vector.extend(["cat", "dog", "cow"])
    last.description.input.extend(program.description.output)
    for name, entry in zip(("confidence", "boxes"), program.description.output):
        for description in (last.description, whole.description):
            output = description.output.add(name=name)
            output.type.multiArrayType.dataType = entry.type.multiArrayType.dataType
    path.write_bytes(whole.SerializeToString(deterministic=True))


def build_corpus(folder: Path, quick: bool = False) -> list[Path]:
    """-> the folders written, in order; what exists already is kept. quick: without those that need a whole
    conversion."""
    done = folder / "complete"
    if not done.exists():
        quiet()
        shutil.rmtree(folder, ignore_errors=True)
        for name in PROGRAMS:
            write_program(name, folder / name)
        write_program("conv", folder / "functions")
        add_description(folder / "functions")
        write_program("attention", folder / "classifier")
        add_classes(folder / "classifier")
        write_program("detector", folder / "pipeline")
        add_suppression(folder / "pipeline")
        programs = {
            name: source for name, source in pte_sources().items() if not (quick and source[2] == "coreml")
        }
        for name, source in programs.items():
            write_pte(*source, folder / name)
        conversions = {} if quick else CONVERTED
        for name, options in conversions.items():
            convert(folder / name, *options)
        done.write_text("\n".join([*PROGRAMS, *MADE_OVER, *programs, *conversions]))
    return [folder / name for name in done.read_text().split()]
