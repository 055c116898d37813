"""Breaks the reference runners' operators one by one, in a copy of the tree, and shows that the tests catch
every break.

    python bench/mutations.py [--only NAME]... [--workers 2] [--list]

Each break replaces one piece of source, which must occur exactly once in its file, and runs the property
tests and the tests of that area up to the first failure. Ends with 1 where a break survives, where a source
text no longer occurs once, where the broken code cannot be imported (a break must be wrong, not absent), or
where the tests fail without any break.
"""

import argparse
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 300  # a break may make a loop endless, which counts as caught
BASELINE_TIMEOUT_S = 1800
AREAS = {  # where the tests of an area are; properties first
    "elementwise": "mil/test_properties_elementwise mil/test_elementwise",
    "reduction": "mil/test_properties_reduction mil/test_elementwise",
    "neural": "mil/test_properties_neural mil/test_neural",
    "layers": "mil/test_properties_layers mil/test_neural",
    "indexing": "mil/test_properties_indexing mil/test_indexing",
    "resize": "mil/test_properties_resize mil/test_indexing",
    "shape": "mil/test_properties_shape mil/test_shape",
    "constexpr": "mil/test_properties_constexpr mil/test_constexpr",
    "control": "mil/test_properties_control mil/test_properties_elementwise mil/test_read",
    "mps": "pte/test_mps_properties pte/test_mps_ops",
    "pte": "pte/test_read pte/test_runtime",
}


@dataclass(frozen=True)
class Break:
    """`old` becomes `new` in validation/`file`; the tests of `area` should notice."""

    name: str
    area: str
    file: str
    old: str
    new: str
    what: str


@dataclass(frozen=True)
class Outcome:
    verdict: str  # "caught" | "SURVIVED" | "STALE" | "BROKEN"
    by: str
    seconds: float


