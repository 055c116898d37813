"""Models as people have them, through the command line for both targets, bare coremltools beside them.

    python bench/cases.py FOLDER [--only NAME]... [--workers 2] [--recipe] [--no-peer] [--json FILE]

FOLDER holds a file for each model: `make()` gives a module and its inputs (a tuple, or a dict of keyword
arguments); optional are SAVE (export, pickle, trace, script or hf), EXPORT (further arguments of
torch.export.export), ARGS (of `convert`), QUANT (float16), RECIPE (what --recipe uses instead), EXPECT =
"refuse", and judge(reference, outputs) -> dB.

Each model is saved as its user would have, converted by a process of its own, and what was written is opened
again and run on the model's own inputs. What it says is the worst output's PSNR against the module:

    right        exit 0, and at least 40 dB (with --recipe: the conversion's error on the user's samples)
    FALSE PASS   exit 0, and less
    failed       exit 1: the verdict says so
    refused      exit 2; right where EXPECT says so
    CRASH        any other exit
"""

import argparse
import importlib
import inspect
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

LEAST_DB = 40
TARGETS = ("coreml", "executorch-mps")
MOST_SECONDS = 1500


def save(folder: str, name: str, out: str, peer: str) -> None:
    """In a process of its own: the model as its user has it, its inputs, what it answers, and what bare
    coremltools makes of it."""
    import torch

    module, inputs, case = made(folder, name)
    args, kwargs = arguments_of(inputs)
    way, saved = getattr(case, "SAVE", "export"), Path(out) / name
    kept = [tensor.clone() for tensor in leaves(inputs)]
    names = list(kwargs) if len(kwargs) == len(kept) else None
    if way == "hf":
        module.save_pretrained(saved)
    elif way == "pickle":
        torch.save(module, saved.with_suffix(".pt"))
    elif way == "trace":
        torch.jit.trace(module, args or tuple(kwargs.values())).save(saved.with_suffix(".pt"))
    elif way == "script":
        torch.jit.script(module).save(saved.with_suffix(".pt"))
    else:
        torch.export.save(exported(case, module, args, kwargs), saved.with_suffix(".pt2"))
    module, inputs, case = made(folder, name)  # with its buffers as they were
    args, kwargs = arguments_of(inputs)
    with torch.no_grad():
        answers = [leaf.detach() for leaf in leaves(module(*args, **kwargs))]
    torch.save({"inputs": kept, "answers": answers, "names": names}, Path(out) / "expected.pt")
    if peer == "peer":
        print(json.dumps(bare_coremltools(*made(folder, name), Path(out))))


def made(folder: str, name: str) -> tuple[Any, Any, Any]:
    import torch

    sys.path.insert(0, folder)
    case = importlib.import_module(name)
    torch.manual_seed(0)
    module, inputs = case.make()
    return module, in_order(module, inputs, case), case


def arguments_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((), inputs) if isinstance(inputs, dict) else (tuple(inputs), {})


def in_order(module: Any, inputs: Any, case: Any) -> Any:
    """Of a Hugging Face folder nobody knows how the inputs were given: they come as `forward` takes them."""
    if getattr(case, "SAVE", "") != "hf" or not isinstance(inputs, dict):
        return inputs
    taken = [name for name in inspect.signature(module.forward).parameters if name in inputs]
    return {name: inputs[name] for name in [*taken, *(name for name in inputs if name not in taken)]}


def exported(case: Any, module: Any, args: tuple, kwargs: dict) -> Any:
    import torch

    return torch.export.export(module, args, kwargs or None, **getattr(case, "EXPORT", {}))


def leaves(value: Any) -> list[Any]:
    """The tensors of a nest of tuples, lists, dicts and the outputs of transformers."""
    import torch
    from torch.utils import _pytree as pytree

    flat = pytree.tree_leaves(value.to_tuple() if hasattr(value, "to_tuple") else value)
    return [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]


def bare_coremltools(module: Any, inputs: Any, case: Any, out: Path) -> dict[str, Any]:
    import coremltools as ct

    args, kwargs = arguments_of(inputs)
    begun = time.perf_counter()
    try:
        program = exported(case, module, args, kwargs).run_decompositions({})
        model = ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
        model.save(str(out / "peer.mlpackage"))
    except Exception as error:
        return {"peer": type(error).__name__, "seconds": time.perf_counter() - begun}
    seconds = time.perf_counter() - begun
    try:
        return {"peer": round(psnr_of(out / "peer.mlpackage", out, case), 1), "seconds": seconds}
    except Exception as error:
        return {"peer": f"not run: {type(error).__name__}", "seconds": seconds}


def measure(folder: str, name: str, artifact: str, out: str) -> None:
    """In a process of its own: the artifact's PSNR on the model's own inputs."""
    print(json.dumps({"psnr": psnr_of(Path(artifact), Path(out), made(folder, name)[2])}))


def psnr_of(artifact: Path, out: Path, case: Any) -> float:
    import torch

    from cidermill import open_runner

    expected = torch.load(out / "expected.pt")
    reference = [answer.numpy() for answer in as_plain(expected["answers"])]
    runner = open_runner(artifact, host="reference")
    inputs = [tensor.numpy() for tensor in as_plain(expected["inputs"])]
    if expected["names"] and len(inputs) != len(runner.inputs):
        # the product adds masks, the user leaves inputs out
        known = dict(zip(expected["names"], inputs))
        inputs = [known.get(spec.name, np.ones(spec.shape)) for spec in runner.inputs]
    if len(inputs) != len(runner.inputs):
        raise ValueError(f"{len(runner.inputs)} inputs instead of {len(inputs)}")
    answers = list(runner(fitted(inputs, runner.inputs)).values())
    if hasattr(case, "judge"):
        return float(case.judge(reference, answers))
    if len(answers) != len(reference):
        return -300.0
    return min(level(*pair) for pair in zip(reference, answers))


