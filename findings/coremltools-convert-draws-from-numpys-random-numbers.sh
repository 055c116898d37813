#!/usr/bin/env bash
# coremltools 9.0: `ct.convert` takes numbers from numpy's global random generator.
# Expected: a conversion that uses no random numbers leaves `np.random` where it was, so that a seeded study gives
# the same draws whether or not it converts a model on the way.
# Seen: every conversion moves the generator on, also of a program of one `add`: a pass that fuses activations
# makes the examples that it matches with `np.random.rand` each time.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "coremltools==9.0" "numpy==2.3.5"
cat >"$folder/check.py" <<'PY'
import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb


@mb.program(input_specs=[mb.TensorSpec((4,))], opset_version=ct.target.iOS18)
def program(x):
    return mb.add(x=x, y=np.float32(1))


def draws(conversions):
    np.random.seed(0)
    for _ in range(conversions):
        ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
    return np.random.rand(3).round(4).tolist()


draws(1)  # what is imported late
untouched, converted, again = draws(0), draws(1), draws(2)
print("coremltools", ct.__version__, "seeded draws:", untouched, "after one conversion:", converted, "after two:", again)
assert untouched != converted != again, "conversions leave the generator alone now"
PY
"$folder/venv/bin/python" "$folder/check.py" 2>/dev/null
