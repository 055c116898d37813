"""The Swift that bundles hold: readable whatever the models are called, and a broken template is noticed."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import tree_sitter
import tree_sitter_swift

from cidermill.pipeline.bundle import swift
from cidermill.pipeline.bundle.conditions import MACHINE
from cidermill.pipeline.bundle.deliverables import Feature, Model, Requirements, Variant
from cidermill.pipeline.bundle.members import identifier, literal
from cidermill.pipeline.bundle.swift import comment, platforms, swift_files, type_names
from cidermill.pipeline.bundle.swift_check import BrokenSwift, check_swift, syntax_errors
from cidermill.pipeline.targets import find_target

HOSTILE = [
    '"',
    "\\(exit(0))",
    "a\nb",
    "*/ }",
    "日本語",
    "🍎",
    "3d",
    "",
    "class",
    "init",
    "Self",
    "a-b",
    "a_b",
    "a b",
    "String",
    "\u2028",
    "\u202e",
    "self",
    "ModelSupport",
    "Ünïcode",
    "x" * 300,
    "Input",
    "_",
    "$0",
    "`let`",
    "#if",
    "//",
    "\x00",
]
FLOAT = Feature("x", "float32", (1, 4))


def model(
    name: str, inputs=(FLOAT,), outputs=(FLOAT,), target: str = "coreml", systems=("18.0", "15.0")
) -> Model:
    requires = Requirements(systems, ("A17 Pro",), 6_000_000_000)
    variant = Variant(
        "int8",
        find_target(target).in_apps,
        None,
        "0" * 64,
        10,
        9,
        requires,
        (),
        (),
        {"recipe": 'int4; "x"=int8', "target": "t"},
        {},
        "a.mlpackage",
        "f",
    )
    return Model(name, {"name": name, "sha256": "1" * 64}, tuple(inputs), tuple(outputs), (variant,))


def sources(*models: Model) -> dict[str, str]:
    return swift_files("AppModels", models, {"a.mlpackage": "2" * 64})


def declared(source: str, kinds: tuple[str, ...]) -> list[str]:
    """Names that declarations of these kinds bind, as the grammar reads them."""
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language()))
    nodes, found = [parser.parse(source.encode()).root_node], []
    while nodes:
        node = nodes.pop(0)
        if node.type in kinds and (name := node.child_by_field_name("name")) is not None:
            found.append(name.text.decode())
        nodes = node.children + nodes
    return found


def test_every_file_is_read_whatever_the_names_are():
    inputs = [Feature(name, "float32", (1, 4)) for name in HOSTILE]
    files = sources(*(model(name, inputs, inputs) for name in HOSTILE))
    assert len({path.lower() for path in files}) == len(HOSTILE) + 2, "two models in one file"
    for path, text in files.items():
        assert syntax_errors(text.encode(), path) == []
        assert text.isascii()


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_name_becomes_an_identifier(name):
    found = identifier(name, set())
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", found) and found not in swift.RESERVED and found.strip("_")
    (kind,) = type_names("AppModels", [model(name)])
    assert re.fullmatch(r"[A-Z][A-Za-z0-9]*", kind) and kind not in swift.RESERVED
    assert declared(f"let {found} = 1", ("property_declaration",)) == [found]


def test_names_stay_apart():
    taken = set()
    assert [identifier(name, taken) for name in ("a-b", "a b", "a_b", "A_B", "x", "xValues")] == [
        "a_b",
        "a_b_2",
        "a_b_3",
        "A_B_4",
        "x",
        "xValues",
    ]
    names = ["net", "Net", "n-e-t", "NET", "ModelError", "AppModels", "data"]
    assert type_names("AppModels", [model(name) for name in names]) == [
        "Net",
        "Net2",
        "NET3",
        "NET4",
        "ModelErrorModel",
        "AppModels2",
        "Data",
    ]


def test_derived_names_do_not_collide_with_own_ones():
    features = [
        Feature("x", "float32", (1, None)),
        Feature("xShape", "int32", (2,)),
        Feature("xValues", "float32", (2,)),
    ]
    text = sources(model("net", features, features))["Sources/AppModels/Net.swift"]
    members = declared(text, ("property_declaration",))
    assert len(members) == len(set(members) - {"x", "xShape", "xValues"}) + 6, members
    assert "xShape_2: [Int]" in text and "public var xValues_2: [Float]" in text


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_literal_is_one_string_without_interpolation(text):
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_swift.language()))
    root = parser.parse(f"let a = {literal(text)}\n".encode()).root_node
    assert not root.has_error and "interpolated" not in str(root)
    meant = re.sub(r"\\u\{([0-9a-f]+)\}", lambda found: chr(int(found[1], 16)), literal(text)[1:-1])
    assert meant == text


def test_a_comment_stays_on_its_line():
    assert comment("a\nlet b\u2028\u202e") == "a?let b??"


def test_the_border_in_swift():
    features = [
        Feature("ids", "int32", (1, None), ranges=((1, 1), (1, 128))),
        Feature("picture", "float32", (1, 3, 224, 200), channels="RGB"),
        Feature("grey", "float32", (1, 1, 28, 28), channels="L"),
        Feature("half", "float16", (2, 3)),
        Feature("mask", "float32", (1, 4), optional=True),
        Feature("any", "float32", (None, 3), shapes=((1, 3), (2, 3))),
    ]
    text = sources(model("net", features))["Sources/AppModels/Net.swift"]
    assert syntax_errors(text.encode(), "Net.swift") == []
    for part in (
        "import CoreVideo",
        'ModelFeature(name: "ids", dtype: "int32", shape: .ranges([1...1, 1...128]), optional: false)',
        'ModelFeature(name: "any", dtype: "float32", shape: .listed([[1, 3], [2, 3]])',
        (
            "public init(ids: MLMultiArray, picture: CVPixelBuffer, grey: CVPixelBuffer, half: MLMultiArray,"
            " mask: MLMultiArray? = nil, any_: MLMult"
        ),
        (
            "public init(ids: [Int32], idsShape: [Int], picture: CGImage, grey: CGImage, half: [Float], mask:"
            " [Float]?, any_: [Float], size: Size = .size1x3) throws"
        ),
        'ModelSupport.array(ids, shape: idsShape, name: "ids")',
        (
            "ModelSupport.pixels(picture, width: 200, height: 224, format: kCVPixelFormatType_32BGRA, name:"
            ' "picture")'
        ),
        "kCVPixelFormatType_OneComponent8",
        'ModelSupport.halfArray(half, shape: [2, 3], name: "half")',
        "try ModelSupport.check(input.picture, channels: 3, against: Self.inputs[1])",
        'features["picture"] = MLFeatureValue(pixelBuffer: input.picture)',
        "if let value = input.mask {",
        'systems: "iOS 18.0, macOS 15.0",',
        'chips: ["A17 Pro"],',
        "memoryBytes: 6000000000",
        'recipe: "int4; \\u{22}x\\u{22}=int8",',
    ):
        assert part in text, part


def test_a_program_for_executorch_has_a_url_and_no_invented_interface():
    text = sources(model("net", target="executorch-mps"))["Sources/AppModels/Net.swift"]
    assert syntax_errors(text.encode(), "Net.swift") == []
    assert "public static func programURL() throws -> URL" in text
    assert "predict" not in text and "import CoreML" not in text


def test_machines_have_chips_that_are_known():
    from cidermill.validation.estimate.devices import all_chips

    table = json.loads((swift.TEMPLATES / "machines.json").read_text())
    machines = [machine for chip, listed in table.items() if chip != "source" for machine in listed]
    assert set(table) - {"source"} <= {chip.name for chip in all_chips()}
    assert len(machines) == len(set(machines)) > 80 and all(
        MACHINE.fullmatch(machine) for machine in machines
    )


def test_the_package_runs_where_every_model_has_a_variant():
    old, new = model("a", systems=("16.0", "13.0")), model("b", systems=("26.0", "26.0"))
    either = replace(new, variants=old.variants + new.variants)
    assert platforms([old, either]) == ("16.0", "13.0")
    assert platforms([old, new]) == ("26.0", "26.0")


BROKEN = {
    "a brace": ("func a() {\n  b(\n}\n", "b.swift:"),
    "an open string": ('let a = "b\nlet c = 1\n', "b.swift:"),
    "half a declaration": ("let a = 1\nfunc (b: Int) {\n}\n", "b.swift:2"),
    "a stray bracket": ("let a = 1\n}\n", "b.swift:2"),
}


@pytest.mark.parametrize(("text", "where"), BROKEN.values(), ids=BROKEN)
def test_broken_swift_is_named_with_its_line(tmp_path, text, where):
    (tmp_path / "a.swift").write_text("let a = 1\n")
    (tmp_path / "b.swift").write_text(text)
    with pytest.raises(BrokenSwift, match=re.escape(where)):
        check_swift(tmp_path, "15.0")


@pytest.mark.parametrize("template", ["Package.swift.j2", "ModelRuntime.swift.j2", "Model.swift.j2"])
def test_a_broken_template_ends_the_command(converted, tmp_path, monkeypatch, cidermill, template):
    """The last brace or bracket of each template is lost: nothing is written, and the exit code says that it
    is our defect."""
    folder = shutil.copytree(
        swift.TEMPLATES, tmp_path / "templates", ignore=shutil.ignore_patterns("*.py", "__pycache__")
    )
    text = (folder / template).read_text().rstrip()
    (folder / template).write_text(text[:-1])
    monkeypatch.setattr(swift, "TEMPLATES", folder)
    result = cidermill("bundle", converted / "int8", "--out", tmp_path / "a")
    assert result.exit_code == 70 and "BrokenSwift" in result.stderr and not (tmp_path / "a").exists()


@pytest.mark.parametrize(("code", "passes"), [(0, True), (1, False)])
def test_a_compiler_is_asked_where_there_is_one(tmp_path, monkeypatch, code, passes):
    """A stand-in for swiftc that accepts or refuses: only that its answer counts is shown here."""
    compiler = tmp_path / "bin" / "swiftc"
    compiler.parent.mkdir()
    compiler.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 'Swift 6.1' && exit 0\necho 'a.swift:1: error: no'"
        f" >&2\nexit {code}\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}:/usr/bin:/bin")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.swift").write_text("let a = 1\n")
    if passes:
        assert "swiftc -parse (Swift 6.1)" in check_swift(tmp_path / "src", "15.0")[1]
    else:
        with pytest.raises(BrokenSwift, match="error: no"):
            check_swift(tmp_path / "src", "15.0")
