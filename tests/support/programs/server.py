"""server.py END: an HTTP server with a thread for each request ends by END while it answers some.

Its threads are daemons, as the standard library has it: Python does not wait for them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType

import gemlet

model = gemlet.load(threads=2, weights="q8")


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        self.send_response(200)
        self.end_headers()
        try:
            for chunk in model.stream_chat([{"role": "user", "content": prompt}], max_tokens=500, ignore_eos=True):
                self.wfile.write(chunk.text.encode())
        except OSError:  # the client has gone
            pass

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def ask(port: int, began: threading.Semaphore) -> None:
    data = json.dumps({"prompt": "Who is there? " * 20}).encode()
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", data, timeout=20) as reply:
                began.release()
                reply.read()
        except OSError:  # the server has gone
            return


def main() -> None:
    end = sys.argv[1]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    began = threading.Semaphore(0)
    for _ in range(4):
        threading.Thread(target=ask, args=(server.server_address[1], began), daemon=True).start()

    def interrupt() -> None:
        for _ in range(8):
            began.acquire()
        os.kill(os.getpid(), signal.SIGTERM if end.startswith("sigterm") else signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()

    def handle(number: int, frame: FrameType | None) -> None:
        if end == "sigterm-close":
            model.close()
        sys.exit(0)

    signal.signal(signal.SIGTERM, handle)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    if end == "close":
        model.close()
        server.server_close()
        time.sleep(0.01)


main()
