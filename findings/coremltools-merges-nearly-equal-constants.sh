#!/usr/bin/env bash
# coremltools 9.0: two float32 constants that differ are stored as one.
# Expected: constants are merged when they are equal.
# Seen: the pass const_deduplication merges float32 constants of one shape whose first 100 elements are equal and
# whose others differ by at most 1e-12 each, however small the values are (float16: by 6e-8). So a table that ends
# in 9e-13 ends in 0 after `ct.convert` in float32, although float32 holds 9e-13 with seven digits.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "coremltools==9.0" "numpy==2.3.5"
cat >"$folder/check.py" <<'PY'
import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

near_zero, zero = np.zeros(200, np.float32), np.zeros(200, np.float32)
near_zero[100:] = 9e-13


@mb.program(
    input_specs=[mb.TensorSpec((200,), dtype=types.fp32)], opset_version=ct.target.iOS18
)
def program(x):
    return mb.add(x=x, y=zero, name="with_zero"), mb.add(x=x, y=near_zero, name="with_near_zero")


options = {"compute_precision": ct.precision.FLOAT32, "skip_model_load": True}
model = ct.convert(program, minimum_deployment_target=ct.target.iOS18, **options)
held = [op.y.val for op in model._mil_program.functions["main"].operations if op.op_type == "add"]
print("coremltools", ct.__version__, "constants kept:", [float(value[150]) for value in held])
assert len(held) == 2 and float(held[1][150]) == 0, "they are kept apart now"
PY
"$folder/venv/bin/python" "$folder/check.py" 2>/dev/null
