"""A Hub on loopback: answers what `huggingface_hub` asks for, keeps what it is given, and fails when told to."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.hub.routes import Routes
from tests.hub.store import Refusal, Store, User


@dataclass
class Fault:
    """What goes wrong with requests whose `METHOD path` matches.

    Attributes:
        times: how often.
        status, headers: the answer.
        read: of the request's body so many bytes are read, then the connection is reset.
        cut: of the answer's body so many bytes are sent, then the connection is closed.
        unheard: the request is carried out, and the connection is reset in the place of an answer.
        seconds: to wait before.
    """

    match: str
    times: int = 1_000_000
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    read: int | None = None
    cut: int | None = None
    unheard: bool = False
    seconds: float = 0.0


class HubServer(ThreadingHTTPServer):
    """A Hub at `url`.

    Attributes:
        store: what it keeps.
        requests: `METHOD path` of each, in their order.
        faults: what is to go wrong; the first that matches does.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, users: Mapping[str, User]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.store = Store(users)
        self.requests: list[str] = []
        self.agents: set[str] = set()
        self.faults: list[Fault] = []
        self.parts: dict[str, dict[int, bytes]] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Of a client that has gone."""

    def fault(self, asked: str) -> Fault | None:
        with self.store.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, asked):
                    fault.times -= 1
                    return fault
        return None

    def asked(self, match: str) -> list[str]:
        return [request for request in self.requests if re.search(match, request)]


@contextmanager
def serving(users: Mapping[str, User]) -> Iterator[HubServer]:
    with HubServer(users) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class Reset(Exception):
    """The connection is to be lost now."""


class Handler(Routes, BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.store, self.url, self.parts = self.server.store, self.server.url, self.server.parts

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.respond()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # ---- One request -----------------------------------------------------------------------------------------------

    def respond(self) -> None:
        asked = f"{self.command} {self.path}"
        self.server.requests.append(asked)
        fault = self.server.fault(asked) or Fault("")
        time.sleep(fault.seconds)
        try:
            body = self.body(fault.read)
            if fault.status is not None:
                raise Refusal(fault.status, message="told to fail", headers=fault.headers)
            with self.server.store.lock:
                status, headers, content = self.route(body)
            if fault.unheard:
                raise Reset
        except Reset:
            self.reset()
            return
        except Refusal as refusal:
            status, content = refusal.status, json.dumps(refusal.body).encode()
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message, **refusal.headers}
        self.answer(status, {name: value for name, value in headers.items() if value}, content, fault.cut)

    def body(self, most: int | None) -> bytes:
        if most is not None:
            self.rfile.read(min(most, int(self.headers.get("Content-Length") or 0)))
            raise Reset
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            return b"".join(iter(self.chunk, b""))
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def chunk(self) -> bytes:
        size = int(self.rfile.readline().strip() or b"0", 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def answer(self, status: int, headers: Mapping[str, str], content: bytes, cut: int | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            with suppress(OSError):
                self.wfile.write(content if cut is None else content[:cut])
                self.wfile.flush()
        self.close_connection = self.close_connection or cut is not None

    def reset(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
