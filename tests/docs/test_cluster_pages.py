"""The commands on the cluster's pages: those that need no cluster are run; all names in the others exist."""

import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from knative.deploy.doctor import Severity, examine
from knative.deploy.render.tree import files
from knative.deploy.values import StoreValues, Values
from tests.manifests.conftest import kustomize
from tests.manifests.objects import secrets
from torpor.cli.app import assembled

ROOT = Path(__file__).parents[2]
TORPOR = str(Path(sys.executable).parent / "torpor")
PAGES = (
    "install.md",
    "operations.md",
    "security.md",
    "topologies.md",
    "autoscaling.md",
    "kn.md",
    "tutorials/serverless.md",
)
# `render` changes nothing here: the committed manifests are those of their values.
WITHOUT_A_CLUSTER = ("torpor render && torpor doctor manifests/overlays/queue",)


def commands(page: str) -> Iterator[str]:
    """Every command of a page that a person pastes or reads in a line, comments off."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    indented = re.findall(r"^ {4,}((?:torpor|kubectl|make|helm|kind) .+)$", text, re.MULTILINE)
    quoted = re.findall(r"`((?:torpor|kubectl) [^`]+)`", text)
    yield from (re.sub(r"\s+#.*$", "", each).strip() for each in [*indented, *quoted])


def torpor_calls() -> list[str]:
    found = [part.strip() for page in PAGES for each in commands(page) for part in each.split("&&")]
    return sorted({each for each in found if each.startswith("torpor ")})


@pytest.fixture(scope="module")
def help_of() -> dict[str, str]:
    """What `--help` says of each command that the pages name, asked once each."""
    app, runner = assembled(), CliRunner(env={"COLUMNS": "300", "TERM": "dumb"})
    names = sorted({call.split()[1] for call in torpor_calls()})
    return {
        name: runner.invoke(app, [name, "--help"], catch_exceptions=False).output for name in names
    }


@pytest.mark.parametrize("call", torpor_calls())
def test_every_torpor_command_in_the_docs_has_the_flags_used_there(
    call: str, help_of: dict[str, str]
) -> None:
    _, name, *words = shlex.split(call.replace("'", "").replace("...", "X"))

    for flag in (word.partition("=")[0] for word in words if word.startswith("-")):
        assert flag in help_of[name], call


@pytest.mark.parametrize("page", PAGES)
def test_a_folder_of_manifests_that_a_command_names_is_there(page: str) -> None:
    text = "\n".join(commands(page))

    for path in set(re.findall(r"\bmanifests/[\w./-]+", text)):
        assert (ROOT / path).exists(), path


MADE_BY_THE_PLATFORM = {
    ("deployment", "activator"),
    ("deployment", "kserve-controller-manager"),
    ("configmap", "config-network"),
    ("secret", "torpor-direct"),  # the reader makes it
    ("cronjob", "backup-now"),  # a Job that the reader makes of the CronJob
}
SHORT = {"svc": "service", "ksvc": "service", "deploy": "deployment", "secrets": "secret"}


@pytest.mark.parametrize("page", PAGES)
def test_every_object_that_a_kubectl_command_names_is_rendered(page: str) -> None:
    known = {(kind.lower(), name) for kind, name in rendered() | of_three_servers()}
    known |= MADE_BY_THE_PLATFORM

    assert set(named_by(page)) <= known


def named_by(page: str) -> Iterator[tuple[str, str]]:
    """Kinds and names of ours in the page's commands: `kubectl get secret NAME`, `svc/NAME`, `deployment NAME`."""
    kinds = "deployment|statefulset|service|svc|ksvc|secret|configmap|trigger|scaledobject|cronjob|job|hpa|pvc"
    for command in commands(page):
        if not command.startswith("kubectl"):
            continue
        for kind, names in re.findall(rf"\b({kinds})(?:/| )((?:[a-z][\w-]*(?=\s|$) ?)+)", command):
            for name in set(names.split()) - {"generic"}:  # `create secret generic NAME`
                yield SHORT.get(kind, kind), name


@cache
def rendered() -> frozenset[tuple[str, str]]:
    """What the shipped overlays apply, and what is made from it."""
    found = set()
    for overlay in ("queue-cpu", "queue", "serverless", "serverless-cpu", "serverless-kafka"):
        for each in kustomize(ROOT / "manifests" / "overlays" / overlay):
            found.add((each["kind"], each["metadata"]["name"]))
            if each["kind"] == "InferenceService":
                found |= {
                    (kind, f"{each['metadata']['name']}-predictor")
                    for kind in ("Deployment", "Service")
                }
    return frozenset(found | {("Secret", name) for name in secrets()})


@cache
def of_three_servers() -> frozenset[tuple[str, str]]:
    """The objects of a store of three servers with backups, and the claims of their disks."""
    store = StoreValues(replicas=3, backup_url="s3://bucket/torpor")
    texts = [text for name, text in files(Values(store=store)).items() if name.endswith(".yaml")]
    found = set()
    for each in (each for text in texts for each in yaml.safe_load_all(text) if each):
        if "metadata" in each:
            found.add((each["kind"], each["metadata"]["name"]))
        if each.get("kind") == "StatefulSet":
            found |= {
                ("PVC", f"{claim['metadata']['name']}-{each['metadata']['name']}-{number}")
                for claim in each["spec"]["volumeClaimTemplates"]
                for number in range(each["spec"]["replicas"])
            }
    return frozenset(found)


