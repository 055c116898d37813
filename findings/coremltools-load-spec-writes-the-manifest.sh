#!/usr/bin/env bash
# coremltools 9.0: reading a package writes into it.
# Expected: `load_spec` only reads; checksums and signatures of a package hold after somebody has looked into it.
# Seen: when the reader is done it puts Manifest.json down again, in its own form (sorted keys, four spaces, a newline at the
# end). A manifest of the same content in another form, as a JSON library writes it, has other bytes afterwards.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "coremltools==9.0" "numpy==2.3.5"
cat >"$folder/check.py" <<'PY'
import json
import sys
from pathlib import Path

import coremltools as ct
from coremltools.converters.mil import Builder as mb


@mb.program(input_specs=[mb.TensorSpec(shape=(1, 4))])
def program(x):
    return mb.relu(x=x)


package = Path(sys.argv[1]) / "net.mlpackage"
ct.convert(program, minimum_deployment_target=ct.target.iOS16, skip_model_load=True).save(str(package))
manifest = package / "Manifest.json"
manifest.write_text(json.dumps(json.loads(manifest.read_text())))
before = manifest.read_text()
ct.utils.load_spec(str(package))
after = manifest.read_text()
print("coremltools", ct.__version__, "bytes of the manifest before and after it was read:", len(before), len(after))
assert before != after and json.loads(before) == json.loads(after), "a package stays as it is when it is read now"
PY
"$folder/venv/bin/python" "$folder/check.py" "$folder" 2>/dev/null
