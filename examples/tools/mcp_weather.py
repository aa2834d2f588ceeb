"""A tool as an MCP server: the weather of a city. Stateless, so that it may run from zero and in many replicas.

Run: python mcp_weather.py [PORT], and name it in tools.yaml as `url: http://127.0.0.1:PORT/mcp`. In a container with
HOST=0.0.0.0, so that others can call it.
"""

import os
import sys
from typing import Literal

from mcp.server import MCPServer
from mcp.types import ToolAnnotations

WEATHER = {"Oslo": "4 °C, rain", "Nairobi": "24 °C, sun", "Lima": "18 °C, fog"}
server = MCPServer("weather", log_level="WARNING")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def forecast(city: Literal["Oslo", "Nairobi", "Lima"]) -> str:
    """The weather of a city today."""
    return WEATHER[city]


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9001
    host = os.environ.get("HOST", "127.0.0.1")
    print(f"listening on http://{host}:{port}/mcp", flush=True)
    server.run("streamable-http", host=host, port=port, stateless_http=True, json_response=True)
