"""`torpor watch`: one job's life."""

from typing import TYPE_CHECKING, Any

from torpor.cli.job.submit import exit_like
from torpor.cli.options import ApiOption, DataDir, JobId, Json

if TYPE_CHECKING:
    from torpor.client import AsyncClient


def watch(
    job_id: JobId, api: ApiOption = "", data_dir: DataDir = None, as_json: Json = False
) -> None:
    """Show a job live, then its timeline, webhooks included."""
    from torpor.cli.client import ask

    exit_like(ask(api, data_dir, lambda client: _watch(client, job_id, as_json)))


async def _watch(api: "AsyncClient", job_id: str, as_json: bool) -> dict[str, Any]:
    from torpor.cli.view.screen import JobScreen, print_json
    from torpor.cli.view.timeline import full_timeline, timeline_lines

    if not as_json:
        screen = JobScreen()
        ended = await screen.follow(api.stream(job_id))
        screen.life(timeline_lines(await full_timeline(api, job_id)))
        return ended
    last: dict[str, Any] = {}
    async for event in api.stream(job_id):
        print_json({"event": event.name, "data": event.data})
        last = dict(event.data) if event.name == "result" else last
    return last
