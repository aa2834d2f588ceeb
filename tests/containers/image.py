"""The images of ours as folders that a container can have for its root.

The base is Debian by debootstrap, made once a machine. Short form: an image's virtual environment is linked from
the distributions installed here, exactly those that its Dockerfile's extras ask for, so that what the image would
lack is lacked here. Long form (`TORPOR_CONTAINERS=build`): podman builds the Dockerfile as it stands.
"""

from __future__ import annotations

import compileall
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from tests.manifests.conftest import ROOT

BASE = "docker.io/library/python:3.11.14-slim-bookworm"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "torpor-containers"
CA = Path("/etc/ssl/certs/ca-certificates.crt")
SITE = "lib/python3.11/site-packages"


def storage(cache: Path) -> list[str]:
    """The engine's flags for its storage. Its sockets lie outside, since their path may have 50 characters at most."""
    name = hashlib.sha256(str(cache).encode()).hexdigest()[:8]
    flags = ["--root", str(cache / "pods"), "--runroot", f"/run/torpor-{name}"]
    return [*flags, "--storage-driver", "overlay"]


STORAGE = storage(CACHE)
_BASE_DOCKERFILE = """\
FROM scratch
COPY . /
ENV PATH=/usr/bin:/bin:/usr/sbin:/sbin
# The Dockerfiles make the user themselves.
RUN userdel torpor
"""


class Unavailable(Exception):
    """Containers, or their base, cannot be had here."""


@dataclass(frozen=True, slots=True)
class Image:
    """What `podman run` needs of an image: `flags` come before its arguments, `root` names it."""

    flags: list[str]
    root: list[str]
    entrypoint: list[str]
    command: list[str]


def said(*words: object, limit_s: float = 900) -> str:
    """What a command printed; its whole output in the failure."""
    made = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=limit_s, check=False
    )
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    return made.stdout.strip()


def base() -> Path:
    """Debian with its Python and the user of our images."""
    made = CACHE / "bookworm"
    if not made.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        new = CACHE / f"new-{os.getpid()}"
        needs = "--include=python3,python3-venv,python3-async-timeout,ca-certificates"
        words = ["debootstrap", "--variant=minbase", needs, "bookworm", str(new)]
        run = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
        if run.returncode:
            shutil.rmtree(new, ignore_errors=True)
            raise Unavailable(f"debootstrap: {(run.stdout + run.stderr).strip()[-300:]}")
        (new / "usr/bin/python").symlink_to("python3")
        for file, line in {
            "passwd": "torpor:x:10001:10001::/tmp:/bin/sh",
            "group": "torpor:x:10001:",
        }.items():
            with (new / "etc" / file).open("a") as known:
                known.write(line + "\n")
        new.rename(made)
    return made


def linked(dockerfile: str, folder: Path) -> Image:
    """The short form of an image; `folder` gets its virtual environment."""
    text = (ROOT / "images" / dockerfile).read_text()
    (extras,) = {found.group(1) for found in re.finditer(r'"\.\[([\w,]+)\]"', text)}
    site = folder / SITE
    (folder / "bin").mkdir(parents=True)
    for name in ("python", "python3"):
        (folder / "bin" / name).symlink_to("/usr/bin/python3")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    for each in closure(extras.split(",")):
        link(each, site)
    for package in project()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        shutil.copytree(
            ROOT / package, site / package, ignore=shutil.ignore_patterns("__pycache__")
        )
        compileall.compile_dir(site / package, quiet=1)
    link(distribution("torpor"), site)
    # redis asks for it below Python 3.11.3, which Debian's is and ours here is not.
    extra = base() / "usr/lib/python3/dist-packages/async_timeout"
    shutil.copytree(extra, site / "async_timeout", dirs_exist_ok=True)
    stage = last_stage(text)
    flags = ["--volume", f"{folder}:/opt/torpor:ro", *stage.flags]
    return Image(flags, ["--rootfs", str(base())], stage.entrypoint, stage.command)


