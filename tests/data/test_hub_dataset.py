"""A data set of the Hub, by name and configuration, downloaded and streamed. No test leaves this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# A little server that answers as the Hub does, for one repository. In a process of its own, because the libraries read
# the Hub's address when they are imported.
SCRIPT = """
import hashlib, json, os, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

def rows(language):
    return "".join(json.dumps({"body": f"{language} {n}. It has words."}) + "\\n" for n in range(60)).encode()

FILES = {
    "README.md": b"---\\nconfigs:\\n- config_name: en\\n  data_files: en.jsonl\\n- config_name: de\\n  data_files:\\n"
                 b"  - split: train\\n    path: de.jsonl\\n  - split: test\\n    path: en.jsonl\\n---\\n",
    "en.jsonl": rows("en"),
    "de.jsonl": rows("de"),
}
SHA, API = "a" * 40, "/api/datasets/someone/texts"
asked = []

class Hub(BaseHTTPRequestHandler):
    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        name = path.rsplit("/", 1)[1]
        if path == "/":
            return self.answer(200)
        if path.startswith(f"{API}/revision/"):
            about = {"_id": "1", "id": "someone/texts", "sha": SHA, "private": False, "gated": False, "tags": []}
            about |= {"downloads": 0, "likes": 0, "siblings": [{"rfilename": file} for file in FILES]}
            return self.answer(200, json.dumps(about).encode())
        if path.startswith(f"{API}/tree/"):
            tree = [{"type": "file", "path": file, "size": len(FILES[file]), "oid": "0"} for file in FILES]
            return self.answer(200, json.dumps(tree).encode())
        if "/resolve/" in path and name in FILES:
            body = FILES[name]
            told = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X_Repo_Commit": SHA, "Accept_Ranges": "bytes"}
            if wanted := self.headers.get("Range"):
                asked.append(name)
                first, last = wanted.split("=")[1].split("-")
                part = body[int(first) : int(last) + 1]
                told["Content_Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
                return self.answer(206, part, **told)
            return self.answer(200, body, **told)
        return self.answer(404, X_Error_Code="EntryNotFound")

    do_HEAD = do_POST = do_GET

    def log_message(self, *args):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"

from datasets.utils.logging import disable_progress_bar
from morphing_trainer.data.opening import open_data
from morphing_trainer.data.request import DataRequest
from morphing_trainer.data.tokenizer import train_tokenizer
from morphing_trainer.errors import DataError

disable_progress_bar()
tokenizer = train_tokenizer(["en de 0. It has words."] * 9, 265)
said = {}
for streaming in (False, True):
    for asked_for in ("en train", "de train", "de test", "fr train", "de tset", " train"):
        config, split = asked_for.split(" ")
        asked.clear()
        request = DataRequest(dataset_name="someone/texts", dataset_config=config or None, train_split=split,
                              text_column="body", streaming=streaming, block_size=8)
        try:
            train = open_data(request).samples(tokenizer).train
            result = {"text": tokenizer.decode(train.tokens.ravel()), "documents": train.counts.documents}
        except DataError as error:
            result = {"error": str(error)}
        said[f"{streaming} {asked_for}"] = result | {"streamed": sorted(set(asked))}
json.dump(said, sys.stdout)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """For streaming or not, configuration and split: the training text, or the error."""
    clean = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment = clean | {
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    finished = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, timeout=120)
    assert finished.returncode == 0, finished.stderr.decode()
    result: dict[str, dict[str, Any]] = json.loads(finished.stdout)
    return result


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("config", "split", "language"), [("en", "train", "en"), ("de", "train", "de"), ("de", "test", "en")]
)
def test_name_configuration_and_split_find_the_text(
    said: dict[str, dict[str, Any]], streaming: bool, config: str, split: str, language: str
) -> None:
    found = said[f"{streaming} {config} {split}"]
    assert found["documents"] == 57
    documents = found["text"].split("<|endoftext|>")
    assert all(document == f"{language} {document.split()[1]} It has words." for document in documents[:-1])
    assert len(set(documents)) >= 56
    assert bool(found["streamed"]) is streaming, "read piece by piece"


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unknown_configuration_is_refused_with_those_there_are(
    said: dict[str, dict[str, Any]], streaming: bool
) -> None:
    error = said[f"{streaming} fr train"]["error"]
    assert error.startswith("dataset_name 'someone/texts': cannot be loaded")
    assert "'fr'" in error and "'en', 'de'" in error
    missing = said[f"{streaming}  train"]["error"]
    assert "Config name is missing" in missing
    assert "'en', 'de'" in missing


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unknown_split_is_refused_with_those_there_are(said: dict[str, dict[str, Any]], streaming: bool) -> None:
    error = said[f"{streaming} de tset"]["error"]
    assert "has no split 'tset'; did you mean 'test'? (set train_split to one of its splits: train, test)" in error
