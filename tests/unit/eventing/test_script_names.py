"""The names that scripts and Python both write: one value in both places."""

import re
from importlib.resources import files

import pytest

from eventing.job.plan import TOOLS_STEP
from eventing.redis import keys
from eventing.store.archive import LARGE_BYTES


def constants() -> dict[str, str]:
    """The constants at the top of what scripts share, by name."""
    found: dict[str, str] = {}
    for file in files("eventing.redis.scripts").iterdir():
        if file.name.startswith("_") and file.name.endswith(".lua"):
            head = file.read_text(encoding="utf-8").partition("\nlocal function")[0]
            for names, values in re.findall(
                r"^local ([A-Z_, ]+) = ([^-{}\n]+)", head, re.MULTILINE
            ):
                found |= dict(zip(names.split(", "), values.strip().split(", "), strict=True))
    return found


@pytest.mark.parametrize(
    "name",
    [
        "ENDED",
        "DEADLINES",
        "UNSTARTED",
        "UNPUBLISHED",
        "UNARCHIVED",
        "LEAVING",
        "APPROVALS_DUE",
        "GROUP",
        "REVISIONS",
    ],
)
def test_a_key_has_one_name(name: str) -> None:
    assert constants()[name] == f"'{getattr(keys, name)}'"


def test_the_step_in_which_a_job_waits_for_calls_has_one_name() -> None:
    assert constants()["TOOLS"] == f"'{TOOLS_STEP}'"


def test_what_is_large_is_so_to_both() -> None:
    assert int(constants()["LARGE"]) == LARGE_BYTES
