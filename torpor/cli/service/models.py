"""`torpor models`: what is served."""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from torpor.cli.options import ApiOption, DataDir, Json

if TYPE_CHECKING:
    from torpor.client import AsyncClient


def models(api: ApiOption = "", data_dir: DataDir = None, as_json: Json = False) -> None:
    """List the models that are served."""
    from torpor.cli.client import ask
    from torpor.cli.view.screen import print_json, stderr, stdout
    from torpor.cli.view.table import number, table

    served = ask(api, data_dir, _served)
    if as_json:
        print_json(served)
        return
    if not served["data"]:
        stderr.print("no model is served")
        return
    shown = table("model", "context, tokens", numbers=("context, tokens",))
    for model in served["data"]:
        shown.add_row(model["id"], number(model.get("max_model_len")))
    stdout.print(shown)


async def _served(client: "AsyncClient") -> dict[str, Any]:
    """The list, each with what the api says of that model alone."""
    listed: dict[str, Any] = await client.call("GET", "/v1/models")
    for model in listed["data"]:
        model.update(await client.call("GET", f"/v1/models/{quote(model['id'])}"))
    return listed
