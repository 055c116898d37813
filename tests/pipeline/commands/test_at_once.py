"""What is wrong with the words of a command is said before anything heavy is imported."""

import json
import subprocess
import sys

HEAVY = ("torch", "coremltools", "executorch", "transformers")
MISTAKES = {
    "a missing model": ["convert", "missing.pt"],
    "an empty model": ["convert", "empty.pt"],
    "a text": ["convert", "text.pt"],
    "an unknown device": ["convert", "model.pt", "--device", "iPhone 99"],
    "an unknown option": ["convert", "model.pt", "--quantt", "int8"],
    "a wrong recipe": ["convert", "model.pt", "--quant", "int9"],
    "a recipe that its target cannot hold": [
        "convert",
        "model.pt",
        "--quant",
        "int4",
        "--deployment-target",
        "iOS16",
    ],
    "a missing recipe file": ["convert", "model.pt", "--quant", "missing.toml"],
    "a limit that is none": ["convert", "model.pt", "--max-size", "12"],
    "a limit on an unknown device": ["convert", "model.pt", "--max-latency", "iPhone 99=3ms"],
    "a budget that is none": ["convert", "model.pt", "--budget", "much"],
    "an unknown target": ["convert", "model.pt", "--target", "onyx"],
    "an input that is none": ["convert", "model.pt", "--input", "x:axb"],
    "missing samples": ["convert", "model.pt", "--samples", "missing.npz"],
    "a missing table": ["convert", "model.pt", "--budget", "1MB", "--sensitivity", "missing.json"],
    "a missing calibration": ["convert", "model.pt", "--calibration", "missing.json"],
    "a folder of others": ["convert", "model.pt", "--out", "full"],
    "a dry run of nothing": ["convert", "missing.pt", "--dry-run"],
    "a study of nothing": ["study", "missing.pt"],
    "a study of wrong recipes": ["study", "model.pt", "--recipes", "int9"],
    "a study within wrong constraints": ["study", "model.pt", "--constraint", "size>=1MB"],
    "a tuning of nothing": ["tune", "missing.pt", "--recipe", "int4", "--data", "data:batches"],
    "a comparison with nothing": ["validate", "net.mlpackage", "--against", "missing.pt"],
    "a comparison of nothing": ["validate", "missing.mlpackage", "--against", "model.pt"],
    "an inspection of nothing": ["inspect", "missing.mlpackage"],
    "a bundle of nothing": ["bundle", "missing", "--out", "bundle"],
    "a difference of nothing": ["diff", "missing.mlpackage", "missing.pte"],
    "no bundle": ["verify", "missing"],
    "a calibration by nothing": ["calibrate", "missing"],
    "a key in no folder": ["keygen", "missing/key.pem"],
    "a check of nothing": ["check", "missing"],
    "an inspection for no device": ["inspect", "net.mlpackage", "--device", "iPhone 99"],
}
SCRIPT = """
import json, sys
from click.testing import CliRunner
from cidermill.pipeline.commands.cli import main
answers = {}
for name, words in json.loads(sys.argv[1]).items():
    result = CliRunner().invoke(main, words)
    heavy = sorted(set(json.loads(sys.argv[2])) & set(sys.modules))
    answers[name] = [result.exit_code, heavy, result.stderr]
print(json.dumps(answers))
"""


def test_a_mistake_is_answered_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 more than the first bytes is not read")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("no model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    words = [sys.executable, "-c", SCRIPT, json.dumps(MISTAKES), json.dumps(HEAVY)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert {name: (code, heavy) for name, (code, heavy, _) in answers.items()} == dict.fromkeys(
        MISTAKES, (2, [])
    )
    assert not [text for _, _, text in answers.values() if "Traceback" in text or not text]