BREAKS = [Break(*row) for row in (
    ("gelu", "elementwise", "mil/ops/elementwise.py", "torch.sigmoid(1.702 * x)", "torch.sigmoid(1.7 * x)", "wrong constant"),
    ("mod", "elementwise", "mil/ops/elementwise.py", '"mod": torch.remainder', '"mod": torch.fmod', "the rest has the dividend's sign"),
    ("quantize", "elementwise", "mil/ops/elementwise.py", "torch.round(input / ", "torch.floor(input / ", "rounds down"),
    ("dequantize", "elementwise", "mil/ops/elementwise.py", "values = values - along(zero_point", "values = values + 0 * along(zero_point",
     "missing zero point"),
    ("cast", "elementwise", "mil/ops/elementwise.py", "x.trunc().to(torch.int64)", "x.round().to(torch.int64)", "rounds to nearest"),
    ("inverse", "elementwise", "mil/ops/elementwise.py", "1 / (tensor(x) + epsilon)", "1 / tensor(x)", "no epsilon"),
    ("select", "elementwise", "mil/ops/elementwise.py", "torch.where(cond, tensor(a), tensor(b))",
     "torch.where(cond, tensor(b), tensor(a))", "choices swapped"),
    ("thresholded-relu", "elementwise", "mil/ops/elementwise.py", "torch.where(x >= alpha, x, 0.0)", "torch.where(x > alpha, x, 0.0)",
     "the threshold itself is lost"),
    ("sum", "reduction", "mil/ops/reduction.py", "return torch.sum(x, axes, keep_dims)", "return torch.sum(x, axes, False)",
     "keep_dims ignored"),
    ("l2", "reduction", "mil/ops/reduction.py", "torch.sqrt(torch.sum(", "(torch.sum(", "no square root"),
    ("argmin", "reduction", "mil/ops/reduction.py", "torch.argmin(x, axis, keep_dims)", "torch.argmax(x, axis, keep_dims)", "the largest"),
    ("topk", "reduction", "mil/ops/reduction.py", "values, indices = torch.sort(x, dim=axis, descending=not ascending",
     "values, indices = torch.sort(x, dim=axis, descending=True", "ascending ignored"),
    ("cumsum", "reduction", "mil/ops/reduction.py", "return total.flip(axis) if reverse else total", "return total", "not turned back"),
    ("softmax", "reduction", "mil/ops/elementwise.py", "torch.softmax(x, axis)", "torch.softmax(x, -1)", "wrong axis"),
    ("same", "neural", "mil/ops/neural.py", '(low, high) if pad_type == "same" else (high, low)', "(high, low)", "the odd element first"),
    ("same-dilated", "neural", "mil/ops/neural.py", "(k - 1) * dilation + 1 - size", "k - size", "padding without the dilation"),
    ("conv-bias", "neural", "mil/ops/neural.py", "padded(x, pads), weight, bias, strides", "padded(x, pads), weight, None, strides",
     "missing bias"),
    ("conv-transpose", "neural", "mil/ops/neural.py", "start = pads[axis][0]", "start = max(pads[axis][0] - 1, 0)", "one off"),
    ("matmul", "neural", "mil/ops/neural.py", "y = y.transpose(-1, -2) if transpose_y", "y = y.transpose(-1, -2) if transpose_x",
     "transposes the other side"),
    ("attention", "neural", "mil/ops/neural.py", "math.sqrt(query.shape[-1])", "math.sqrt(value.shape[-1])", "scaled by the values' size"),
    ("average", "neural", "mil/ops/neural.py", "if not exclude_padding_from_average", "if True", "exclude_padding ignored"),
    ("overhang", "neural", "mil/ops/neural.py", "    if not exclude_padding_from_average:\n        return average\n",
     "    if not exclude_padding_from_average:\n        pads = [(low, high - more) for (low, high), more in zip(pads, extra)]\n"
     "        counted = padded(padded(torch.ones_like(x[:1, :1]), pads, 1.0), [(0, more) for more in extra])\n"
     "        return average / pool(counted, kernel, strides)\n", "what ceil_mode adds is not counted, as in torch"),
    ("ceil-mode", "neural", "mil/ops/neural.py", "-(-(size + low + high - k) // stride) + 1", "(size + low + high - k) // stride + 1",
     "floor instead of ceil"),
    ("max-pool", "neural", "mil/ops/neural.py", "padded(x, pads, -math.inf)", "padded(x, pads, 0.0)", "padding of zeros wins"),
    ("layer-norm", "layers", "mil/ops/neural.py", "        (x - mean) * torch.rsqrt(variance + epsilon),\n",
     "        (x - mean) * torch.rsqrt(variance),\n", "epsilon omitted"),
    ("response-norm", "layers", "mil/ops/neural.py", "scalar(size), alpha, beta, k)", "scalar(size), alpha * scalar(size), beta, k)",
     "alpha not divided by the size"),
    ("lstm", "layers", "mil/ops/recurrent.py", "i, f, o, z = (", "f, i, o, z = (", "gates swapped"),
    ("peephole", "layers", "mil/ops/recurrent.py", "peep[2] * c) * final(c)", "peep[1] * c) * final(c)", "the forget gate's peephole"),
    ("gru", "layers", "mil/ops/recurrent.py", "(1 - z) * o + z * h", "z * o + (1 - z) * h", "update gate inverted"),
    ("reverse", "layers", "mil/ops/recurrent.py", 'x.flip(0) if direction == "reverse" else x', "x", "reads the input forward"),
    ("align-corners", "resize", "mil/ops/resize.py", '"ALIGN_CORNERS" if align_corners else', '"ALIGN_CORNERS" if not align_corners else',
     "align_corners flipped"),
    ("half-pixel", "resize", "mil/ops/resize.py", "(i + 0.5) * (size_in / size_out) - 0.5", "(i + 0.5) * (size_in / size_out) - 0.45",
     "half a pixel is 0.45"),
    ("nearest", "resize", "mil/ops/resize.py", 'torch.arange(size_out) + (mode == "DEFAULT")', "torch.arange(size_out)",
     "the pixel at a corner instead of the middle"),
    ("reflection", "resize", "mil/ops/resize.py", '1.0) if mode == "reflection"', '1.0) if mode == "symmetric"', "exchanged modes"),
    ("crop-order", "resize", "mil/ops/resize.py", "return [a - c / 2, b - d / 2", "return [a, b", "a centre taken for a corner"),
    ("negative-index", "indexing", "mil/ops/indexing.py", "torch.where(indices < 0, indices + size, indices)",
     "torch.where(indices < 0, indices + size - 1, indices).clamp(min=0)", "negative indices one off"),
    ("scatter-sub", "indexing", "mil/ops/indexing.py", "data.index_add(0, rows, -updates)", "data.index_add(0, rows, updates)", "adds"),
    ("one-hot", "indexing", "mil/ops/indexing.py", "movedim(-1, scalar(axis))", "movedim(-1, -1)", "axis ignored"),
    ("suppression", "indexing", "mil/ops/indexing.py", "        if per_class:", "        if not per_class:", "per_class inverted"),
    ("end-mask", "shape", "mil/ops/shape.py", "None if open_end[i] else ends[i]", "ends[i]", "end_mask ignored"),
    ("reflect", "shape", "mil/ops/shape.py", "last - (last - at.abs()).abs()", "(last - (last - at.abs()).abs()).clamp(max=last - 1)",
     "reflects one element short"),
    ("interleave", "shape", "mil/ops/shape.py", "torch.stack(values, axis % values[0].ndim + 1)",
     "torch.stack(values, axis % values[0].ndim)", "joined instead of interleaved"),
    ("depth-to-space", "shape", "mil/ops/shape.py", "permute(0, 3, 4, 1, 5, 2)", "permute(0, 3, 4, 2, 5, 1)", "rows and columns exchanged"),
    ("band", "shape", "mil/ops/shape.py", "(rows - columns <= lower)", "(rows - columns < lower)", "one diagonal too few"),
    ("nibbles", "constexpr", "mil/blob.py", "for shift in range(0, 8, bits)]", "for shift in range(8 - bits, -1, -bits)]",
     "wrong nibble order"),
    ("bit-order", "constexpr", "mil/blob.py", 'unpackbits(data, bitorder="little", count=count)',
     'unpackbits(data, bitorder="big", count=count)', "wrong bit order"),
    ("int4-sign", "constexpr", "mil/blob.py", "half = 1 << (bits - 1)", "half = 1 << bits", "wrong sign bit"),
    ("shift", "constexpr", "mil/ops/constexpr.py", "data = data - expand_blocks(offset", "data = data + expand_blocks(offset",
     "offset with the wrong sign"),
    ("blocks", "constexpr", "mil/ops/constexpr.py", "blocks.repeat_interleave(want // have, dim=axis)",
     "torch.cat([blocks] * (want // have), axis)", "blocks repeated side by side"),
    ("vectors", "constexpr", "mil/ops/constexpr.py", "rows.movedim(-1, axis + 1)", "rows.movedim(-1, axis)", "wrong axis"),
    ("affine", "constexpr", "mil/ops/constexpr.py", "- along(zero_point, axis, data.ndim)", "- 0 * along(zero_point, axis, data.ndim)",
     "missing zero point"),
    ("mask", "constexpr", "mil/ops/constexpr.py", "return data_mask, dense.masked_select(data_mask.bool())",
     "return data_mask, dense.masked_select(data_mask.bool()).flip(0)", "values of a sparse weight in the wrong order"),
    ("cond", "control", "mil/ops/control.py", "blocks[0] if bool(scalar(pred)) else", "blocks[0] if not bool(scalar(pred)) else",
     "branches swapped"),
    ("while", "control", "mil/ops/control.py", "scalar(run(blocks[0], values)[0])", "scalar(run(blocks[0], run(blocks[1], values))[0])",
     "one turn too few"),
    ("state", "control", "mil/ops/control.py", "input.copy_(data)", "input.clone()", "state not written"),
    ("state-alias", "control", "mil/ops/control.py", "return input.clone()", "return input", "a state read earlier changes later"),
    ("rounding", "control", "mil/run.py", "piece.copy_(piece.half())", "piece.copy_(piece)", "results not rounded to float16"),
    ("rounding-views", "neural", "mil/run.py", "return result.half().float()", "return result", "transposed results not rounded"),
    ("rounding-pieces", "control", "mil/run.py", "result.view(-1).split(PIECE):", "result.view(-1).split(PIECE)[:1]:",
     "only the first piece of a large result rounded"),
    ("weight-pieces", "control", "mil/blob.py", "wide[start : start + part.size] = part", "wide[: part.size] = part",
     "pieces of a large weight over one another"),
    ("exact", "control", "mil/ops/__init__.py", '    "maximum",\n', '    "add",\n    "maximum",\n', "sums believed exact"),
    ("uint16", "control", "mil/run.py", "result.int() & 0xFFFF", "result.int()", "uint16 does not wrap"),
    ("freed", "control", "graph.py", "frees.append(sorted(names - seen))", "frees.append(sorted(names))", "values freed too early"),
    ("captured", "control", "graph.py", "used |= needed_names(node)", "used |= set(references(node.inputs))",
     "what a block within a block reads is freed too early"),
    ("mps-alpha", "mps", "pte/mps_ops.py", "b if alpha == 1.0 else", "b if True else", "alpha ignored"),
    ("mps-stride", "mps", "pte/mps_ops.py", "stride, dilation = (stride_y, stride_x),", "stride, dilation = (stride_x, stride_y),",
     "x and y exchanged"),
    ("mps-positions", "mps", "pte/mps_ops.py", "(y * width + x)", "(y * padded.shape[-1] + x)", "positions in the padded plane"),
    ("mps-ceil", "mps", "pte/mps_ops.py", "(-(-span // stride) if ceil_mode", "(span // stride if ceil_mode", "floor instead of ceil"),
    ("mps-average", "mps", "pte/mps_ops.py", "if count_include_pad or", "if not count_include_pad or", "count_include_pad inverted"),
    ("mps-round", "mps", "pte/mps_ops.py", "(x - whole).abs() >= 0.5", "(x - whole).abs() > 0.5", "ties toward zero"),
    ("mps-epsilon", "mps", "pte/mps_ops.py", "/ torch.sqrt(v + epsilon)", "/ torch.sqrt(v)", "epsilon omitted"),
    ("mps-groups", "mps", "pte/mps_ops.py", "scales.repeat_interleave(want // have, dim=axis)", "torch.cat([scales] * (want // have), axis)",
     "scales of groups side by side"),
    ("mps-nibbles", "mps", "pte/mps_read.py", "low, high = (packed << 4) >> 4, packed >> 4", "high, low = (packed << 4) >> 4, packed >> 4",
     "wrong nibble order"),
    ("jump", "pte", "pte/run.py", "bool(resolve(jump.inputs", "not bool(resolve(jump.inputs", "jumps where it should go on"),
    ("pte-zero-point", "pte", "pte/kernels.py", "torch.round(values.float() * inverse) + zero_point",
     "torch.round(values.float() * inverse) + 0 * zero_point", "missing zero point"),
    ("pte-axis", "pte", "pte/kernels.py", "values.reshape([-1 if index == axis % shape_of.ndim", "values.reshape([-1 if index == 0",
     "scales along the wrong axis"),
    ("out-dtype", "pte", "pte/aten_ops.py", "dtype=DTYPES[value.dtype]) for value in outputs]  # resized",
     "dtype=torch.float32) for value in outputs]  # resized", "results in float32 whatever is declared"),
)]  # fmt: skip


