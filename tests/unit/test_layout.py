"""The architecture is visible from the folder list: small folders, and no circle among them."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("eventing", "predictor", "api", "knative", "steps", "torpor")
MOST = 16
MOST_LINES = 400
MOST_LINES_OF_A_FUNCTION = 60
EXCEPTED = {"api/routes", "eventing/redis/scripts"}  # one file a resource, one file a script


def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                name = inner if inner in known else node.module
                if name in known:
                    yield name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_holds_at_most_sixteen_modules_and_folders(package: str) -> None:
    crowded = {}
    for folder in [ROOT / package, *(p for p in (ROOT / package).rglob("*") if p.is_dir())]:
        place = str(folder.relative_to(ROOT))
        held = [p for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
        count = len([p for p in held if p.name != "__init__.py"])
        if count > MOST and place not in EXCEPTED:
            crowded[place] = count

    assert crowded == {}


def test_a_module_has_at_most_400_lines_and_a_function_at_most_60() -> None:
    long = {}
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MOST_LINES:
            long[name] = lines
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if (lines := node.end_lineno - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION:
                    long[f"{name}:{node.name}"] = lines

    assert long == {}


def test_no_module_imports_itself_through_others() -> None:
    known = modules()
    graph = {name: set(imports(path, known)) - {name} for name, path in known.items()}

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_folder_of_a_package_imports_itself_through_others(package: str) -> None:
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        here = ".".join(name.split(".")[:2])
        if not name.startswith(f"{package}.") or here.endswith("__main__"):
            continue
        there = {".".join(each.split(".")[:2]) for each in imports(path, known)}
        graph.setdefault(here, set()).update(
            each for each in there if each.startswith(f"{package}.") and each != here
        )

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_long_files_that_tests_begin_with_exist() -> None:
    listed = (ROOT / "tests/long_files.txt").read_text(encoding="utf-8").split()

    assert [name for name in listed if not (ROOT / "tests" / name).is_file()] == []
