"""The files and names on the documentation's pages exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(
    r"`((?:api|eventing|predictor|knative|steps|torpor|tests|bench|scripts)"
    r"/[\w./-]+\.(?:py|lua|sh))(?::([\w.]+))?`"
)
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "bench" / "README.md"]
    if page.name != "CHANGELOG.md"
)
ROW = re.compile(r"^\| \[(\d{4})\]\((\S+)\) \| (.+?) \|", re.MULTILINE)


def defines(path: Path, name: str) -> bool:
    """Whether the module has the function or class, or the class has the method."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [node for node in body if isinstance(node, kinds) and node.name == part]
        if not found:
            return False
        body = found[0].body
    return True


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_name_on_the_page_exists(page: str) -> None:
    named = NAMED.findall((ROOT / page).read_text(encoding="utf-8"))
    gone = [
        f"{path}:{name}"
        for path, name in named
        if not (ROOT / path).is_file() or (name and not defines(ROOT / path, name))
    ]

    assert gone == []


def test_the_index_of_decisions_lists_each_once_in_order_under_its_own_title() -> None:
    folder = ROOT / "docs" / "adr"
    titles = {
        page.name: page.read_text(encoding="utf-8").partition("\n")[0]
        for page in sorted(folder.glob("[0-9]*.md"))
    }

    listed = {
        name: f"# {number}: {title}"
        for number, name, title in ROW.findall((folder / "README.md").read_text(encoding="utf-8"))
    }

    assert list(listed.items()) == list(titles.items())


def test_the_architecture_page_names_every_folder_of_a_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `(\w+)/` \| (`.*) \|$", page, re.MULTILINE))

    folders = {
        package: sorted(found.parent.name for found in (ROOT / package).glob("*/__init__.py"))
        for package in table
    }

    assert len(folders) == 6
    assert {
        f"{package}/{folder}"
        for package, held in folders.items()
        for folder in held
        if f"`{folder}`" not in table[package]
    } == set()


def test_the_start_page_leads_to_every_page_but_single_decisions_and_run_books() -> None:
    docs = ROOT / "docs"
    pages = {str(page.relative_to(docs)) for page in docs.rglob("*.md")}
    single = {page for page in pages if page.startswith(("adr/0", "runbooks/"))}

    linked = set(re.findall(r"\]\(([^)#]+)", (docs / "index.md").read_text(encoding="utf-8")))

    assert pages - single - linked == {"index.md"}


def test_one_job_is_followed_in_at_most_twelve_hops() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    walk = page.partition("## One job")[2].partition("\n## ")[0]
    hops = re.findall(r"^\d+\. (.*)$", walk, re.MULTILINE)

    assert 6 < len(hops) <= 12
    assert [hop for hop in hops if not NAMED.search(hop)] == []


def test_every_key_of_the_store_is_in_the_data_model() -> None:
    source = (ROOT / "eventing" / "redis" / "keys.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "reference" / "redis.md").read_text(encoding="utf-8")
    names = set(re.findall(r"\{PREFIX\}:(\{\{)?([a-z:-]+)", source))

    assert len(names) > 8
    assert [name for _, name in names if name.strip(":") and name.strip(":") not in page] == []


def test_a_curl_command_of_the_docs_says_that_it_sends_json() -> None:
    said = [
        (page.name, command)
        for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
        for command in re.findall(
            r"^curl (?:[^\n]*\\\n)*[^\n]*", page.read_text(encoding="utf-8"), re.MULTILINE
        )
        if re.search(r" (-d|--data\S*) ['\"]?\{", command)
    ]

    assert [each for each in said if "application/" not in each[1].lower()] == []
