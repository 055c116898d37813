#!/usr/bin/env bash
# coremltools 9.0: the similarities of all places of a picture with each other cannot be converted.
# Expected: f @ f.transpose(1, 2) of f [1, places, channels], itself the turned result of a convolution, becomes a matmul.
# Seen: the pass `reduce_transposes` leaves [1, places, channels] for both factors, and `convert` ends with "x ... y ...
# are not broadcastable". Without that pass the model converts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0"
"$folder/venv/bin/pip" install --quiet "coremltools==9.0" "numpy==2.3.5"
cat >"$folder/check.py" <<'PY'
import coremltools as ct
import torch


class Similarities(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, x):
        features = self.conv(x).flatten(2).transpose(1, 2)
        return (features @ features.transpose(1, 2)).softmax(-1)


program = torch.export.export(Similarities().eval(), (torch.randn(1, 3, 32, 32),)).run_decompositions({})
without = ct.PassPipeline.DEFAULT
without.remove_passes({"common::reduce_transposes"})
ct.convert(program, minimum_deployment_target=ct.target.iOS18, pass_pipeline=without, skip_model_load=True)
try:
    ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
except ValueError as error:
    print("coremltools", ct.__version__, "ValueError:", error)
else:
    raise AssertionError("coremltools converts it now")
PY
"$folder/venv/bin/python" "$folder/check.py" 2>/dev/null
