"""A specification and its weights in, the files of an ML Program package out, with identifiers that follow
from their contents.

coremltools' own writer numbers packages at random, and puts the manifest down when it is destroyed, which
takes as long as somebody holds a frame that knows it: a profiler's thread, such as each worker of Dask has.
"""

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

from ...models.digest import Content, add_files, files_of

AUTHOR = "com.apple.CoreML"
MODEL, WEIGHTS = f"{AUTHOR}/model.mlmodel", f"{AUTHOR}/weights"
_DESCRIPTIONS = {MODEL: "CoreML Model Specification", WEIGHTS: "CoreML Model Weights"}


def start_package(package: Path) -> Path:
    """-> the folder that its weights are to be written into, which is made"""
    weights = package / "Data" / WEIGHTS
    weights.mkdir(parents=True)
    return weights


def finish_package(package: Path, specification: Any) -> Content:
    """Write the protobuf with its maps in order beside the weights, and the manifest."""
    (package / "Data" / MODEL).write_bytes(specification.SerializeToString(deterministic=True))
    total = hashlib.sha256()
    size_bytes = add_files(total, files_of(package), package)
    manifest = package / "Manifest.json"
    # as coremltools puts it down, which it does to every package that it reads
    manifest.write_text(json.dumps(_manifest(total.hexdigest()), indent=4, sort_keys=True) + "\n")
    size_bytes += add_files(total, [manifest], package)
    return Content(size_bytes, total.hexdigest())


def _manifest(digest: str) -> dict[str, Any]:
    """digest: of the other files"""
    keys = {path: str(uuid.uuid5(uuid.NAMESPACE_OID, digest + path)) for path in _DESCRIPTIONS}
    return {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            keys[path]: {"author": AUTHOR, "description": text, "name": Path(path).name, "path": path}
            for path, text in _DESCRIPTIONS.items()
        },
        "rootModelIdentifier": keys[MODEL],
    }
