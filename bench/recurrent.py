"""Recurrent layers against bare coremltools, in one run: `python bench/recurrent.py [NAME ...]`.

For each layer, of 256 steps: seconds from the module to a package with int8 weights, by coremltools alone
(trace, convert, linear quantization of weights, save) and by cidermill; the size of cidermill's int8 package
in parts of its float16 one; operations of the file; the verdict of the conversion.
"""

import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import torch

STEPS, INPUTS, UNITS = 256, 64, 128
LAYERS = {
    "bilstm": lambda: torch.nn.LSTM(INPUTS, UNITS, 2, bidirectional=True, batch_first=True),
    "lstm": lambda: torch.nn.LSTM(INPUTS, UNITS, batch_first=True),
    "gru": lambda: torch.nn.GRU(INPUTS, UNITS, batch_first=True),
    "rnn": lambda: torch.nn.RNN(INPUTS, UNITS, batch_first=True),
}


class Outputs(torch.nn.Module):
    def __init__(self, layer: torch.nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


def bare(module: torch.nn.Module, x: torch.Tensor, path: Path) -> None:
    import coremltools as ct
    import coremltools.optimize.coreml as optimize

    program = torch.jit.trace(module, x)
    model = ct.convert(
        program,
        inputs=[ct.TensorType("x", x.shape)],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )
    config = optimize.OptimizationConfig(optimize.OpLinearQuantizerConfig(mode="linear_symmetric"))
    optimize.linear_quantize_weights(model, config).save(str(path))


def operations(path: Path) -> Counter:
    import coremltools as ct

    (function,) = ct.utils.load_spec(str(path)).mlProgram.functions.values()
    blocks, counted = list(function.block_specializations.values()), Counter()
    while blocks:
        for operation in blocks.pop().operations:
            counted[operation.type] += operation.type != "const"
            blocks.extend(operation.blocks)
    return counted


def seconds(work, *arguments) -> tuple[float, object]:
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


def measure(name: str, folder: Path) -> None:
    import cidermill

    torch.manual_seed(0)
    module, x = Outputs(LAYERS[name]()).eval(), torch.randn(1, STEPS, INPUTS)
    peer_s, _ = seconds(bare, module, x, folder / f"{name}.mlpackage")

    def ours(recipe: str):
        options = {"quant": recipe, "out": folder / f"{name}-{recipe}", "cache": False}
        return cidermill.convert(module, (x,), **options)

    _, half = seconds(ours, "float16")
    our_s, packed = seconds(ours, "int8")
    sizes = [report.artifacts[0].size_bytes for report in (half, packed)]
    path = next((folder / f"{name}-int8").rglob("*.mlpackage"))
    kinds = {kind: count for kind, count in operations(path).items() if kind in ("lstm", "rnn", "while_loop")}
    print(
        f"{name}: {our_s:.1f} s, {our_s / peer_s:.2f} times bare coremltools' {peer_s:.1f} s; int8 is"
        f" {sizes[1] / sizes[0]:.3f} of float16 ({sizes[1]} bytes); {operations(path).total()} operations,"
        f" {kinds}; {packed.verdict}",
        flush=True,
    )


def main() -> None:
    warnings.simplefilter("ignore")
    import coremltools  # noqa: F401  so that nobody pays for its import

    with tempfile.TemporaryDirectory() as folder:
        for name in sys.argv[1:] or LAYERS:
            measure(name, Path(folder))


if __name__ == "__main__":
    main()
