"""Files that are no models, or damaged ones: each gets one clear sentence."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest
import torch

from cidermill.models.errors import UserError
from cidermill.models.formats import recognise
from cidermill.models.load import load


def refusal(path, **options) -> str:
    with pytest.raises(UserError) as error:
        load(path, **options)
    assert error.value.hint, "every refusal says what to do next"
    return str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty (0 bytes)"),
        (
            np.random.default_rng(0).bytes(500),
            "is not a model that cidermill knows (it begins with the bytes",
        ),
        (
            "weights = [1, 2, 3]  # ünïcode\n".encode() * 20,
            "is a text file, not a model. It begins: 'weights = [1, 2, 3]  # ünïcode'",
        ),
        (b"\x18\x00\x00\x00ET12" + bytes(100), "is an ExecuTorch program (.pte)"),
        (b"GGUF" + bytes(100), "is a GGUF file of llama.cpp"),
        (b"\x08\x08\x12\x07pytorch\x1a\x062.13.0", "is an ONNX model, which is not a source."),
        (b"\x08\x09\x12\x10\n\x05image" + bytes(30), "is a Core ML model (.mlmodel)"),
        (b"\x1f\x8b\x08" + bytes(50), "is a gzip archive"),
        (b"PK\x03\x04" + bytes(200), "is a damaged or incomplete zip archive"),
    ],
    ids=["empty", "random", "text", "pte", "gguf", "onnx", "mlmodel", "gzip", "zip-stub"],
)
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_content_decides_and_not_the_name(tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)


def test_onnx_by_a_real_file(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "m.pt")
    assert "is an ONNX model" in refusal(tmp_path / "m.pt") and "torch.export" in refusal(tmp_path / "m.pt")


def test_missing_path(tmp_path):
    assert "none.pt does not exist." in refusal(tmp_path / "none.pt")


def test_truncated(convnet_file):
    data = convnet_file.read_bytes()
    convnet_file.write_bytes(data[: len(data) // 2])
    assert "is a damaged or incomplete zip archive" in refusal(convnet_file)


def test_every_flipped_byte_of_a_weight_is_noticed(convnet_file):
    with zipfile.ZipFile(convnet_file) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
        weight = archive.read(info)
    data = bytearray(convnet_file.read_bytes())
    start = bytes(data).index(weight)
    data[start + 5] ^= 0x10
    convnet_file.write_bytes(data)
    message = refusal(convnet_file)
    assert "is damaged: the checksum of" in message and "data/0 does not match its bytes" in message


@pytest.mark.parametrize("kind", ["module", "legacy", "torchscript", "program"])
def test_flips_anywhere_never_show_a_traceback(tmp_path, convnet, kind):
    """Each is refused in words or harmless (padding); no other exception gets out."""
    convnet_file = tmp_path / "m"
    if kind in ("module", "legacy"):
        torch.save(convnet.state_dict(), convnet_file, _use_new_zipfile_serialization=kind == "module")
    elif kind == "torchscript":
        torch.jit.script(convnet).save(convnet_file)
    else:
        program = io.BytesIO()
        torch.export.save(torch.export.export(convnet, (torch.ones(1, 3, 8, 8),)), program)
        convnet_file.write_bytes(program.getvalue())
    original = convnet_file.read_bytes()
    refused = 0
    for position in np.random.default_rng(1).integers(0, len(original), 40):
        data = bytearray(original)
        data[position] ^= 0x41
        convnet_file.write_bytes(data)
        try:
            load(convnet_file, model_class="torch.nn:Identity" if kind in ("module", "legacy") else None)
        except UserError:
            refused += 1
    assert refused > 5


def test_bomb(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", bytes(200 << 20))
    assert "would unpack to 209715200 bytes" in refusal(tmp_path / "m.pt")


def test_other_zips(tmp_path):
    with (tmp_path / "m.pt").open("wb") as stream:
        np.savez(stream, x=np.ones(3))
    assert "is a NumPy archive of arrays" in refusal(tmp_path / "m.pt")
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("readme.md", "hello")
    assert "is a zip archive, but not of a PyTorch model. It holds: readme.md." in refusal(tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    assert "is an exported program of an old torch" in refusal(tmp_path / "old.pt2")


def test_folders(tmp_path):
    assert "is a folder without config.json, so not a Hugging Face model. It holds: nothing." in refusal(
        tmp_path
    )
    (tmp_path / "m.mlpackage" / "Data").mkdir(parents=True)
    (tmp_path / "m.mlpackage" / "Manifest.json").write_text("{}")
    message = refusal(tmp_path / "m.mlpackage")
    assert (
        "is a Core ML package (.mlpackage)" in message
        and "`cidermill inspect FILE` or `cidermill validate FILE" in message
    )


def safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


ENTRY = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()


@pytest.mark.parametrize(
    "content, message",
    [
        (safetensors(ENTRY, bytes(4)), "its tensors need 77 bytes, the file has 73"),
        (safetensors(ENTRY, bytes(8), 10**15), "the header claims 1000000000000000 bytes of a 77-byte file"),
        (safetensors(b'{"w": oops}'), "the header is not a table of tensors"),
        (safetensors(b'{"w": {"dtype": 1}}'), "the header is not a table of tensors"),
        (safetensors(ENTRY.replace(b"F32", b"Q99"), bytes(8)), "cannot be read as safetensors"),
    ],
    ids=["truncated", "length", "json", "table", "dtype"],
)
def test_bad_safetensors(tmp_path, content, message):
    (tmp_path / "w.bin").write_bytes(content)
    assert message in refusal(tmp_path / "w.bin")


def test_formats_are_recognised_under_any_name(tmp_path, convnet):
    program = torch.export.export(convnet, (torch.ones(1, 3, 8, 8),))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    (tmp_path / "a.safetensors").write_bytes(buffer.getvalue())
    torch.jit.trace(convnet, torch.ones(1, 3, 8, 8)).save(tmp_path / "b.pt2")
    torch.save(convnet, tmp_path / "c")
    torch.save(convnet, tmp_path / "d", _use_new_zipfile_serialization=False)
    kinds = {path.name: recognise(path).name for path in tmp_path.iterdir()}
    assert kinds == {
        "a.safetensors": "exported-program",
        "b.pt2": "torchscript",
        "c": "torch-zip",
        "d": "torch-legacy",
    }
