"""transformers finds its models by an index that is read once."""

import json
import subprocess
import sys

SCRIPT = """
import json
from cidermill.models.transformers_imports import one_index
import transformers
from transformers.utils import import_utils
reads = []
read = import_utils.create_import_structure_from_path
import_utils.create_import_structure_from_path = lambda path: reads.append(str(path)) or read(path)
with one_index():
    import transformers.models
taken = transformers.models._class_to_module
again = import_utils.define_import_structure.__wrapped__(transformers.models.__file__)
index = {name: module for group in again.values() for module, names in group.items() for name in names}
same = {name: taken.get(name) for name in index} == index
print(json.dumps([len(reads) - len(set(reads)), same, len(index)]))
"""


def test_the_index_of_models_is_not_read_again_and_is_the_same():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    read_again, same, names = json.loads(done.stdout)
    assert read_again == 0, "the test itself reads each folder"
    assert same and names > 3000
