"""Admin endpoints that answer what a test says, inside a namespace."""

import http.server
import json
import threading

from .admin import PORT


def proxy_status(name, **more):
    """/status of a proxy that is well."""
    return {"name": name, "state": "running", "connections": {"open": 0}, "pools": {}, "nodes": [],
            "services": [], **more}


class FakeNode:
    """`pages`: {path without its query: the answer}, which is text, JSON, (HTTP status, text), or a function that
    returns one of them; None ends the connection without an answer."""

    def __init__(self, namespace, pages, port=PORT, host="127.0.0.1"):
        self.pages, self.asked = pages, []
        self.address = f"{host}:{port}"
        node = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                node._answer(self)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer((host, port), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = namespace.socket()
        self._server.server_bind()
        self._server.server_activate()
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _answer(self, request):
        path = request.path.partition("?")[0]
        self.asked.append((request.command, path))
        page = self.pages.get(path, (404, "not here; see /"))
        page = page() if callable(page) else page
        if page is None:
            request.close_connection = True
            return
        code, body = page if isinstance(page, tuple) else (200, page)
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        request.send_response(code)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def close(self):
        self._server.shutdown()
        self._server.server_close()
