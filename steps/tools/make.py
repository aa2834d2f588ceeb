"""What a steps process has for tools: the two steps, and what runs calls."""

from dataclasses import dataclass

from eventing.broker.intake import Route
from eventing.broker.tool_calls import ToolCalls
from eventing.clock import Clock
from eventing.job.tools.store import ToolStore
from eventing.store.objects.tool_results import tool_results
from eventing.store.steps.redis_tool_lists import RedisToolLists
from steps.settings import StepsSettings
from steps.tools.caller import Caller, CallerDeps
from steps.tools.client.clients import Clients
from steps.tools.list_step import ListTools
from steps.tools.metrics import begin_series
from steps.tools.results import ToolResults
from steps.tools.step import Tools
from steps.tools.targets import Credentials, Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolParts:
    """What a process that runs tool calls has once."""

    calls: ToolCalls
    list_tools: ListTools
    tools: Tools
    caller: Caller


def make_tools(
    settings: StepsSettings,
    store: ToolStore,
    lists: RedisToolLists,
    route: Route,
    clock: Clock,
) -> ToolParts:
    """The parts for tool calls of a process; store, lists and route belong to the caller."""
    begin_series(settings.tools.servers.values())
    credentials = Credentials(folder=settings.tool_credentials_dir, keys=settings.sealing_keys)
    targets, clients = Targets(settings.tools, credentials), Clients(clock)
    results = ToolResults(tool_results(settings.files_url))
    calls = ToolCalls(store, route)
    return ToolParts(
        calls=calls,
        list_tools=ListTools(targets, clients, lists),
        tools=Tools(settings.tools, results, clock, settings.prices),
        caller=Caller(
            CallerDeps(
                calls=calls,
                targets=targets,
                clients=clients,
                results=results,
                clock=clock,
                lease_ms=settings.lease.lease_ms,
                is_beside_tool=bool(settings.tool_server),
            )
        ),
    )
