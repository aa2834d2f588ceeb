"""A tool as a CloudEvents function: pays money back, once for each call, however often the call is sent.

The event's id is the idempotency key: the ledger keeps the answer under it, and the same id gets the same answer. So
tools.yaml may say `effect: keyed`. Run: python function_refund.py LEDGER [PORT]; in a container
with HOST=0.0.0.0, so that others can call it.
"""

import json
import os
import sqlite3
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def refund(ledger: str, key: str, arguments: dict) -> str:
    """Write the refund into the ledger unless it is there; the answer is the same each time."""
    with sqlite3.connect(ledger, timeout=30) as database:
        database.execute("CREATE TABLE IF NOT EXISTS refund (key PRIMARY KEY, order_id, amount)")
        row = (key, str(arguments["order_id"]), float(arguments["amount"]))
        database.execute("INSERT OR IGNORE INTO refund VALUES (?, ?, ?)", row)
        number = database.execute("SELECT rowid FROM refund WHERE key = ?", (key,)).fetchone()[0]
    return f"refund {number}: {arguments['amount']} for order {arguments['order_id']}"


class Function(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        call = json.loads(body)
        try:
            said = refund(sys.argv[1], self.headers["ce-id"], json.loads(call["arguments"]))
            result = {"content": [{"type": "text", "text": said}], "isError": False}
        except (KeyError, TypeError, ValueError) as error:
            result = {"content": [{"type": "text", "text": repr(error)}], "isError": True}
        answer = json.dumps(result).encode()
        self.send_response(200)
        self.send_header("ce-specversion", "1.0")
        self.send_header("ce-type", "dev.torpor.tool.returned.v1")
        self.send_header("ce-source", "/refunds")
        self.send_header("ce-id", self.headers["ce-id"])
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """No line a request."""


if __name__ == "__main__":
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 9002
    host = os.environ.get("HOST", "127.0.0.1")
    function = ThreadingHTTPServer((host, port), Function)
    print(f"listening on http://{host}:{function.server_port}", flush=True)
    function.serve_forever()
