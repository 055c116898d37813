"""converters/artifact.py: the identity of a package is that of its files' names and bytes."""

from cidermill.converters.artifact import measure


def package(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return measure(folder)


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
