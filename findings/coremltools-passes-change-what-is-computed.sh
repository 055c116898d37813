#!/usr/bin/env bash
# coremltools 9.0: two passes of the default pipeline change what a program computes.
# Expected: clean-up keeps the values: sqrt(x ** 2) is |x|, and c / conv(x) divides the constant by the convolution.
# Seen: `fuse_pow2_sqrt` makes sqrt(x ** 2) the input itself, which is wrong for every negative number; and
# `fuse_conv_scale` folds c / conv(x) into the weights as if it were conv(x) / c, whichever of the two `real_div`
# divides by. Nothing warns. (Evaluated here by the weights and operators that are left.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "coremltools==9.0" "numpy==2.3.5"
cat >"$folder/check.py" <<'PY'
import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb

ios18 = {"opset_version": ct.target.iOS18}


@mb.program(input_specs=[mb.TensorSpec((4,))], **ios18)
def root_of_square(x):
    return mb.sqrt(x=mb.pow(x=x, y=np.float32(2)))


@mb.program(input_specs=[mb.TensorSpec((1, 1, 4, 4))], **ios18)
def constant_over_convolution(x):
    weight = np.full((1, 1, 1, 1), 2, np.float32)
    return mb.real_div(x=np.full((1, 1, 1), 8, np.float32), y=mb.conv(x=x, weight=weight))


def left(program):
    """Operators after the default passes, and the convolution's weight."""
    model = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT32,
        skip_model_load=True,
    )
    operations = [op for op in model._mil_program.functions["main"].operations if op.op_type != "const"]
    weights = [float(op.inputs["weight"].val.ravel()[0]) for op in operations if op.op_type == "conv"]
    return [op.op_type for op in operations], weights


squares, divided = left(root_of_square), left(constant_over_convolution)
print("coremltools", ct.__version__, "sqrt(x ** 2) is", squares[0], "and 8 / conv(x, 2) is", divided)
assert squares[0] == ["identity"], "the root of a square is kept now"
assert divided == (["conv"], [0.25]), "the division is kept now"
PY
"$folder/venv/bin/python" "$folder/check.py" 2>/dev/null