def fitted(inputs: list[np.ndarray], declared: Any) -> list[np.ndarray]:
    return [array.astype(spec.dtype).reshape(spec.shape) for array, spec in zip(inputs, declared)]


def as_plain(tensors: list[Any]) -> list[Any]:
    """bfloat16 has no NumPy form."""
    import torch

    return [tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in tensors]


def level(reference: np.ndarray, answer: np.ndarray) -> float:
    """PSNR in dB over the reference's largest magnitude; not finite where it should be: -300"""
    reference, answer = np.asarray(reference, "f8").reshape(-1), np.asarray(answer, "f8").reshape(-1)
    if reference.shape != answer.shape or not np.array_equal(np.isfinite(reference), np.isfinite(answer)):
        return -300.0
    finite = np.isfinite(reference)
    error = np.sqrt(np.mean((reference[finite] - answer[finite]) ** 2)) if finite.any() else 0.0
    peak = np.abs(reference[finite]).max() if finite.any() else 0.0
    return 300.0 if error == 0 else float(20 * np.log10(max(peak, 1e-12) / error))


def convert(folder: str, name: str, target: str, out: Path, recipe: bool) -> dict[str, Any]:
    """One process of `cidermill convert`, and what its artifact answers."""
    sys.path.insert(0, folder)
    case = importlib.import_module(name)
    saved = next(path for path in (out / name, out / f"{name}.pt", out / f"{name}.pt2") if path.exists())
    quant = getattr(case, "RECIPE", "int8") if recipe else getattr(case, "QUANT", "float16")
    pressed = out / target
    command = [str(Path(sys.executable).parent / "cidermill"), "convert", str(saved), "--target", target]
    command += ["--quant", quant, "--out", str(pressed), "--json", "--no-cache", *getattr(case, "ARGS", [])]
    begun = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        return {"status": "CRASH", "said": f"longer than {MOST_SECONDS} s", "seconds": MOST_SECONDS}
    row: dict[str, Any] = {"seconds": time.perf_counter() - begun, "said": said(done.stderr)}
    refused = getattr(case, "EXPECT", "") == "refuse"
    if done.returncode not in (0, 1):
        row["status"] = "CRASH" if done.returncode != 2 else "right" if refused else "refused"
        return row
    report = json.loads(done.stdout)
    artifact = report["artifacts"][0]
    row["own"] = min(error["psnr_db"] or 300.0 for error in artifact["validation"]["conversion"])
    path = pressed / Path(artifact["path"]).name
    measured = child("measure", folder, name, str(path), str(out))
    row["psnr"] = measured.get("psnr", -300.0)
    if "psnr" not in measured:
        row["said"] = measured["failed"]
    judged = row["own"] if recipe else row["psnr"]
    row["status"] = "failed" if done.returncode else "right" if judged >= LEAST_DB else "FALSE PASS"
    return row


def said(text: str) -> str:
    """A command's last word: the first line of its message, or the last of its traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        errors = [line for line in lines if ": " in line and " " not in line.split(": ")[0]]
        return (errors or lines)[-1][:150]
    last = lines[-1] if lines else ""
    return next((line for line in lines if line.lower().startswith("error")), last)[:150]


def child(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, "-", *arguments], capture_output=True, text=True)
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return json.loads(line)
    return {"failed": said(done.stderr), "code": done.returncode}


def run_case(folder: str, name: str, recipe: bool, peer: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        out = Path(place)
        row: dict[str, Any] = {"name": name, **child("save", folder, name, str(out), "peer" if peer else "")}
        if not (out / "expected.pt").exists():
            return row | dict.fromkeys(TARGETS, {"status": "not saved", "said": row.get("failed", "")})
        return row | {target: convert(folder, name, target, out, recipe) for target in TARGETS}


def show(rows: list[dict[str, Any]], console: Console) -> int:
    table = Table("case", "target", "status", "PSNR", "s", "coremltools", "said", box=None)
    for row in rows:
        for target in TARGETS:
            cell = row[target]
            psnr = f"{cell['psnr']:.1f}" if "psnr" in cell else ""
            peer = str(row.get("peer", "")) if target == "coreml" else ""
            seconds = f"{cell.get('seconds', 0):.0f}"
            text = "" if cell["status"] == "right" else cell.get("said", "")
            table.add_row(row["name"], target, cell["status"], psnr, seconds, peer, text)
    console.print(table)
    bad = 0
    for target in TARGETS:
        states = [row[target]["status"] for row in rows]
        right = states.count("right") / len(states)
        bad += states.count("CRASH") + states.count("FALSE PASS")
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        console.print(f"{target}: {right:.0%} right of {len(states)} ({counts})")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--recipe", action="store_true", help="compress by RECIPE")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    given = parser.parse_args()
    folder = str(given.folder.resolve())
    names = sorted(path.stem for path in given.folder.glob("*.py") if not path.name.startswith("_"))
    names = [name for name in names if not given.only or name in given.only]
    rows = []
    with ThreadPoolExecutor(given.workers) as pool:
        jobs = [pool.submit(run_case, folder, name, given.recipe, not given.no_peer) for name in names]
        for job in jobs:
            rows.append(job.result())
            if given.json:
                given.json.write_text(json.dumps(rows, indent=1))
    return show(rows, Console(width=160))


if __name__ == "__main__":
    if sys.argv[1:2] == ["-"]:
        {"save": save, "measure": measure}[sys.argv[2]](*sys.argv[3:])
    else:
        sys.exit(main())
