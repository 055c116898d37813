#!/usr/bin/env bash
# coremltools 9.0 with numpy 2.3.5: `astype` to coremltools' int4 gives it only where it copies.
# Expected: codes.astype(int4, copy=False) and codes.astype(int4) are both int4 to coremltools.
# Seen: coremltools keeps int4 as metadata of numpy's dtype int8. To numpy the two dtypes are equal, so without a
# copy the int8 array comes back as it was, and the operator is written with int8 codes: a byte for each 4-bit
# code. The program is valid and computes the same; nothing but its size tells.
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

int4 = types.nptype_from_builtin(types.int4)
codes = (np.arange(64 * 64) % 15 - 7).reshape(64, 64).astype(np.int8)
scale = np.full((64, 1), 0.1, np.float16)


def written(data):
    @mb.program(
        input_specs=[mb.TensorSpec((1, 64), dtype=types.fp16)], opset_version=ct.target.iOS18
    )
    def program(x):
        weight = mb.constexpr_blockwise_shift_scale(data=data, scale=scale)
        return mb.linear(x=x, weight=weight)

    model = ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
    operations = model._mil_program.functions["main"].operations
    operation = next(op for op in operations if op.op_type == "constexpr_blockwise_shift_scale")
    return types.builtin_to_string(operation.data.dtype)


copied, uncopied = written(codes.astype(int4)), written(codes.astype(int4, copy=False))
print("coremltools", ct.__version__, "numpy", np.__version__, "with a copy:", copied, "without:", uncopied)
assert (copied, uncopied) == ("int4", "int8"), "both are of one type now"
PY
"$folder/venv/bin/python" "$folder/check.py" 2>/dev/null
