"""Credentials of a request's tool servers, sealed: readable with the key of this installation alone, for one tenant,
job and origin.

Sealed by the api at submit, opened by the step that calls the server. What is stored is useless without the key, and a
sealed text that was moved to another job, or whose server was exchanged, does not open. Pure, but for the nonce.
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson
from yarl import URL

from eventing.errors import TorporError

_VERSION: Final = "v1"
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32


class NotSealedHere(TorporError):
    """A sealed text that no key here opens, for this tenant, job and origin. Says nothing of its content."""

    code = "credential_unreadable"


@dataclass(frozen=True, slots=True)
class SealingKeys:
    """The newest key first: it seals, the others only open, so that a key can be replaced."""

    keys: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> "SealingKeys":
        """The keys in a file, one a line, each 32 bytes as base64. Raises `ValueError` without repeating them."""
        lines = [line for line in path.read_text(encoding="ascii").split() if line]
        try:
            keys = tuple(base64.b64decode(line, validate=True) for line in lines)
        except binascii.Error:
            keys = ()
        if not keys or any(len(key) != _KEY_BYTES for key in keys):
            raise ValueError(
                f"{path} must have a line of {_KEY_BYTES} bytes as base64 for each key"
            )
        return cls(keys)


@dataclass(frozen=True, slots=True)
class Binding:
    """What sealed credentials are bound to. `origin` is scheme, host and port of the server."""

    tenant: str
    job_id: str
    origin: str

    @property
    def associated(self) -> bytes:
        return orjson.dumps(["torpor-tools", self.tenant, self.job_id, self.origin])


def origin_of(url: str) -> str:
    """Scheme, host and port of an address; empty for none."""
    return str(URL(url).origin()) if url else ""


def seal(keys: SealingKeys, binding: Binding, headers: Mapping[str, str]) -> str:
    """The headers as a text that `unseal` opens with the same binding."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    key, nonce = keys.keys[0], os.urandom(_NONCE_BYTES)
    box = AESGCM(key).encrypt(nonce, orjson.dumps(dict(headers)), binding.associated)
    text = base64.urlsafe_b64encode(nonce + box).decode().rstrip("=")
    return f"{_VERSION}.{_name(key)}.{text}"


def unseal(keys: SealingKeys, binding: Binding, sealed: str) -> dict[str, str]:
    """The headers that were sealed. Raises `NotSealedHere`."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    version, _, rest = sealed.partition(".")
    name, _, text = rest.partition(".")
    key = next((each for each in keys.keys if _name(each) == name), None)
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        if version != _VERSION or key is None or len(raw) <= _NONCE_BYTES:
            raise NotSealedHere("the credentials were sealed with another key")
        box = AESGCM(key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], binding.associated)
    except (InvalidTag, binascii.Error, ValueError) as error:
        raise NotSealedHere("the credentials are not those of this job and server") from error
    return {str(header): str(value) for header, value in orjson.loads(box).items()}


def _name(key: bytes) -> str:
    """The name of a key in a sealed text: it finds the key and tells nothing about it."""
    return hashlib.sha256(b"torpor-tools-key:" + key).hexdigest()[:8]
