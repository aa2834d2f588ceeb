"""How many small faults in the core the tests see: `make mutate` (MUTANTS=n of each group, SEED=n).

cosmic-ray makes the mutants of each group's modules and runs the tests that cover them, in a copy of the tree; a
mutant that no test fails for has survived. A sample, drawn by seed, since all of them take days on two cores. Types
(`X | None`) and decorators are left alone: Python itself refuses most of those. The score stands in bench/README.md.
"""

import argparse
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome

ROOT: Final = Path(__file__).parents[1]
_LEFT_ALONE: Final = ("core/ReplaceBinaryOperator_BitOr", "core/RemoveDecorator")
_TIMEOUT_S: Final = 300
_TEST_TIMEOUT_S: Final = 90
"""Of one test, so that a busy machine kills no mutant."""


@dataclass(frozen=True, slots=True)
class Group:
    """Modules, and the tests that cover them."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


GROUPS: Final = {
    "job": Group(
        (
            "eventing/job/job.py",
            "eventing/cloudevent/job_event.py",
            "eventing/cloudevent/result_event.py",
        ),
        ("tests/unit/eventing/test_job*.py", "tests/unit/eventing/test_known_fields.py"),
    ),
    "store": Group(
        (
            "eventing/store/redis_store.py",
            "eventing/store/redis_list.py",
            "eventing/store/redis_call.py",
            "eventing/store/job_record/fields.py",
            "eventing/store/job_record/parse.py",
        ),
        # Not the test of the version before, which needs the repository.
        ("tests/contract/test_redis_store.py", "tests/contract/test_store_[!b]*.py"),
    ),
    "pump": Group(
        (
            "eventing/broker/delivery/pump.py",
            "eventing/broker/delivery/subscriber.py",
            "eventing/broker/delivery/decision.py",
            "eventing/broker/queue/queue.py",
            "eventing/broker/queue/claim.py",
            "eventing/broker/queue/view.py",
        ),
        ("tests/unit/eventing/broker", "tests/contract/broker"),
    ),
    "checkpoint": Group(
        ("predictor/generation/checkpoint.py", "predictor/generation/append_batcher.py"),
        (
            "tests/unit/predictor/test_checkpoint.py",
            "tests/unit/predictor/test_generation.py",
            "tests/unit/predictor/test_append_batcher.py",
        ),
    ),
    "lease": Group(
        ("predictor/delivery/lease.py", "predictor/delivery/admission.py"),
        (
            "tests/unit/predictor/test_lease_keeper.py",
            "tests/unit/predictor/test_admission.py",
            "tests/unit/predictor/test_predictor_d*.py",
        ),
    ),
    "submission": Group(
        ("api/job/submission.py", "api/job/submit_options.py", "api/limit/concurrency_limiter.py"),
        (
            "tests/unit/api/test_api_submission.py",
            "tests/unit/api/test_concurrency_limiter.py",
            "tests/integration/api/test_api_jobs.py",
            "tests/integration/api/test_store_away.py",
        ),
    ),
    "batch": Group(
        ("api/batch/run.py", "api/batch/runner.py", "api/batch/store.py"),
        (
            "tests/integration/api/test_batch_runners.py",
            "tests/integration/api/test_batch_limits.py",
            "tests/integration/api/test_batch_large_answers.py",
        ),
    ),
}


def main() -> int:
    """The score of each group on standard output, its survivors as diffs before it."""
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--mutants", type=int, default=20, help="of each group")
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("groups", nargs="*", default=list(GROUPS), metavar="GROUP")
    wanted = asked.parse_args()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copied(Path(folder))
        scores = {
            name: score(tree, name, GROUPS[name], wanted.mutants, wanted.seed)
            for name in wanted.groups
        }
    killed, made = (sum(each) for each in zip(*scores.values(), strict=True))
    print(f"all: {killed} of {made} killed ({killed / made:.0%}), seed {wanted.seed}")
    return 0


def copied(folder: Path) -> Path:
    """A copy of the tree as it stands."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def score(tree: Path, name: str, group: Group, mutants: int, seed: int) -> tuple[int, int]:
    """How many of a sample were killed, and how many there were."""
    config, session = tree / f"{name}.toml", tree / f"{name}.sqlite"
    tests = [path for each in group.tests for path in found(tree, each)]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    command += ["-o", f"timeout={_TEST_TIMEOUT_S}"]
    modules = ", ".join(f'"{module}"' for module in group.modules)
    config.write_text(
        f"[cosmic-ray]\nmodule-path = [{modules}]\ntimeout = {_TIMEOUT_S}\nexcluded-modules = []\n"
        f'test-command = "{" ".join(command)}"\n[cosmic-ray.distributor]\nname = "local"\n'
    )
    subprocess.run(command, cwd=tree, check=True, stdout=subprocess.DEVNULL)
    cosmic_ray("init", config, session)
    made = keep_sample(session, random.Random(f"{seed} {name}"), mutants)
    cosmic_ray("exec", config, session)
    with use_db(str(session), WorkDB.Mode.open) as work:
        survivors = [
            result.diff or ""
            for _, result in work.results
            if result.test_outcome is TestOutcome.SURVIVED
        ]
    for diff in survivors:
        print(diff.replace(str(tree), ""))
    print(f"{name}: {made - len(survivors)} of {made} killed", flush=True)
    return made - len(survivors), made


def found(tree: Path, pattern: str) -> list[str]:
    """The files of a pattern: a test that was renamed must not be left out in silence."""
    if not (paths := sorted(map(str, tree.glob(pattern)))):
        raise FileNotFoundError(pattern)
    return paths


def cosmic_ray(what: str, config: Path, session: Path) -> None:
    command = [sys.executable, "-m", "cosmic_ray.cli", what, str(config), str(session)]
    subprocess.run(command, cwd=config.parent, check=True)


def keep_sample(session: Path, draw: random.Random, mutants: int) -> int:
    """Drop all but a sample of the mutants, of those that are worth a run; how many are left."""
    with sqlite3.connect(session) as database:
        rows = database.execute(
            "SELECT job_id, operator_name FROM mutation_specs"
            " ORDER BY module_path, operator_name, occurrence, start_pos_row, start_pos_col"
        ).fetchall()
        worth = [job_id for job_id, operator in rows if not operator.startswith(_LEFT_ALONE)]
        kept = set(draw.sample(worth, min(mutants, len(worth))))
        _delete(database, (job_id for job_id, _ in rows if job_id not in kept))
    return len(kept)


def _delete(database: sqlite3.Connection, job_ids: Iterable[str]) -> None:
    gone = [(job_id,) for job_id in job_ids]
    for table in ("mutation_specs", "work_items"):
        database.executemany(f"DELETE FROM {table} WHERE job_id = ?", gone)


if __name__ == "__main__":
    sys.exit(main())
