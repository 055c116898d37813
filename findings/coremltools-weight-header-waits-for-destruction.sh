#!/usr/bin/env bash
# coremltools 9.0: a package saved while something holds a frame of the conversion has a wrong weight.bin header.
# Expected: once `ct.convert` has returned, the header of weight.bin counts the records that follow it.
# Seen: the writer of weight.bin puts its last count into the file when it is destroyed, and the package gets a
# copy of the file before. Whatever keeps the conversion's frames alive (a sampling profiler, a debugger; here a
# profile function of Python's own that keeps them) leaves a header that is one short, so that two conversions of
# one model differ in a byte.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "coremltools==9.0" "numpy==2.3.5"
cat >"$folder/check.py" <<'PY'
import struct
import sys
import tempfile

import coremltools as ct
import numpy as np
from coremltools.converters.mil import Builder as mb


def records_counted(watched):
    @mb.program(input_specs=[mb.TensorSpec((1, 64))], opset_version=ct.target.iOS18)
    def program(x):
        for seed in range(3):
            weight = np.random.default_rng(seed).standard_normal((64, 64)).astype(np.float32)
            x = mb.linear(x=x, weight=weight)
        return x

    frames = []

    def keep(frame, event, argument):
        if frame.f_code.co_name == "get_blob_writer":
            frames.append(frame)

    sys.setprofile(keep if watched else None)
    model = ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
    sys.setprofile(None)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/net.mlpackage")
        with open(f"{folder}/net.mlpackage/Data/com.apple.CoreML/weights/weight.bin", "rb") as file:
            return struct.unpack("<I", file.read(4))[0]


alone, watched = records_counted(False), records_counted(True)
print("coremltools", ct.__version__, "records counted:", alone, "and, with frames held,", watched)
assert watched == alone - 1, "the header does not depend on it now"
PY
"$folder/venv/bin/python" "$folder/check.py" 2>/dev/null
