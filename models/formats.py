"""A path -> which kind of model it is, judged by its content and never by its name; damaged and foreign files
are refused here.

SOURCES is what can be loaded, a row for each kind; a new one is a file with its loader, and a row. FOREIGN is
what is known and refused, each in its own words.
"""

import codecs
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from .archives import zip_members
from .errors import UserError
from .source import Source
from .source_kind import EITHER, WEIGHTS, Content, ForeignKind, LoadOptions, SourceKind

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # pickle of torch.serialization.MAGIC_NUMBER
_ARTIFACT_HINT = (
    "An artifact is a result, not a source: use `cidermill inspect FILE` or `cidermill validate FILE"
    " --against MODEL`."
)
_ONNX_HINT = (
    "Convert from the PyTorch model that the file was exported from:"
    " torch.export.save(torch.export.export(model, inputs), 'model.pt2')"
)
_HEAD_BYTES = 256
_ZIP_SLACK = 64 << 20


def recognise(path: Path) -> SourceKind:
    """Raises UserError for what is no source. Reads the first bytes, a zip's directory and its checksums;
    runs nothing of the file."""
    content = _look(path)
    for kind in SOURCES.values():
        if kind.recognise(content):
            if kind.check is not None:
                kind.check(path)
            return kind
    for foreign in FOREIGN.values():
        if foreign.recognise(content):
            raise foreign.refuse(content)
    raise _unknown(content)


def accepted() -> str:
    """What is read, in a sentence."""
    *first, last = dict.fromkeys(kind.accepted for kind in SOURCES.values())
    return f"cidermill reads: {', '.join(first)}, and {last}."


def usual_suffixes() -> tuple[str, ...]:
    """Endings of files that usually are sources, each once."""
    return tuple(dict.fromkeys(suffix for kind in SOURCES.values() for suffix in kind.suffixes))


def glance(path: Path) -> None:
    """Refuse at once what `recognise` would refuse without reading an archive's bytes."""
    if not _begin(path).is_zip:
        recognise(path)


def _look(path: Path) -> Content:
    content = _begin(path)
    if not content.is_zip:
        return content
    _check_zip(path)
    return replace(content, members=zip_members(path))


def _begin(path: Path) -> Content:
    """The first bytes of a file; UserError where there are none."""
    if path.is_dir():
        return Content(path)
    if not path.exists():
        raise UserError(f"{path} does not exist.", "Check the path of the model.")
    if not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder.", accepted())
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not head:
        raise UserError(f"{path} is empty (0 bytes).", "Save or copy the model again.")
    return Content(path, head)


def _check_zip(path: Path) -> None:
    # torch stores weights as they are and deflates only TorchScript's source text
    most = 4 * path.stat().st_size + _ZIP_SLACK
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
            damaged = None if unpacked > most else archive.testzip()
    except Exception as error:  # BadZipFile, and what a decompressor raises (zlib.error, RuntimeError, ...)
        raise UserError(
            f"{path} is a damaged or incomplete zip archive ({error}).", "Save or copy the model again."
        ) from error
    if unpacked > most:
        raise UserError(
            f"{path} would unpack to {unpacked} bytes, more than {most}: not a model archive.", accepted()
        )
    if damaged:
        raise UserError(
            f"{path} is damaged: the checksum of {damaged} does not match its bytes.",
            "Save or copy the model again.",
        )


# What is read


def _is_program(content: Content) -> bool:
    models = (name.startswith("models/") and name.endswith(".json") for name in content.members)
    return "archive_format" in content.members or any(models)


def _load_program(path: Path, options: LoadOptions) -> Source:
    from .programs import load_program

    return load_program(path, options)


def _load_saved(path: Path, options: LoadOptions) -> Source:
    from .saved_modules import load_saved

    return load_saved(path, options, legacy=False)


def _load_saved_before_zip(path: Path, options: LoadOptions) -> Source:
    from .saved_modules import load_saved

    return load_saved(path, options, legacy=True)


def _load_safetensors(path: Path, options: LoadOptions) -> Source:
    from .saved_modules import load_safetensors

    return load_safetensors(path, options)


def _check_safetensors(path: Path) -> None:
    from .state_dicts import check_safetensors

    check_safetensors(path)


def _load_torchscript(path: Path, options: LoadOptions) -> Source:
    from .torchscript import load_torchscript

    return load_torchscript(path, options)


def _is_hugging_face(content: Content) -> bool:
    return content.has_file("config.json") and not FOREIGN["mlpackage"].recognise(content)


def _load_hugging_face(path: Path, options: LoadOptions) -> Source:
    from .hugging_face import load_folder

    return load_folder(path, options)


