"""Dead letters from end to end: real processes fail jobs, and `torpor dead-letters` deals with them
over HTTP.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tests.faults.client import body
from tests.faults.processes import System, running
from tests.faults.programs import Zygote
from torpor.cli.app import assembled


async def torpor(system: System, *words: str, stdin: str = "") -> str:
    """What the command prints; it must end well."""
    api = system.api.health.removesuffix("/healthz")
    line = ["dead-letters", *words, "--api", api]
    done = await asyncio.to_thread(CliRunner().invoke, assembled(), line, stdin)
    assert done.exit_code == 0, done.output
    return done.stdout


async def listed(system: System) -> dict[str, Any]:
    return {job["id"]: job for job in json.loads(await torpor(system, "list", "--json"))["data"]}


async def test_they_are_listed_shown_redriven_edited_and_discarded(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with running(zygote, tmp_path) as system:
        bad = [
            await system.client.submit(body(n, fail_at=2), f"bad-{n}", is_poison=True)
            for n in range(4)
        ]
        await system.ended(bad, within_s=60)
        mended, again, other, unwanted = bad
        found = await listed(system)
        assert set(found) == set(bad)
        assert {len(job["attempts"]) for job in found.values()} == {3}

        shown = json.loads(await torpor(system, "show", mended))
        assert shown["error"]["code"] == "engine_request_failed"
        assert shown["request"]["body"]["seeded"] == {"output_tokens": 12, "fail_at": 2}

        line = json.dumps(body(7))
        assert (
            await torpor(system, "redrive", mended, "--request", "-", stdin=line) == f"{mended}\n"
        )
        assert (await torpor(system, "redrive", again, other)).split() == [again, other]
        await system.ended(bad, within_s=60)
        _, well = await system.client.get(mended)
        assert (well["state"], well["attempt"]) == ("completed", 5)
        found = await listed(system)
        assert set(found) == {again, other, unwanted}
        assert found[again]["attempt"] == 7

        await torpor(system, "discard", unwanted)
        assert (await system.client.get(unwanted))[0] == 404
        assert set((await torpor(system, "redrive", "--all")).split()) == {again, other}
        await system.ended([again, other], within_s=60)
        assert {job["attempt"] for job in (await listed(system)).values()} == {11}
