"""24 recipes on ViT-Base, every artifact validated, against a loop of 24 bare coremltools scripts. Ratios, in
one run.

    python bench/study.py [--recipes int8,palettize4]

Ours:  `cidermill study FOLDER --recipes standard` with an empty cache, whole command: load, capture, 24 times
compress, convert, open, run, compare,
       audit, place, report; the page and the table.
Peer:  for each recipe a process that loads, exports, converts, compresses with ct.optimize.coreml and saves.
No check of any kind. Memory: proportional set sizes of all processes of a side, summed (shared pages count
once), sampled every 0.2 s; a single conversion is one `convert --quant int8`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from convert import make_model

from cidermill.pipeline.study.presets import STANDARD

SCRIPT = """
import sys, torch, transformers, coremltools as ct, coremltools.optimize.coreml as cto

class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits

def linear(dtype, **more):
    config = cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype=dtype, **more)
    return lambda model, joint=False: cto.linear_quantize_weights(
        model, cto.OptimizationConfig(config), joint_compression=joint)

def palette(bits, **more):
    config = cto.OpPalettizerConfig(mode="kmeans", nbits=bits, **more)
    return lambda model, joint=False: cto.palettize_weights(
        model, cto.OptimizationConfig(config), joint_compression=joint)

def prune(**more):
    config = cto.OpMagnitudePrunerConfig(**more)
    return lambda model, joint=False: cto.prune_weights(
        model, cto.OptimizationConfig(config), joint_compression=joint)

channel, group = {"granularity": "per_channel"}, {"granularity": "per_grouped_channel", "group_size": 16}
half = {"target_sparsity": 0.5}
blocks = lambda size: {"granularity": "per_block", "block_size": size}
STEPS = {
    "float16": [],
    "int8": [linear("int8", **channel)],
    "int4": [linear("int4", **blocks(32))],
    "palettize6": [palette(6)],
    "palettize4": [palette(4)],
    "palettize2": [palette(2)],
    "prune50": [prune(**half)],
    "prune50+int8": [prune(**half), linear("int8", **channel)],
    "int8:per-tensor": [linear("int8", granularity="per_tensor")],
    "int8:block32": [linear("int8", **blocks(32))],
    "int4:per-channel": [linear("int4", **channel)],
    "int4:block64": [linear("int4", **blocks(64))],
    "palettize8": [palette(8)],
    "palettize3": [palette(3)],
    "palettize1": [palette(1)],
    "palettize6:group16": [palette(6, **group)],
    "palettize4:group16": [palette(4, **group)],
    "palettize2:group16": [palette(2, **group)],
    "palettize4:int8": [palette(4), linear("int8", granularity="per_tensor")],
    "prune30": [prune(target_sparsity=0.3)],
    "prune75": [prune(target_sparsity=0.75)],
    "prune:2of4": [prune(n_m_ratio=(2, 4))],
    "prune50+int4": [prune(**half), linear("int4", **blocks(32))],
    "prune50+palettize4": [prune(**half), palette(4)],
}
model = transformers.AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
program = torch.export.export(Logits(model).eval(), (torch.randn(1, 3, 224, 224),)).run_decompositions({})
mlmodel = ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
for index, step in enumerate(STEPS[sys.argv[3]]):
    mlmodel = step(mlmodel, joint=index > 0)
mlmodel.save(sys.argv[2])
"""


def measure(command: list[str], log: Path) -> tuple[float, int, int]:
    """-> (wall seconds, peak bytes of the process and its children, exit code)."""
    started, peak = time.perf_counter(), 0
    with log.open("w") as stream:
        child = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        while child.poll() is None:
            peak = max(peak, used_bytes(child.pid))
            time.sleep(0.2)
    return time.perf_counter() - started, peak, child.returncode


def used_bytes(pid: int) -> int:
    """Proportional set sizes of a process and its descendants, summed."""
    total = 0
    try:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            total += process.memory_full_info().pss
    except psutil.Error:  # it has ended meanwhile
        return total
    return total


def ours(folder: Path, recipes: str) -> tuple[float, int]:
    os.environ["CIDERMILL_CACHE"] = str(folder / "cache")
    command = [
        str(Path(sys.executable).parent / "cidermill"),
        "study",
        str(folder / "vit"),
        "--recipes",
        recipes,
        "--out",
        str(folder / "study"),
    ]
    seconds, peak, code = measure([*command, "--quiet"], folder / "study.log")
    rows = [json.loads(line) for line in (folder / "study" / "study.jsonl").read_text().splitlines()[1:]]
    passed = sum(row["verdict"] == "pass" for row in rows)
    print(
        f"study: {seconds:.1f} s, {peak / 1e6:.0f} MB, exit {code}; {passed} of {len(rows)} verdicts pass",
        flush=True,
    )
    return seconds, peak


def peers(folder: Path, recipes: list[str]) -> tuple[float, int]:
    (folder / "peer.py").write_text(SCRIPT)
    total, most = 0.0, 0
    for recipe in recipes:
        out = folder / "peer.mlpackage"
        subprocess.run(["rm", "-rf", str(out)], check=True)
        seconds, peak, code = measure(
            [sys.executable, str(folder / "peer.py"), str(folder / "vit"), str(out), recipe],
            folder / "peer.log",
        )
        failed = (
            ""
            if code == 0
            else f"  failed: {(folder / 'peer.log').read_text().strip().splitlines()[-1][:110]}"
        )
        print(f"  script {recipe:<20} {seconds:6.1f} s {peak / 1e6:6.0f} MB{failed}", flush=True)
        total, most = total + seconds, max(most, peak)
    print(f"scripts: {total:.1f} s, at most {most / 1e6:.0f} MB", flush=True)
    return total, most


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", default=",".join(STANDARD), help="fewer, for a quick look")
    recipes = parser.parse_args().recipes.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "vit")
        convert = [
            str(Path(sys.executable).parent / "convert"),
            str(folder / "vit"),
            "--quant",
            "int8",
            "--no-cache",
            "--quiet",
        ]
        single_seconds, single, _ = measure(
            [*convert, "--out", str(folder / "single")], folder / "single.log"
        )
        print(f"one `convert --quant int8`: {single_seconds:.1f} s, {single / 1e6:.0f} MB", flush=True)
        seconds, peak = ours(folder, ",".join(recipes))
        scripts, script_peak = peers(folder, recipes)
    print(
        f"time ratio   {scripts / seconds:.1f} times faster than {len(recipes)} bare scripts  wanted: at"
        " least 8 for the 24"
    )
    print(
        f"memory ratio {peak / single:.2f} of one `convert`, {peak / script_peak:.2f} of the largest bare"
        " script  wanted: at most 2"
    )
    return 0 if scripts >= 8 * seconds and peak <= 2 * single else 1


if __name__ == "__main__":
    sys.exit(main())
