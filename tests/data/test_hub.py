"""What is said when the Hub cannot be reached, or does not have what was asked for. No test leaves this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

Said = dict[str, dict[str, tuple[str, float]]]

# The libraries read their environment when they are imported, so this runs in processes of its own. A little server
# answers as the Hub does for repositories that it does not have; when it is closed, nothing answers at its address.
SCRIPT = """
import json, os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class EmptyHub(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
    do_HEAD = do_GET
    def log_message(self, *args):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), EmptyHub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"

from morphing_trainer.data.request import DataRequest
from morphing_trainer.data.sources import load_texts
from morphing_trainer.data.tokenizer import load_tokenizer
from morphing_trainer.errors import DataError

def ask():
    said = {}
    for what, load in {"data": lambda: load_texts(DataRequest(dataset_name="nobody/nothing")),
                       "tokenizer": lambda: load_tokenizer("nobody/nothing")}.items():
        start = time.monotonic()
        try:
            load()
        except DataError as error:
            said[what] = [str(error), time.monotonic() - start]
    return said

said = {"answering": ask()}
server.shutdown()
server.server_close()
said["closed"] = ask()
json.dump(said, sys.stdout)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Said]:
    """Online or offline, with the Hub answering or closed, for data and tokenizer: the message and its seconds."""
    clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    running = {}
    for mode in ("online", "offline"):
        environment = clean | {
            "HF_HOME": str(tmp_path_factory.mktemp(mode)),
            "HF_HUB_OFFLINE": "1" if mode == "offline" else "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        running[mode] = subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE)
    return {mode: json.loads(process.communicate(timeout=120)[0]) for mode, process in running.items()}


@pytest.mark.parametrize("what", ["data", "tokenizer"])
def test_without_a_connection_the_error_says_so_quickly(said: dict[str, Said], what: str) -> None:
    message, seconds = said["online"]["closed"][what]
    assert "'nobody/nothing'" in message
    assert "the Hub cannot be reached (http://127.0.0.1" in message
    assert "Check the connection" in message
    assert "does not exist" not in message
    assert seconds < 15, "the Hub's own retries take 23 seconds and more"


@pytest.mark.parametrize("hub", ["answering", "closed"])
@pytest.mark.parametrize("what", ["data", "tokenizer"])
def test_in_offline_mode_the_error_names_the_setting(said: dict[str, Said], hub: str, what: str) -> None:
    message, _ = said["offline"][hub][what]
    assert "'nobody/nothing'" in message
    assert "cache" in message
    assert "HF_HUB_OFFLINE" in message
    assert "http" not in message
    assert "does not exist" not in message


def test_a_data_set_that_the_hub_does_not_have(said: dict[str, Said]) -> None:
    message, _ = said["online"]["answering"]["data"]
    assert message.startswith("dataset_name 'nobody/nothing': does not exist on the Hub, or is private or gated")
    assert "Check the name" in message
    assert "connection" not in message


def test_a_tokenizer_that_the_hub_does_not_have(said: dict[str, Said]) -> None:
    message, _ = said["online"]["answering"]["tokenizer"]
    assert message.startswith("tokenizer 'nobody/nothing': cannot be loaded (nobody/nothing is not a local folder")
    assert "Check the name" in message
    assert "connection" not in message
