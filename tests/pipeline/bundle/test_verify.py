"""`cidermill verify`: whatever was done to a bundle is found and named, and a signature ties it to a key."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from xml.etree import ElementTree

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

RUNTIME = "Sources/AppModels/ModelRuntime.swift"
WEIGHTS = "Sources/AppModels/Resources/net-int8.mlpackage/Data/com.apple.CoreML/weights/weight.bin"


def openssl(*arguments) -> bytes:
    return subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with two keys of openssl's: ours and another, each .pem and .pub.pem; and ones that cannot
    sign."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "another"):
        openssl("genpkey", "-algorithm", "ed25519", "-out", folder / f"{name}.pem")
        openssl("pkey", "-in", folder / f"{name}.pem", "-pubout", "-out", folder / f"{name}.pub.pem")
    openssl("genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:x", "-out", folder / "locked.pem")
    openssl("genpkey", "-algorithm", "x25519", "-out", folder / "x25519.pem")
    openssl("pkey", "-in", folder / "x25519.pem", "-pubout", "-out", folder / "x25519.pub.pem")
    (folder / "text.pem").write_text("no key")
    return folder


@pytest.fixture(scope="module")
def signed(converted, keys, tmp_path_factory):
    """-> (signed bundle, its archive)"""
    from click.testing import CliRunner

    from cidermill.pipeline.commands.cli import main

    folder = tmp_path_factory.mktemp("signed")
    out, archive = folder / "App.bundle", folder / "App.zip"
    options = ["--sign", str(keys / "ours.pem"), "--archive", str(archive), "--quiet"]
    assert (
        CliRunner().invoke(main, ["bundle", str(converted / "int8"), "--out", str(out), *options]).exit_code
        == 0
    )
    return out, archive


@pytest.fixture
def bundle(signed, tmp_path):
    """A copy of the signed bundle that a test may change."""
    return shutil.copytree(signed[0], tmp_path / "App.bundle")


def test_a_bundle_as_it_was_made(signed, keys, cidermill):
    trusted = cidermill("verify", signed[0], "--key", keys / "ours.pub.pem", "--run", "--json")
    assert trusted.exit_code == 0
    told = json.loads(trusted.stdout)
    der = openssl("pkey", "-pubin", "-in", keys / "ours.pub.pem", "-outform", "DER")
    assert told["signature"] == {
        "status": "valid",
        "trusted": True,
        "fingerprint": hashlib.sha256(der).hexdigest(),
    }
    assert told["runs"] == [{"variant": "net/int8", "problem": ""}] and told["problems"] == []
    plain = cidermill("verify", signed[0])
    assert plain.exit_code == 0 and "which no key of yours vouches for (--key)" in plain.stdout


def test_the_signature_is_one_of_rfc_8032(signed, keys):
    """openssl checks it, and the file is the bare signature that the documentation promises."""
    out = signed[0]
    assert (out / "manifest.json.sig").stat().st_size == 64
    said = openssl(
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        keys / "ours.pub.pem",
        "-rawin",
        "-in",
        out / "manifest.json",
        "-sigfile",
        out / "manifest.json.sig",
    )
    assert b"Verified Successfully" in said


def test_an_unsigned_bundle(converted, keys, cidermill, tmp_path):
    assert cidermill("bundle", converted / "int8", "--out", tmp_path / "a", "-q").exit_code == 0
    plain = cidermill("verify", tmp_path / "a")
    assert plain.exit_code == 0 and "not signed" in plain.stdout
    asked = cidermill("verify", tmp_path / "a", "--key", keys / "ours.pub.pem")
    assert asked.exit_code == 1 and "manifest.json is not signed, but a key was given" in asked.stdout


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def strip_signature(bundle):
    (bundle / "manifest.json.sig").unlink()


def edit_manifest(change):
    def edit(bundle):
        manifest = json.loads((bundle / "manifest.json").read_text())
        change(manifest)
        (bundle / "manifest.json").write_text(json.dumps(manifest))

    return edit


def replace_by_link(bundle):
    target = bundle.parent / "elsewhere"
    (bundle / RUNTIME).rename(target)
    (bundle / RUNTIME).symlink_to(target)


def replace_by_pipe(bundle):
    (bundle / RUNTIME).unlink()
    os.mkfifo(bundle / RUNTIME)


TAMPERED = {
    "a bit of a weight": (lambda bundle: flip(bundle / WEIGHTS), f"{WEIGHTS} was changed"),
    "a longer source": (lambda bundle: (bundle / RUNTIME).open("a").write("\n"), f"{RUNTIME} has "),
    "a file less": (lambda bundle: (bundle / RUNTIME).unlink(), f"{RUNTIME} is missing"),
    "a file more": (
        lambda bundle: (bundle / "Sources" / "AppModels" / "Evil.swift").write_text("x"),
        "Sources/AppModels/Evil.swift is not in the",
    ),
    "a hidden file more": (lambda bundle: (bundle / ".hidden").touch(), ".hidden is not in the manifest"),
    "a link to the same bytes": (replace_by_link, f"{RUNTIME} is a link or no plain file"),
    "a pipe": (replace_by_pipe, f"{RUNTIME} is a link or no plain file"),
    "a link to a folder": (lambda bundle: (bundle / "more").symlink_to("/tmp"), "more is a link"),
    "another SBOM": (lambda bundle: flip(bundle / "sbom.cdx.json"), "sbom.cdx.json was changed"),
    "another manifest": (
        edit_manifest(lambda manifest: manifest.update(cidermill="9")),
        "manifest.json the signature does not fit",
    ),
    "another signature": (
        lambda bundle: flip(bundle / "manifest.json.sig"),
        "manifest.json the signature does not fit",
    ),
    "a short signature": (
        lambda bundle: (bundle / "manifest.json.sig").write_bytes(b"x"),
        "manifest.json the signature does not fit",
    ),
    "no signature": (strip_signature, "manifest.json.sig is missing"),
    "a denied signature": (
        edit_manifest(lambda manifest: manifest.update(signer=None)),
        "manifest.json.sig is not in the manifest",
    ),
    "a damaged signer": (
        edit_manifest(lambda manifest: manifest.update(signer={"public_key": "!"})),
        "record of its signer is damaged",
    ),
    "a false fingerprint": (
        edit_manifest(lambda manifest: manifest["signer"].update(fingerprint="00")),
        "record of its signer contradicts itself",
    ),
    "a manifest cut off": (
        lambda bundle: os.truncate(bundle / "manifest.json", 2000),
        "manifest.json is damaged",
    ),
    "a manifest without files": (
        edit_manifest(lambda manifest: manifest.pop("files")),
        "manifest.json is damaged",
    ),
    "a manifest of other types": (
        edit_manifest(lambda manifest: manifest["files"].update({"a": 3})),
        "manifest.json is damaged",
    ),
    "a path that leaves": (
        edit_manifest(
            lambda manifest: manifest["files"].update({"../../etc/passwd": {"sha256": "0", "size_bytes": 1}})
        ),
        "../../etc/passwd is missing",
    ),
}


@pytest.mark.parametrize(("change", "text"), TAMPERED.values(), ids=TAMPERED)
def test_a_tampered_bundle(bundle, cidermill, change, text):
    change(bundle)
    result = cidermill("verify", bundle, "--run")
    assert result.exit_code == 1, result.output
    assert text in " ".join(result.stdout.split())
    told = json.loads(cidermill("verify", bundle, "--json").stdout)
    assert told["verdict"] == "fail" and any(
        text.startswith(one["file"]) or text in one["problem"] for one in told["problems"]
    )


def test_a_forger_who_signs_again_is_found_by_the_key_only(bundle, keys, cidermill):
    """Everything is consistent but the key: what --key is for."""
    with (bundle / RUNTIME).open("a") as stream:
        stream.write("// evil\n")
    data = (bundle / RUNTIME).read_bytes()
    forger = serialization.load_pem_private_key((keys / "another.pem").read_bytes(), None)
    assert isinstance(forger, Ed25519PrivateKey)
    public = forger.public_key()
    raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    outer = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][RUNTIME] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    manifest["signer"] = {
        "algorithm": "Ed25519",
        "public_key": base64.b64encode(raw).decode(),
        "fingerprint": hashlib.sha256(outer).hexdigest(),
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    (bundle / "manifest.json.sig").write_bytes(forger.sign((bundle / "manifest.json").read_bytes()))
    assert cidermill("verify", bundle).exit_code == 0
    result = cidermill("verify", bundle, "--key", keys / "ours.pub.pem")
    assert result.exit_code == 1 and "manifest.json it was signed by another key" in " ".join(
        result.stdout.split()
    )


def test_an_artifact_that_does_not_run_is_named(converted, cidermill, tmp_path):
    """Honestly listed and unsigned, but cut off: only --run opens it."""
    out = tmp_path / "a"
    assert cidermill("bundle", converted / "int8", "--out", out, "-q").exit_code == 0
    data = (out / WEIGHTS).read_bytes()[:1000]
    (out / WEIGHTS).write_bytes(data)
    edit_manifest(
        lambda manifest: manifest["files"].update(
            {WEIGHTS: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": 1000}}
        )
    )(out)
    assert cidermill("verify", out).exit_code == 0
    result = cidermill("verify", out, "--run")
    assert result.exit_code == 1 and "net/int8" in result.stdout and "truncated" in result.stdout


def test_a_manifest_that_points_out_of_the_bundle_is_not_followed(converted, cidermill, tmp_path):
    out = tmp_path / "a"
    assert cidermill("bundle", converted / "int8", "--out", out, "-q").exit_code == 0
    outside = os.path.relpath(
        converted / "half" / "net.mlpackage", out / "Sources" / "AppModels" / "Resources"
    )
    edit_manifest(lambda manifest: manifest["models"][0]["variants"][0].update(resource=outside))(out)
    result = cidermill("verify", out, "--run")
    assert result.exit_code == 1 and "is not among the manifest's files" in " ".join(result.stdout.split())


def test_an_archive(signed, keys, cidermill, tmp_path):
    assert cidermill("verify", signed[1], "--key", keys / "ours.pub.pem").exit_code == 0
    with zipfile.ZipFile(signed[1]) as archive:
        assert {entry.filename.partition("/")[0] for entry in archive.infolist()} == {"AppModels"}
        archive.extractall(tmp_path)
    assert cidermill("verify", tmp_path / "AppModels").exit_code == 0
    data = bytearray(signed[1].read_bytes())
    place = data.index(b"public struct ModelVariant")
    data[place] ^= 1
    (tmp_path / "bad.zip").write_bytes(data)
    damaged = cidermill("verify", tmp_path / "bad.zip")
    assert damaged.exit_code == 2 and "is a damaged archive" in " ".join(damaged.stderr.split())
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../evil", "x")
    assert cidermill("verify", tmp_path / "evil.zip").exit_code == 2
    assert not (tmp_path.parent / "evil").exists()


REFUSED = {
    "no folder": (["nowhere"], "nowhere does not exist"),
    "no bundle": (["empty"], "empty is no bundle: it has no manifest.json"),
    "a file": (["file"], "file is neither a folder nor an archive"),
    "a manifest of somebody else": (["other"], "is not the manifest of a bundle (schema 'x')"),
    "a newer bundle": (
        ["newer"],
        "has the schema cidermill.bundle/2; this version of cidermill reads cidermill.bundle/1",
    ),
    "no key": (["App.bundle", "--key", "none.pem"], "The key none.pem cannot be read"),
    "a private key": (["App.bundle", "--key", "{keys}/ours.pem"], "is a private key"),
    "another kind of key": (
        ["App.bundle", "--key", "{keys}/x25519.pub.pem"],
        "is not an Ed25519 key (X25519PublicKey)",
    ),
    "a text for a key": (["App.bundle", "--key", "{keys}/text.pem"], "is no public key in PEM form"),
}


@pytest.mark.parametrize(("arguments", "text"), REFUSED.values(), ids=REFUSED)
def test_bad_usage(bundle, keys, cidermill, monkeypatch, arguments, text):
    monkeypatch.chdir(bundle.parent)
    for folder, schema in (("empty", None), ("other", "x"), ("newer", "cidermill.bundle/2")):
        (bundle.parent / folder).mkdir()
        if schema:
            (bundle.parent / folder / "manifest.json").write_text(json.dumps({"schema": schema}))
    (bundle.parent / "file").write_text("x")
    result = cidermill("verify", *(argument.format(keys=keys) for argument in arguments))
    assert result.exit_code == 2 and text in " ".join(result.stderr.split()) and not result.stdout


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("locked.pem", "is encrypted"),
        ("x25519.pem", "is not an Ed25519 key (X25519PrivateKey)"),
        ("text.pem", "is no private key in PEM form"),
        ("ours.pub.pem", "is no private key"),
    ],
)
def test_keys_that_cannot_sign(converted, keys, cidermill, tmp_path, key, text):
    result = cidermill("bundle", converted / "int8", "--out", tmp_path / "a", "--sign", keys / key)
    assert result.exit_code == 2 and text in " ".join(result.stderr.split()) and not (tmp_path / "a").exists()


def test_keygen_makes_what_bundle_and_verify_take(converted, cidermill, tmp_path):
    made = cidermill("keygen", tmp_path / "key.pem", "--json")
    assert made.exit_code == 0
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert isinstance(
        serialization.load_pem_public_key((tmp_path / "key.pub.pem").read_bytes()), Ed25519PublicKey
    )
    assert (
        cidermill(
            "bundle", converted / "int8", "--out", tmp_path / "a", "--sign", tmp_path / "key.pem", "-q"
        ).exit_code
        == 0
    )
    told = json.loads(cidermill("verify", tmp_path / "a", "--key", tmp_path / "key.pub.pem", "--json").stdout)
    assert (
        told["signature"]["trusted"]
        and told["signature"]["fingerprint"] == json.loads(made.stdout)["fingerprint"]
    )
    again = cidermill("keygen", tmp_path / "key.pem")
    assert again.exit_code == 2 and "a key is never overwritten" in again.stderr


def test_continuous_integration_is_told_which_file_was_changed(converted, cidermill, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    cidermill("bundle", converted / "int8", "--out", tmp_path / "a", "--quiet")
    good = cidermill("verify", tmp_path / "a", "--run", "--ci", "--junit", tmp_path / "good.xml", "--quiet")
    assert good.exit_code == 0 and good.output.startswith("::notice ")
    suite = ElementTree.parse(tmp_path / "good.xml").getroot()[0]
    assert [case.get("name") for case in suite.iter("testcase")] == ["files and signature", "run net/int8"]
    weights = next((tmp_path / "a").rglob("weight.bin"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    bad = cidermill("verify", tmp_path / "a", "--ci", "--junit", tmp_path / "bad.xml", "--quiet")
    assert bad.exit_code == 1 and bad.output.count("::error ") == 1 and "weight.bin was changed" in bad.output
    suite = ElementTree.parse(tmp_path / "bad.xml").getroot()[0]
    assert suite.get("failures") == "1" and "weight.bin was changed" in suite.find(".//failure").get(
        "message"
    )
    assert (
        "cidermill verify: pass" in (tmp_path / "summary.md").read_text()
        and "weight.bin was changed" in (tmp_path / "summary.md").read_text()
    )