def copied_tree(folder: Path) -> Path:
    """A copy of the package in folder/cidermill, which is imported before the installed one where PYTHONPATH
    names the folder."""
    skipped = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "out")
    return shutil.copytree(ROOT, folder / "cidermill", ignore=skipped)


def environment(tree: Path) -> dict[str, str]:
    # the breaks share the cores among themselves
    single = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **single, "PYTHONPATH": str(tree.parent), "PYTHONDONTWRITEBYTECODE": "1"}


def run_tests(
    tree: Path, files: list[str], *options: str, timeout_s: float = TIMEOUT_S
) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *options]
    command += [f"validation/{name}.py" for name in files]
    return subprocess.run(
        command, cwd=tree / "tests", env=environment(tree), capture_output=True, text=True, timeout=timeout_s
    )


def stale(tree: Path, item: Break) -> str:
    path = tree / "validation" / item.file
    count = path.read_text().count(item.old) if path.is_file() else 0
    return "" if count == 1 else f"its text occurs {count} times in {item.file}"


def try_break(tree: Path, item: Break) -> Outcome:
    """Apply a break to a tree, run the tests of its area, and mend the tree."""
    problem = stale(tree, item)
    if problem:
        return Outcome("STALE", problem, 0.0)
    path, started = tree / "validation" / item.file, time.monotonic()
    whole = path.read_text()
    path.write_text(whole.replace(item.old, item.new))
    try:
        verdict, by = judged(run_tests(tree, AREAS[item.area].split(), "-x"))
    except subprocess.TimeoutExpired:
        verdict, by = "caught", f"no end within {TIMEOUT_S} s"
    finally:
        path.write_text(whole)
    return Outcome(verdict, by, time.monotonic() - started)


