"""The commands on the cluster's pages: those that need no cluster are run; all names in the others exist."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TORPOR = str(Path(sys.executable).parent / "torpor")
PAGES = ("install.md", "operations.md")
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
    names = sorted({call.split()[1] for call in torpor_calls()})
    return {
        name: subprocess.run(
            [TORPOR, name, "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={"COLUMNS": "300", "PATH": "/usr/bin:/bin", "TERM": "dumb"},
        ).stdout
        for name in names
    }


@pytest.mark.timeout(120)
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


def test_the_pages_have_the_commands_that_are_run_here() -> None:
    assert set(WITHOUT_A_CLUSTER) <= set(commands("install.md"))


@pytest.mark.timeout(120)
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
