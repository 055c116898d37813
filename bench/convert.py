"""ViT-Base from a Hugging Face folder to a validated int8 Core ML package, or float16 ExecuTorch program,
against the bare script of coremltools or ExecuTorch. Ratios, in one run.

    python bench/convert.py [--rounds 3] [--target executorch-mps]

Ours:  `convert FOLDER --target coreml --quant int8 --no-cache`, whole process: load, capture, compress,
convert, open, run, compare, place, report.
Peer:  load, torch.export, ct.convert, ct.optimize.coreml.linear_quantize_weights, save; or load,
torch.export, to_edge_transform_and_lower with the MPS partitioner, which has no compression, save. No check
of any kind.
The two alternate; the median of each side counts. Peak memory is the process's own: ru_maxrss of the child,
or the largest of the report's stages where that is more (on Linux a stage starts the count anew, and what
came before is then missing in ru_maxrss too).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MOST_TIME, MOST_MEMORY = 0.55, 0.5  # of the bare coremltools script's

EXPORT = """
import sys, torch, transformers

class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits

model = transformers.AutoModelForImageClassification.from_pretrained(sys.argv[1]).eval()
program = torch.export.export(Logits(model).eval(), (torch.randn(1, 3, 224, 224),))
"""
COREML = """
import coremltools as ct

program = program.run_decompositions({})
mlmodel = ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
settings = ct.optimize.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", granularity="per_channel")
mlmodel = ct.optimize.coreml.linear_quantize_weights(mlmodel, ct.optimize.coreml.OptimizationConfig(settings))
mlmodel.save(sys.argv[2])
"""
MPS = """
from executorch.backends.apple.mps.partition import MPSPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.exir.backend.compile_spec_schema import CompileSpec

edge = to_edge_transform_and_lower(
    program,
    partitioner=[MPSPartitioner([CompileSpec("use_fp16", bytes([True]))])],
    compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
)
open(sys.argv[2], "wb").write(edge.to_executorch().buffer)
"""
PEERS = {  # target -> (our recipe, the bare script, the most of its time and memory)
    "coreml": ("int8", EXPORT + COREML, MOST_TIME, MOST_MEMORY),
    "executorch-mps": ("float16", EXPORT + MPS, 0.7, 1.2),
}


def measure(command: list[str]) -> tuple[float, int]:
    """-> (wall seconds, peak resident bytes) of one child process; its output is shown if it fails"""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        if os.waitstatus_to_exitcode(status):
            log.seek(0)
            sys.exit(f"{' '.join(command[:2])} failed:\n{log.read().decode()[-3000:]}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def largest_stage(out: Path) -> int:
    """Peak resident bytes of the stages in OUT/report.json"""
    stages = json.loads((out / "report.json").read_text())["stages"]
    return max(stage["peak_rss_bytes"] for stage in stages)


def make_model(folder: Path) -> None:
    script = (
        "import sys, torch, transformers as T; torch.manual_seed(0);"
        " T.ViTForImageClassification(T.ViTConfig()).save_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, capture_output=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--target", choices=PEERS, default="coreml")
    arguments = parser.parse_args()
    rounds, target = arguments.rounds, arguments.target
    recipe, script, most_time, most_memory = PEERS[target]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "vit")
        (folder / "peer.py").write_text(script)
        ours, peer = [], []
        for turn in range(rounds):
            convert = [
                str(Path(sys.executable).parent / "convert"),
                str(folder / "vit"),
                "--target",
                target,
                "--quant",
                recipe,
                "--no-cache",
            ]
            out = folder / f"ours{turn}"
            seconds, resident = measure([*convert, "--out", str(out), "--quiet"])
            ours.append((seconds, max(resident, largest_stage(out))))
            peer.append(
                measure(
                    [
                        sys.executable,
                        str(folder / "peer.py"),
                        str(folder / "vit"),
                        str(folder / f"peer{turn}.mlpackage"),
                    ]
                )
            )
            texts = [
                f"{name} {side[-1][0]:.1f} s, {side[-1][1] / 1e6:.0f} MB"
                for name, side in (("ours", ours), ("peer", peer))
            ]
            print(f"round {turn + 1}: {'; '.join(texts)}", flush=True)
        seconds, memory = (
            [statistics.median(run[index] for run in side) for side in (ours, peer)] for index in (0, 1)
        )
    time_ratio, memory_ratio = seconds[0] / seconds[1], memory[0] / memory[1]
    print(
        f"time ratio   {time_ratio:.2f}  (ours {seconds[0]:.1f} s, validated; bare script"
        f" {seconds[1]:.1f} s)  wanted: at most {most_time}"
    )
    print(
        f"memory ratio {memory_ratio:.2f}  (ours {memory[0] / 1e6:.0f} MB; bare script"
        f" {memory[1] / 1e6:.0f} MB)  wanted: at most {most_memory}"
    )
    return 0 if time_ratio <= most_time and memory_ratio <= most_memory else 1


if __name__ == "__main__":
    sys.exit(main())
