"""A path -> which kind of model it is, judged by its content and never by its name; damaged and foreign files
are refused here."""

import codecs
import json
import struct
import zipfile
from pathlib import Path

from .errors import UserError

FORMATS = ("hugging-face", "exported-program", "torchscript", "torch-zip", "torch-legacy", "safetensors")
ACCEPTED = (
    "cidermill reads: torch.export.save programs, torch.save modules and state dicts, safetensors,"
    " TorchScript, and Hugging Face folders (config.json + weights)."
)
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # pickle of torch.serialization.MAGIC_NUMBER
_ONNX_HINT = (
    "Convert from the PyTorch model that the file was exported from:"
    " torch.export.save(torch.export.export(model, inputs), 'model.pt2')"
)
_ARTIFACT_HINT = (
    "An artifact is a result, not a source: use `cidermill inspect FILE` or `cidermill validate FILE"
    " --against MODEL`."
)
_FOREIGN = (  # (offset, bytes, what it is, hint)
    (4, b"ET1", "an ExecuTorch program (.pte)", _ARTIFACT_HINT),
    (0, b"GGUF", "a GGUF file of llama.cpp", "Convert from the Hugging Face folder it was made from."),
    (4, b"TFL3", "a TensorFlow Lite model", "Convert from a PyTorch model."),
    (0, b"\x89HDF", "an HDF5 file (Keras)", "Convert from a PyTorch model."),
    (0, b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (0, b"\x93NUMPY", "a NumPy array", "Pass data with --samples FILE.npz."),
)
_ZIP_SLACK = 64 << 20
_MOST_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


def recognise(path: Path) -> str:
    """-> one of FORMATS, or UserError. Reads the first bytes, a zip's directory and its checksums; runs
    nothing of the file."""
    if path.is_dir():
        return _recognise_folder(path)
    if not path.exists():
        raise UserError(f"{path} does not exist.", "Check the path of the model.")
    if not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder.", ACCEPTED)
    with path.open("rb") as stream:
        head = stream.read(256)
    if not head:
        raise UserError(f"{path} is empty (0 bytes).", "Save or copy the model again.")
    if head[:2] == b"PK":
        return _recognise_zip(path)
    if head.startswith(_LEGACY_MAGIC):
        return "torch-legacy"
    if head[8:9] == b"{":
        check_safetensors(path)
        return "safetensors"
    raise _foreign(path, head)


def zip_members(path: Path) -> tuple[str, ...]:
    """Member names without the archive's top folder, which torch names after the file."""
    with zipfile.ZipFile(path) as archive:
        return tuple(name.partition("/")[2] or name for name in archive.namelist())


def read_member(path: Path, name: str) -> bytes:
    """The bytes of the member that `zip_members` calls `name`."""
    with zipfile.ZipFile(path) as archive:
        full = next(member for member in archive.namelist() if (member.partition("/")[2] or member) == name)
        return archive.read(full)


def check_safetensors(path: Path) -> tuple[str, ...]:
    """-> the tensor names of a safetensors file whose header is sound and whose data is complete; else
    UserError."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if not 2 <= length <= min(size - 8, _MOST_HEADER_BYTES):
            raise _bad_safetensors(path, f"the header claims {length} bytes of a {size}-byte file")
        text = stream.read(length)
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise _bad_safetensors(path, f"the header is not a table of tensors ({error})") from error
    if 8 + length + end != size:
        raise _bad_safetensors(path, f"its tensors need {8 + length + end} bytes, the file has {size}")
    return tuple(tensors)


def _recognise_folder(path: Path) -> str:
    if (path / "Manifest.json").is_file() and (path / "Data").is_dir():
        raise UserError(f"{path} is a Core ML package (.mlpackage).", _ARTIFACT_HINT)
    if (path / "coremldata.bin").is_file():
        raise UserError(f"{path} is a compiled Core ML model (.mlmodelc).", _ARTIFACT_HINT)
    if (path / "config.json").is_file():
        return "hugging-face"
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise UserError(
        f"{path} is a folder without config.json, so not a Hugging Face model. It holds: {found}.", ACCEPTED
    )


def _recognise_zip(path: Path) -> str:
    _check_zip(path)
    members = zip_members(path)
    if "archive_format" in members or any(
        name.startswith("models/") and name.endswith(".json") for name in members
    ):
        return "exported-program"
    if "serialized_exported_program.json" in members:
        hint = "Load and save it again with the torch.export of torch 2.8 or later."
        raise UserError(f"{path} is an exported program of an old torch.", hint)
    if "constants.pkl" in members:
        return "torchscript"
    if "data.pkl" in members:
        return "torch-zip"
    if all(name.endswith(".npy") for name in members):
        raise UserError(
            f"{path} is a NumPy archive of arrays.",
            "Pass data with --samples FILE.npz; the model comes first.",
        )
    raise UserError(
        f"{path} is a zip archive, but not of a PyTorch model. It holds: {', '.join(members[:8])}.", ACCEPTED
    )


def _check_zip(path: Path) -> None:
    most = (
        4 * path.stat().st_size + _ZIP_SLACK
    )  # torch stores weights as they are and deflates only TorchScript's source text
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
            damaged = None if unpacked > most else archive.testzip()
    except Exception as error:  # BadZipFile, and whatever a decompressor raises (zlib.error, RuntimeError, NotImplementedError)
        raise UserError(
            f"{path} is a damaged or incomplete zip archive ({error}).", "Save or copy the model again."
        ) from error
    if unpacked > most:
        raise UserError(
            f"{path} would unpack to {unpacked} bytes, more than {most}: not a model archive.", ACCEPTED
        )
    if damaged:
        raise UserError(
            f"{path} is damaged: the checksum of {damaged} does not match its bytes.",
            "Save or copy the model again.",
        )


def _foreign(path: Path, head: bytes) -> UserError:
    for offset, magic, what, hint in _FOREIGN:
        if head[offset : offset + len(magic)] == magic:
            return UserError(f"{path} is {what}, which is not a source.", hint)
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" and len(head) > 2:
        return _plain_pickle(path)
    if head[:1] == b"\x08" and head[2:3] in b"\x12\x3a\x42":
        return _protobuf(path, head)
    if _is_text(head):
        first = head.decode("utf-8", "ignore").splitlines()[0][:60]
        return UserError(f"{path} is a text file, not a model. It begins: {first!r}", ACCEPTED)
    return UserError(
        f"{path} is not a model that cidermill knows (it begins with the bytes {head[:8].hex(' ')}).",
        ACCEPTED,
    )


def _protobuf(path: Path, head: bytes) -> UserError:
    """ONNX's second field is the producer's name, Core ML's the description message (field 1 of which is
    tagged 0x0a)."""
    if head[2:3] == b"\x12" and head[4:5] == b"\n":
        return UserError(f"{path} is a Core ML model (.mlmodel).", _ARTIFACT_HINT)
    return UserError(f"{path} is an ONNX model, which is not a source.", _ONNX_HINT)


def _plain_pickle(path: Path) -> UserError:
    from .pickles import globals_of

    names = globals_of(path.read_bytes())
    imports = f" It would import {', '.join(names)}; none of it was run." if names else ""
    hint = "Save the model with torch.save or torch.export.save."
    return UserError(f"{path} is a plain pickle, not written by torch.save.{imports}", hint)


def _bad_safetensors(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not a sound safetensors file: {why}.", "Save or copy the model again.")


def _is_text(head: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(
            head
        )  # incremental: the window may cut the last character
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\n\r\f" for character in text)
