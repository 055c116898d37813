"""Ed25519 signatures of a bundle's manifest (RFC 8032): keys as PEM files enter, 64 raw bytes and the
signer's record leave.

manifest.json.sig holds the 64 bytes of the signature of manifest.json's bytes and nothing else, so that
`openssl pkeyutl -verify -pubin -inkey KEY.pub -rawin -in manifest.json -sigfile manifest.json.sig` checks it
as well. The manifest names the `Signer`.
"""

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.errors import UserError
from ...models.extras import require_extra

ALGORITHM = "Ed25519"
KEY_HINT = "Make one with `cidermill keygen KEY.pem`, or `openssl genpkey -algorithm ed25519 -out KEY.pem`."
PUBLIC_HINT = "Give the public key, as `openssl pkey -in KEY.pem -pubout` prints it."


@dataclass(frozen=True)
class Signer:
    """public_key: base64 of its 32 bytes; fingerprint: SHA-256 of its SubjectPublicKeyInfo in DER, as
    `openssl pkey -pubin -in KEY.pub -outform DER | sha256sum` prints it. A damaged record may lack some."""

    algorithm: str = ""
    public_key: str = ""
    fingerprint: str = ""


def read_private_key(path: Path) -> Any:
    """A PEM file (PKCS 8) -> Ed25519PrivateKey. Raises UserError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path, KEY_HINT)
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise UserError(
            f"The key {path} is encrypted.", f"Decrypt it for this: openssl pkey -in {path} -out PLAIN.pem."
        ) from error
    except Exception as error:  # ValueError, UnsupportedAlgorithm: the library's words are about ASN.1
        raise UserError(f"{path} is no private key in PEM form.", KEY_HINT) from error
    return _ed25519(key, Ed25519PrivateKey, path, KEY_HINT)


def read_public_key(path: Path) -> Any:
    """A PEM file (SubjectPublicKeyInfo) -> Ed25519PublicKey. Raises UserError."""
    require_extra("bundle", "A signature")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read(path, PUBLIC_HINT)
    if b"PRIVATE KEY" in data:
        raise UserError(f"{path} is a private key.", PUBLIC_HINT)
    try:
        key = load_pem_public_key(data)
    except Exception as error:
        raise UserError(f"{path} is no public key in PEM form.", PUBLIC_HINT) from error
    return _ed25519(key, Ed25519PublicKey, path, PUBLIC_HINT)


@dataclass(frozen=True)
class KeyPair:
    """The result of `cidermill keygen`: paths of both halves, and the public one's fingerprint."""

    key: str
    public_key: str
    fingerprint: str


def write_keys(path: Path) -> KeyPair:
    """A new key at `path`, readable by its owner alone, and its public half beside it."""
    require_extra("bundle", "A signature")
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = path.with_name(path.name.removesuffix(".pem") + ".pub.pem")
    for existing in (path, public):
        if existing.exists():
            raise UserError(
                f"{existing} exists; a key is never overwritten.",
                "Choose another name, or move the old key away.",
            )
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
            stream.write(private)
        public.write_bytes(
            key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        )
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}.", "Choose a folder that you may write to."
        ) from error
    return KeyPair(str(path), str(public), signer(key.public_key()).fingerprint)


def signer(public_key: Any) -> Signer:
    from cryptography.hazmat.primitives import serialization as form

    raw = public_key.public_bytes(form.Encoding.Raw, form.PublicFormat.Raw)
    outer = public_key.public_bytes(form.Encoding.DER, form.PublicFormat.SubjectPublicKeyInfo)
    key = base64.b64encode(raw).decode()
    return Signer(ALGORITHM, key, hashlib.sha256(outer).hexdigest())


def signature_problem(manifest: bytes, signature: bytes, record: Signer, trusted: Any = None) -> str:
    """ "" where `signature` is the recorded signer's of these bytes, and the signer is the trusted key, if
    one is given; else what is wrong."""
    require_extra("bundle", "A signature")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(record.public_key, validate=True))
    except (ValueError, binascii.Error):
        return "the manifest's record of its signer is damaged"
    own = signer(key)
    if own != record:
        return "the manifest's record of its signer contradicts itself"
    if trusted is not None and own != signer(trusted):
        return f"it was signed by another key ({own.fingerprint})"
    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        return "the signature does not fit: the manifest, or the signature, was changed"
    return ""


def _ed25519(key: Any, kind: type, path: Path, hint: str) -> Any:
    if not isinstance(key, kind):
        raise UserError(f"The key {path} is not an {ALGORITHM} key ({type(key).__name__.strip('_')}).", hint)
    return key


def _read(path: Path, hint: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"The key {path} cannot be read: {error.strerror}.", hint) from error
