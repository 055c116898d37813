#!/usr/bin/env bash
# coremltools 9.0: a program with two states cannot be converted where its last operation computes one of them.
# Expected: each update comes behind the operation that computes the state's new value.
# Seen: `canonicalize_inplace_pattern` takes the next operation from a list that it made before it moved the first update.
# Where that next operation is the update that it has moved meanwhile, `convert` ends with a KeyError.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0"
"$folder/venv/bin/pip" install --quiet "coremltools==9.0" "numpy==2.3.5"
cat >"$folder/check.py" <<'PY'
import coremltools as ct
import torch


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("first", torch.zeros(1, 32))
        self.register_buffer("second", torch.zeros(1, 32))

    def forward(self, x):
        self.first.add_(x)
        answer = x * 2
        self.second.mul_(0.5)
        return answer


program = torch.export.export(Two().eval(), (torch.ones(1, 32),)).run_decompositions({})
try:
    ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
except KeyError as error:
    print("coremltools", ct.__version__, "KeyError:", str(error).split(",")[0].strip())
else:
    raise AssertionError("coremltools converts it now")
PY
"$folder/venv/bin/python" "$folder/check.py" 2>/dev/null
