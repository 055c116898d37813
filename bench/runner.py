"""The reference runner on real sizes: ResNet-50, ViT-Base, BERT-Base and GPT-2 as saved float16 packages.
Ratios, in one run.

    python bench/runner.py [--rounds 7] [--only bert-base] [--keep FOLDER]

time    one forward through the runner / one forward of the float32 model in eager torch, alternating, medians
wanted: at most 2.0
load    open_runner and decode every weight / read the weight file into memory and cast it to float32,
alternating       wanted: at most 1.5
memory  peak resident memory that opening and one call add / float32 weights + 2.5 x the largest layer's
activations     wanted: at most 1.0

The largest layer is the module (without children) of the eager model whose inputs and outputs hold the most
bytes. Every model is measured in processes of its own, in which glibc gives large freed blocks back
(MALLOC_MMAP_THRESHOLD_): otherwise it keeps some 10 MB of them, of any program.
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

TOKENS = {"input_ids": (1, 128), "attention_mask": (1, 128)}
# transformers class, config class, inputs (name -> shape, integers are token ids), settings of a small
# network of the same kind
MODELS = {
    "resnet-50": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"pixel_values": (1, 3, 224, 224)},
        {"embedding_size": 8, "hidden_sizes": [16, 16, 16, 16], "depths": [1, 1, 1, 1]},
    ),
    "vit-base": (
        "ViTForImageClassification",
        "ViTConfig",
        {"pixel_values": (1, 3, 224, 224)},
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    ),
    "bert-base": (
        "BertModel",
        "BertConfig",
        TOKENS,
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", TOKENS, {"n_embd": 16, "n_layer": 1, "n_head": 2}),
}
WANTED = {"time": 2.0, "load": 1.5, "memory": 1.0}


def make_package(name: str, folder: Path, small: bool = False) -> None:
    """The model as a Hugging Face folder, its inputs, and its float16 package; beside it, in small/, a small
    network of the same kind."""
    import torch
    import transformers

    torch.manual_seed(0)
    model, config, shapes, settings = MODELS[name]
    configuration = getattr(transformers, config)(**settings if small else {})
    getattr(transformers, model)(configuration).save_pretrained(folder / "model")
    inputs = {key: sample(key, shape) for key, shape in shapes.items()}
    torch.save(inputs, folder / "inputs.pt")
    described = [
        f"{key}:{'x'.join(map(str, shape))}:{str(inputs[key].dtype).removeprefix('torch.')}"
        for key, shape in shapes.items()
    ]
    convert = [
        str(Path(sys.executable).parent / "convert"),
        str(folder / "model"),
        "--target",
        "coreml",
        "--quant",
        "float16",
        "--quiet",
    ]
    flags = [part for text in described for part in ("--input", text)]
    subprocess.run(
        [*convert, *flags, "--out", str(folder / "out")],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if not small:
        make_package(name, folder / "small", small=True)


def sample(key: str, shape: tuple[int, ...]):
    import torch

    if key == "pixel_values":
        return torch.randn(shape)
    return (
        torch.ones(shape, dtype=torch.int32)
        if "mask" in key
        else torch.randint(0, 30_000, shape, dtype=torch.int32)
    )


def package_in(folder: Path) -> Path:
    return next((folder / "out").glob("*.mlpackage"))


def eager_model(name: str, folder: Path):
    import transformers

    return getattr(transformers, MODELS[name][0]).from_pretrained(folder / "model").eval()


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure_time(name: str, folder: Path, rounds: int) -> dict[str, float]:
    """-> time ratio and load ratio, with both sides of each."""
    import numpy as np
    import torch

    from cidermill.validation import open_runner

    inputs = torch.load(folder / "inputs.pt")
    package, weights = package_in(folder), next(package_in(folder).rglob("weight.bin"))
    model, runner = eager_model(name, folder), open_runner(package, host="reference")

    def eager():
        with torch.no_grad():
            model(**inputs)

    def load():
        open_runner(package, host="reference").decode_weights()

    def read_and_cast():
        np.fromfile(weights, np.float16).astype(np.float32)

    pairs = {"time": (lambda: runner(inputs), eager), "load": (load, read_and_cast)}
    found = {}
    for key, (ours, peer) in pairs.items():
        ours(), peer()
        taken = [(seconds(ours), seconds(peer)) for _ in range(rounds)]
        mine, theirs = (statistics.median(side) for side in zip(*taken))
        found |= {key: mine / theirs, f"{key}_ours_s": mine, f"{key}_peer_s": theirs}
    return found


def measure_memory(name: str, folder: Path, rounds: int) -> dict[str, float]:
    """-> what a call adds at its peak, over what it may add."""
    import torch

    from cidermill.validation import open_runner

    inputs = torch.load(folder / "inputs.pt")
    allowed = weight_bytes(package_in(folder)) + 2.5 * largest_activations(name, folder)
    # what code takes, imported and touched, is not counted
    open_runner(package_in(folder / "small"), host="reference")(inputs)
    reset_peak()
    before = status_bytes("VmRSS")
    open_runner(package_in(folder), host="reference")(inputs)
    added = status_bytes("VmHWM") - before
    return {"memory": added / allowed, "memory_ours_bytes": added, "memory_allowed_bytes": allowed}


def weight_bytes(package: Path) -> int:
    """What the stored float16 weights take as float32."""
    return 2 * next(package.rglob("weight.bin")).stat().st_size


def largest_activations(name: str, folder: Path) -> int:
    """Bytes of the tensors that enter and leave the module for which they are most, in the float32 model."""
    import torch

    model, inputs = eager_model(name, folder), torch.load(folder / "inputs.pt")
    sizes = []

    def measure(module, given, result):
        tensors = [*given, *(result if isinstance(result, (tuple, list)) else [result])]
        sizes.append(sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor)))

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(measure)
    with torch.no_grad():
        model(**inputs)
    return max(sizes)


def status_bytes(key: str) -> int:
    """A line of /proc/self/status, such as VmRSS (resident now) or VmHWM (its peak)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def in_process(measure: str, name: str, folder: Path, rounds: int) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--measure",
        measure,
        "--only",
        name,
        "--keep",
        str(folder.parent),
        "--rounds",
        str(rounds),
    ]
    settings = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"} | (
        {"MALLOC_MMAP_THRESHOLD_": "131072"} if measure == "memory" else {}
    )
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings})
    if done.returncode:
        sys.exit(f"{name}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=MODELS, action="append")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="where the models and packages are kept for the next run"
    )
    parser.add_argument("--measure", choices=("time", "memory"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name = options.only[0]
        print(
            json.dumps(
                {"time": measure_time, "memory": measure_memory}[options.measure](
                    name, options.keep / name, options.rounds
                )
            )
        )
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        return (
            0 if all([report(name, folder / name, options.rounds) for name in options.only or MODELS]) else 1
        )


def report(name: str, folder: Path, rounds: int) -> bool:
    """Measure one model and print its line -> whether every ratio is as wanted."""
    if not (folder / "out").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_package(name, folder)
    found = in_process("time", name, folder, rounds) | in_process("memory", name, folder, rounds)
    sides = {
        "time": f"{found['time_ours_s']:.2f} s / {found['time_peer_s']:.2f} s",
        "load": f"{found['load_ours_s']:.2f} s / {found['load_peer_s']:.2f} s",
        "memory": f"{found['memory_ours_bytes'] / 1e6:.0f} MB / {found['memory_allowed_bytes'] / 1e6:.0f} MB",
    }
    print(f"{name:10}", "  ".join(f"{key} {found[key]:.2f} ({sides[key]})" for key in WANTED), flush=True)
    return all(found[key] <= most for key, most in WANTED.items())


if __name__ == "__main__":
    sys.exit(main())
