"""A receiver of webhooks that checks who sent them (Standard Webhooks).

Run with the secret that `torpor webhooks add` printed: WEBHOOK_SECRET=whsec_... python webhook_receiver.py
"""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

webhook = Webhook(os.environ["WEBHOOK_SECRET"])


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            event = webhook.verify(
                body, {name.lower(): text for name, text in self.headers.items()}
            )
        except WebhookVerificationError:
            self.send_response(400)
        else:
            print(event["type"], event["data"]["id"], flush=True)
            self.send_response(204)  # within 15 s; the same webhook-id may come again
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """No line a request."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Receiver)
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