SOURCES: dict[str, SourceKind] = {
    kind.name: kind
    for kind in (
        SourceKind(
            "exported-program",
            "an exported program",
            "torch.export.save programs",
            _is_program,
            _load_program,
            suffixes=(".pt", ".pth", ".pt2"),
            says_shapes=True,
        ),
        SourceKind(
            "torch-zip",
            "a pickled module, or weights",
            "torch.save modules and state dicts",
            lambda content: "data.pkl" in content.members and "constants.pkl" not in content.members,
            _load_saved,
            suffixes=(".pt", ".pth", ".bin", ".ckpt"),
            holds=EITHER,
        ),
        SourceKind(
            "torch-legacy",
            "a pickled module, or weights",
            "torch.save modules and state dicts",
            lambda content: content.head.startswith(_LEGACY_MAGIC),
            _load_saved_before_zip,
            suffixes=(".pt", ".pth", ".bin", ".ckpt"),
            holds=EITHER,
        ),
        SourceKind(
            "safetensors",
            "weights",
            "safetensors",
            lambda content: not content.is_zip and content.head[8:9] == b"{",
            _load_safetensors,
            suffixes=(".safetensors",),
            holds=WEIGHTS,
            check=_check_safetensors,
        ),
        SourceKind(
            "torchscript",
            "TorchScript",
            "TorchScript",
            lambda content: "constants.pkl" in content.members,
            _load_torchscript,
            suffixes=(".pt", ".pth"),
        ),
        SourceKind(
            "hugging-face",
            "a Hugging Face folder",
            "Hugging Face folders (config.json + weights)",
            _is_hugging_face,
            _load_hugging_face,
            says_shapes=True,
        ),
    )
}


# What is known and refused


def _refused(what: str, hint: str) -> Callable[[Content], UserError]:
    """what: the rest of the sentence that begins with the path."""
    return lambda content: UserError(f"{content.path} is {what}", hint)


def _by_bytes(offset: int, magic: bytes, what: str, hint: str) -> ForeignKind:
    """A file with these bytes there."""
    return ForeignKind(
        lambda content: content.head[offset : offset + len(magic)] == magic,
        _refused(f"{what}, which is not a source.", hint),
    )


def _is_protobuf(content: Content) -> bool:
    return content.head[:1] == b"\x08" and content.head[2:3] in b"\x12\x3a\x42"


def _is_mlmodel(content: Content) -> bool:
    """The second field is the description message (field 1 of which is tagged 0x0a); ONNX's is a name."""
    return _is_protobuf(content) and content.head[2:3] == b"\x12" and content.head[4:5] == b"\n"


def _is_pickle(content: Content) -> bool:
    return content.head[:1] == b"\x80" and content.head[1:2] <= b"\x05" and len(content.head) > 2


def _refuse_pickle(content: Content) -> UserError:
    from .pickles import globals_of

    names = globals_of(content.path.read_bytes())
    imports = f" It would import {', '.join(names)}; none of it was run." if names else ""
    hint = "Save the model with torch.save or torch.export.save."
    return UserError(f"{content.path} is a plain pickle, not written by torch.save.{imports}", hint)


FOREIGN: dict[str, ForeignKind] = {
    "mlpackage": ForeignKind(
        lambda content: content.has_file("Manifest.json") and content.has_folder("Data"),
        _refused("a Core ML package (.mlpackage).", _ARTIFACT_HINT),
    ),
    "mlmodelc": ForeignKind(
        lambda content: content.has_file("coremldata.bin"),
        _refused("a compiled Core ML model (.mlmodelc).", _ARTIFACT_HINT),
    ),
    "old-exported-program": ForeignKind(
        lambda content: "serialized_exported_program.json" in content.members,
        _refused(
            "an exported program of an old torch.",
            "Load and save it again with the torch.export of torch 2.8 or later.",
        ),
    ),
    "npz": ForeignKind(
        lambda content: content.is_zip and all(name.endswith(".npy") for name in content.members),
        _refused("a NumPy archive of arrays.", "Pass data with --samples FILE.npz; the model comes first."),
    ),
    "pte": _by_bytes(4, b"ET1", "an ExecuTorch program (.pte)", _ARTIFACT_HINT),
    "gguf": _by_bytes(
        0, b"GGUF", "a GGUF file of llama.cpp", "Convert from the Hugging Face folder it was made from."
    ),
    "tflite": _by_bytes(4, b"TFL3", "a TensorFlow Lite model", "Convert from a PyTorch model."),
    "hdf5": _by_bytes(0, b"\x89HDF", "an HDF5 file (Keras)", "Convert from a PyTorch model."),
    "gzip": _by_bytes(0, b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    "npy": _by_bytes(0, b"\x93NUMPY", "a NumPy array", "Pass data with --samples FILE.npz."),
    "pickle": ForeignKind(_is_pickle, _refuse_pickle),
    "mlmodel": ForeignKind(_is_mlmodel, _refused("a Core ML model (.mlmodel).", _ARTIFACT_HINT)),
    "onnx": ForeignKind(_is_protobuf, _refused("an ONNX model, which is not a source.", _ONNX_HINT)),
}


def _unknown(content: Content) -> UserError:
    """Of what no row recognises: what it holds, or how it begins."""
    path, head = content.path, content.head
    if content.is_folder:
        names = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        problem = f"{path} is a folder without config.json, so not a Hugging Face model. It holds: {names}."
    elif content.members:
        names = ", ".join(content.members[:8])
        problem = f"{path} is a zip archive, but not of a PyTorch model. It holds: {names}."
    elif _is_text(head):
        first = head.decode("utf-8", "ignore").splitlines()[0][:60]
        problem = f"{path} is a text file, not a model. It begins: {first!r}"
    else:
        problem = (
            f"{path} is not a model that cidermill knows (it begins with the bytes {head[:8].hex(' ')})."
        )
    return UserError(problem, accepted())


def _is_text(head: bytes) -> bool:
    # incremental: the window may cut the last character
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(head)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\n\r\f" for character in text)
