"""models/digest.py: equal content has equal names, whatever its place, its order or its layout in memory."""

import hashlib

import numpy as np
import pytest
import torch

from cidermill.models.digest import content_of, content_of_files, digest_json, digest_samples, digest_tensor


def package(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return content_of(folder)


def test_names_and_bytes_decide_but_not_the_place_or_the_order(tmp_path):
    files = {"Data/weight.bin": b"weights", "Manifest.json": b"{}"}
    size, digest = package(tmp_path / "first", files)
    assert size == 9
    assert package(tmp_path / "elsewhere" / "second", dict(reversed(files.items()))) == (size, digest)
    others = [
        {"Data/weights.bin": b"weights", "Manifest.json": b"{}"},
        {"Data/weight.bin": b"weightS", "Manifest.json": b"{}"},
        {"Data/weight.bin": b"{}", "Manifest.json": b"weights"},
    ]
    digests = {package(tmp_path / f"other{number}", other)[1] for number, other in enumerate(others)}
    assert len(digests | {digest}) == 4


def test_a_file_is_named_by_the_sha256_of_its_bytes(tmp_path):
    (tmp_path / "net.pte").write_bytes(b"program")
    assert content_of(tmp_path / "net.pte") == (7, hashlib.sha256(b"program").hexdigest())


def test_digest_depends_on_bytes_names_and_order(tmp_path):
    def digest(files):
        return content_of_files(files, tmp_path).sha256

    one, two = tmp_path / "a", tmp_path / "b"
    one.write_bytes(b"12")
    two.write_bytes(b"3")
    before = digest((one, two))
    assert len({digest((one,)), digest((two,)), before, digest((two, one))}) == 4
    one.write_bytes(b"1")
    two.write_bytes(b"23")
    assert digest((one, two)) != before, "the same bytes, divided differently"


def test_a_tensor_is_its_type_shape_and_values_not_its_layout():
    matrix = torch.arange(6.0).reshape(2, 3)
    assert digest_tensor(matrix.t().contiguous().t()) == digest_tensor(matrix)
    others = [matrix.double(), matrix.reshape(3, 2), matrix + 1, matrix[:0], torch.zeros(())]
    assert len({digest_tensor(tensor) for tensor in [matrix, *others]}) == 6


def test_samples_are_their_names_types_shapes_and_bytes():
    batch = {"x": np.ones((1, 4), np.float32)}
    others = [
        {"y": batch["x"]},
        {"x": batch["x"].view(np.int32)},
        {"x": batch["x"].reshape(2, 2)},
        {"x": 2 * batch["x"]},
    ]
    assert (
        len({digest_samples([batch]), digest_samples([batch, batch]), *(digest_samples([b]) for b in others)})
        == 6
    )


def test_the_order_of_keys_does_not_matter_and_nan_is_no_json():
    assert digest_json({"a": 1, "b": [2]}) == digest_json({"b": [2], "a": 1}) != digest_json({"a": 1, "b": 2})
    with pytest.raises(ValueError):
        digest_json([float("nan")])
