#!/usr/bin/env bash
# coremltools 9.0: max pools with ceil_mode keep a window that starts after the end of the input.
# Expected: as many windows as torch has, which leaves one out that would start beyond the input and its left padding.
# Seen: MaxPool2d(1, stride=2, ceil_mode=True) over 6x6 is written with a result of 4x4; torch gives 3x3. The last row
# and column hold the largest of nothing but padding.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torch==2.13.0"
"$folder/venv/bin/pip" install --quiet "coremltools==9.0" "numpy==2.3.5"
cat >"$folder/check.py" <<'PY'
import coremltools as ct
import torch

pool, x = torch.nn.MaxPool2d(1, stride=2, ceil_mode=True).eval(), torch.randn(1, 1, 6, 6)
program = torch.export.export(pool, (x,)).run_decompositions({})
model = ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
written = tuple(model.get_spec().description.output[0].type.multiArrayType.shape)
print("coremltools", ct.__version__, "torch:", tuple(pool(x).shape), "written:", written)
assert tuple(pool(x).shape) == (1, 1, 3, 3) and written == (1, 1, 4, 4), "coremltools has as many windows as torch now"
PY
"$folder/venv/bin/python" "$folder/check.py" 2>/dev/null