LAPTOP = {"install.md": "queue-cpu", "tutorials/serverless.md": "serverless-cpu"}


@pytest.mark.parametrize(("page", "overlay"), LAPTOP.items())
def test_a_laptop_page_builds_and_loads_the_images_of_its_overlay_and_no_other(
    page: str, overlay: str
) -> None:
    lines = list(commands(page))
    (built,) = (set(found.group(1).split()) for e in lines if (found := IMAGES.search(e)))
    (loaded,) = (set(found.group(1).split(",")) for e in lines if (found := LOADED.search(e)))
    pods = yaml.safe_dump_all(kustomize(ROOT / "manifests" / "overlays" / overlay))

    used = set(re.findall(r"registry\.example\.com/torpor/([\w-]+):", pods))
    assert built == loaded == used


IMAGES = re.compile(r'make images IMAGES="([\w -]+)"')
LOADED = re.compile(r"kind load docker-image \S+/\{([\w,-]+)\}:")
NAMESPACE_OF = {
    "cert-manager.yaml": "cert-manager",
    "serving-core.yaml": "knative-serving",
    "eventing-core.yaml": "knative-eventing",
    "cluster-operator.yml": "rabbitmq-system",
    "keda keda ": "keda",
    "charts/kserve-resources": "kserve",
}


@pytest.mark.parametrize("page", LAPTOP)
def test_a_laptop_page_waits_for_each_platform_before_torpor_is_applied(page: str) -> None:
    lines = list(commands(page))
    (torpor,) = (
        i
        for i, each in enumerate(lines)
        if f"overlays/{LAPTOP[page]}" in each and START.match(each)
    )
    installed = {ns for each in lines[:torpor] for mark, ns in NAMESPACE_OF.items() if mark in each}

    assert installed == {found.group(1) for each in lines[:torpor] if (found := WAITED.match(each))}


START = re.compile(r"kubectl apply|torpor deploy")
WAITED = re.compile(r"kubectl -n (\S+) wait ")


def test_the_pages_have_the_commands_that_are_run_here() -> None:
    assert set(WITHOUT_A_CLUSTER) <= set(commands("install.md"))


@pytest.mark.parametrize("command", WITHOUT_A_CLUSTER)
def test_commands_that_need_no_cluster_run_as_written(command: str, tmp_path: Path) -> None:
    (tmp_path / "manifests").symlink_to(ROOT / "manifests")
    path = f"{Path(TORPOR).parent}:/usr/local/bin:/usr/bin:/bin"

    made = subprocess.run(
        ["bash", "-ec", command],
        cwd=tmp_path,
        env={"PATH": path, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert made.returncode == 0, made.stdout + made.stderr
    assert "0 error" in made.stdout


def test_the_operations_page_links_to_every_run_book() -> None:
    docs = ROOT / "docs"
    linked = re.findall(r"\]\((runbooks/\w+\.md)\)", (docs / "operations.md").read_text())

    assert linked == sorted(f"runbooks/{page.name}" for page in (docs / "runbooks").iterdir())


def yaml_blocks(page: str) -> list[str]:
    """The indented blocks of a page that are YAML and no commands."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = [
        textwrap.dedent(each)
        for each in re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    ]
    return [each for each in blocks if re.match(r"\s*(?:#.*\n)?[\w]+:(?:\s|$)", each)]


def test_the_values_of_the_install_page_are_values() -> None:
    found = [yaml.safe_load(each) for each in yaml_blocks("install.md")]
    values = [each for each in found if not {"kind", "resources"} & each.keys()]

    assert {key for each in values for key in each} >= {"images", "more_models"}
    for each in values:
        Values.model_validate(each)


def test_the_overlay_of_the_install_page_builds_and_the_doctor_passes_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "manifests", tmp_path / "manifests")
    (own,) = (yaml.safe_load(e) for e in yaml_blocks("install.md") if "resources:" in e)
    (tmp_path / "my-overlay").mkdir()
    (tmp_path / "my-overlay" / "kustomization.yaml").write_text(yaml.safe_dump(own))

    resources = kustomize(tmp_path / "my-overlay")

    assert examine(resources).of(Severity.ERROR) == ()


def test_the_policy_of_the_install_page_takes_our_predictors() -> None:
    (policy,) = (yaml.safe_load(e) for e in yaml_blocks("install.md") if "NetworkPolicy" in e)
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    (service,) = (
        each
        for each in kustomize(ROOT / "manifests" / "overlays" / "queue-cpu")
        if each["kind"] == "InferenceService"
    )

    assert chosen.items() <= service["spec"]["predictor"]["labels"].items()
    kubernetes_validate.validate(policy, "1.36", strict=True)