def built(dockerfile: str, folder: Path) -> Image:
    """The long form: the Dockerfile built as it stands, layers kept from run to run. `TORPOR_BUILD_FLAGS` has more
    flags of the build, as a machine needs that has its packages elsewhere.
    """
    podman = ["podman", *STORAGE]
    how = ["build", "--isolation", "chroot", "--network", "host"]
    folder.mkdir()
    if subprocess.run([*podman, "image", "exists", BASE], capture_output=True).returncode:
        (folder / "Dockerfile").write_text(_BASE_DOCKERFILE)
        said(*podman, *how, "-f", folder / "Dockerfile", "-t", BASE, base())
    (folder / "pip.conf").write_text("[global]\ncert = /run/secrets/ca\n")
    secrets = ["--secret", f"id=pipconf,src={folder / 'pip.conf'}"]
    secrets += ["--secret", f"id=ca,src={CA}"] if CA.exists() else []
    name = f"localhost/torpor-test/{dockerfile.removesuffix('.Dockerfile')}:1"
    how += ["--layers", *secrets, *shlex.split(os.environ.get("TORPOR_BUILD_FLAGS", ""))]
    said(*podman, *how, "-f", ROOT / "images" / dockerfile, "-t", name, ROOT, limit_s=3600)
    stage = last_stage((ROOT / "images" / dockerfile).read_text())
    return Image([], [name], stage.entrypoint, stage.command)


def predictor_image(name: str) -> Image:
    """The predictor's image for CPUs under a name that the engine has it by."""
    stage = last_stage((ROOT / "images" / "predictor-cpu.Dockerfile").read_text())
    return Image([], [name], stage.entrypoint, stage.command)


def readable(model: Path, folder: Path) -> Path:
    """A copy that the image's user may read, whatever our umask was."""
    copy = folder / "claim"
    shutil.copytree(model, copy)
    for path in (folder, copy, *copy.iterdir()):
        path.chmod(0o755)
    return copy


def with_weights(image: Image, claim: Path) -> Image:
    """The image with weights where KServe mounts a claim."""
    return replace(image, flags=[*image.flags, "--volume", f"{claim}:/mnt/models:ro"])


def project() -> dict[str, Any]:
    """What `pyproject.toml` says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def closure(extras: list[str]) -> list[Distribution]:
    """The distributions that `.[extras]` brings, by what each says that it requires."""
    own = project()["project"]
    todo = [Requirement(text) for text in own["dependencies"]]
    for extra in extras:
        todo += [Requirement(text) for text in own["optional-dependencies"][extra]]
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    while todo:
        needed = todo.pop()
        for extra in needed.extras or {""}:
            if (needed.name.lower(), extra) in seen:
                continue
            seen.add((needed.name.lower(), extra))
            made = distribution(needed.name)
            found[made.metadata["Name"]] = made
            for below in map(Requirement, made.requires or []):
                if below.marker is None or any(
                    below.marker.evaluate({"extra": e}) for e in {extra, ""}
                ):
                    todo.append(below)
    return list(found.values())


def link(made: Distribution, site: Path) -> None:
    """A distribution's files into `site`, without copying them where that can be."""
    for file in made.files or []:
        if ".." in file.parts or file.suffix == ".pth":
            continue  # a script of bin/; the way to an editable checkout
        source, target = Path(str(made.locate_file(file))), site / file
        if target.exists() or not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copy(source, target)


def last_stage(dockerfile: str) -> Image:
    """What the last stage of a Dockerfile says of the process."""
    stage = dockerfile.replace("\\\n", " ")
    stage = stage[stage.rindex("\nFROM") :]
    flags = []
    for name, value in _environment(stage):
        flags += ["--env", f"{name}={value}"]
    for word, flag in {"USER": "--user", "WORKDIR": "--workdir"}.items():
        flags += [flag, re.findall(rf"^{word} (\S+)$", stage, re.M)[-1]]
    first = re.findall(r"^ENTRYPOINT (\[.*\])$", stage, re.M)
    then = re.findall(r"^CMD (\[.*\])$", stage, re.M)
    return Image(flags, [], json.loads(first[-1]), json.loads(then[-1]) if then else [])


def _environment(stage: str) -> Iterator[tuple[str, str]]:
    paths = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    for line in re.findall(r"^ENV (.*)$", stage, re.M):
        for word in shlex.split(line):
            name, _, value = word.partition("=")
            yield name, value.replace("$PATH", paths)