def judged(done: subprocess.CompletedProcess) -> tuple[str, str]:
    failed = re.search(r"^FAILED validation/(\S+?\.py::[^\s[]+)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return "caught", failed[1]
    if done.returncode == 0:
        return "SURVIVED", ""
    return "BROKEN", " ".join((done.stdout + done.stderr).strip().splitlines()[-1:])


def table_of(results: list[tuple[Break, Outcome]]) -> Table:
    table = Table(
        "break", "file", "what is wrong", "verdict", "caught by", "s", title=f"{len(results)} breaks"
    )
    for item, outcome in results:
        style = "" if outcome.verdict == "caught" else "red"
        table.add_row(
            item.name,
            item.file,
            item.what,
            outcome.verdict,
            outcome.by,
            f"{outcome.seconds:.0f}",
            style=style,
        )
    return table


def check_baseline(tree: Path, chosen: list[Break]) -> None:
    """The copy is what is imported, and its tests pass as long as nothing is broken."""
    found = subprocess.run(
        [sys.executable, "-c", "import cidermill; print(cidermill.__file__)"],
        cwd=tree,
        env=environment(tree),
        capture_output=True,
        text=True,
    )
    if not found.stdout.startswith(str(tree)):
        sys.exit(f"the copy in {tree} is not what python imports: {found.stdout or found.stderr}")
    done = run_tests(
        tree,
        sorted({name for item in chosen for name in AREAS[item.area].split()}),
        timeout_s=BASELINE_TIMEOUT_S,
    )
    if done.returncode:
        sys.exit(f"the tests fail without any break:\n{done.stdout[-3000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="only the break of this name (may be repeated)"
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--list", action="store_true", help="name the breaks, check that their texts still occur, and stop"
    )
    options = parser.parse_args()
    chosen = [item for item in BREAKS if not options.only or item.name in options.only]
    console = Console(width=170)
    if options.list:
        results = [
            (item, Outcome("STALE" if stale(ROOT, item) else "ready", stale(ROOT, item), 0.0))
            for item in chosen
        ]
        console.print(table_of(results))
        return int(any(outcome.verdict == "STALE" for _, outcome in results))
    with tempfile.TemporaryDirectory() as folder:
        trees: queue.Queue[Path] = queue.Queue()
        for number in range(options.workers):
            trees.put(copied_tree(Path(folder) / str(number)))
        check_baseline(trees.queue[0], chosen)

        def work(item: Break) -> tuple[Break, Outcome]:
            tree = trees.get()
            outcome = try_break(tree, item)
            trees.put(tree)
            console.print(f"{item.name}: {outcome.verdict} {outcome.by}", highlight=False)
            return item, outcome

        with ThreadPoolExecutor(options.workers) as pool:
            results = list(pool.map(work, chosen))
    console.print(table_of(results))
    return int(any(outcome.verdict != "caught" for _, outcome in results))


if __name__ == "__main__":
    sys.exit(main())
