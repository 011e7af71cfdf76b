"""What a Hub answers: the paths that `huggingface_hub` asks for, over what the store keeps. No connection in here."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.hub.store import LARGE, Commit, Refusal, Repository, Store, User

PART = 1 << 20
"""Bytes of a part, of files that are sent in several."""

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, content."""


class Routes:
    """One request: `command` and `path` as they came, `headers`, and who `user` is. A `Refusal` is another answer."""

    store: Store
    url: str
    parts: dict[str, dict[int, bytes]]
    """Of files that come in several: hash -> number -> content."""
    command: str
    path: str
    headers: Any

    @property
    def user(self) -> User | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not given:
            return None
        if given not in self.store.users:
            raise Refusal(401, message="Invalid credentials in Authorization header")
        return self.store.users[given]

    def route(self, body: bytes) -> Answer:
        store, parts = self.store, [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        match self.command, parts:
            case "GET" | "HEAD", [""]:
                return 200, {}, b"a Hub"
            case "GET", ["api", "whoami-v2"]:
                return self.plain(self.whoami())
            case "POST", ["api", "repos", "create"]:
                return self.plain(self.create(json.loads(body)))
            case "POST", ["api", "validate-yaml"]:
                return self.plain(validated(json.loads(body)["content"]))
            case "PUT", ["lfs", oid]:
                store.objects[checked(oid, body)] = body
                return 200, {}, b""
            case "PUT", ["lfs", oid, number]:
                self.parts.setdefault(oid, {})[int(number)] = body
                return 200, {"ETag": f'"{number}"'}, b""
            case "POST", ["lfs", oid, "complete"]:
                found = self.parts.pop(oid)
                whole = b"".join(found[part["partNumber"]] for part in json.loads(body)["parts"])
                store.objects[checked(oid, whole)] = whole
                return self.plain({})
            case "POST", ["lfs", oid, "verify"]:
                if oid not in store.objects:
                    raise Refusal(404, message="not uploaded")
                return self.plain({})
            case "GET" | "HEAD", ["cdn", oid]:
                return self.ranged(store.objects.get(oid) or self.large(oid), {"ETag": f'"{oid}"'})
            case "POST", [*name, "info", "lfs", "objects", "batch"]:
                store.writable("/".join(name).removesuffix(".git"), self.user)
                return self.plain(self.batch(json.loads(body)))
            case _, ["api", "models", *rest]:
                return self.model(*named(rest), body)
            case "GET" | "HEAD", rest if "resolve" in rest:
                return self.file(*named(rest))
        raise Refusal(404, message=f"{self.command} {self.path} is not part of this Hub")

    def plain(self, value: Any) -> Answer:
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def whoami(self) -> dict[str, Any]:
        user = self.user
        if user is None:
            raise Refusal(401, message="Invalid username or password.")
        orgs = [{"name": name, "type": "org", "roleInOrg": role} for name, role in user.orgs]
        token = {"displayName": "a token", "role": user.role}
        return {"type": "user", "name": user.name, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}

    def create(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        store, user = self.store, self.user
        if user is None:
            raise Refusal(401, message="Invalid username or password.")
        name = f"{asked.get('organization') or user.name}/{asked['name']}"
        if not user.writes(name.partition("/")[0]):
            message = f'You don\'t have the rights to create a model under the namespace "{name.partition("/")[0]}"'
            raise Refusal(403, message=message)
        if name in store.repositories:
            raise Refusal(409, message="You already created this model repo", url=f"{self.url}/{name}")
        store.create(name, private=asked.get("visibility") == "private")
        return {"url": f"{self.url}/{name}", "name": name, "id": "0"}

    def batch(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        objects = []
        for each in asked["objects"]:
            oid, size, at = each["oid"], each["size"], f"{self.url}/lfs/{each['oid']}"
            if oid in self.store.objects:
                objects.append({"oid": oid, "size": size})
                continue
            upload: dict[str, Any] = {"href": at}
            if size > PART and "multipart" in asked["transfers"]:
                numbers = range(1, -(-size // PART) + 1)
                header = {f"{number:05d}": f"{at}/{number}" for number in numbers}
                upload = {"href": f"{at}/complete", "header": {"chunk_size": str(PART), **header}}
            actions = {"upload": upload, "verify": {"href": f"{at}/verify"}}
            objects.append({"oid": oid, "size": size, "actions": actions})
        return {"objects": objects, "transfer": "basic"}

    # ---- A repository ----------------------------------------------------------------------------------------------

    def model(self, name: str, rest: list[str], body: bytes) -> Answer:
        store = self.store
        match self.command, rest:
            case "GET", [] | ["revision", _]:
                found = store.readable(name, self.user)
                return self.plain(info(found, found.at(rest[1] if rest else "main")))
            case "GET", ["tree", revision, *_]:
                commit = store.readable(name, self.user).at(revision)
                return self.plain([entry(path, commit) for path in sorted(commit.files)])
            case "POST", ["paths-info", revision]:
                commit = store.readable(name, self.user).at(revision)
                paths = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
                return self.plain([entry(path, commit) for path in paths if path in commit.files])
            case "GET", ["auth-check", *how]:
                (store.writable if how else store.readable)(name, self.user)
                return 200, {}, b""
            case "GET", ["refs"]:
                branches = store.readable(name, self.user).branches
                listed = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": sha} for b, sha in branches.items()]
                return self.plain({"branches": listed, "tags": [], "converts": []})
            case "POST", ["branch", branch]:
                found = store.writable(name, self.user)
                if branch in found.branches:
                    raise Refusal(409, message="Reference already exists")
                found.branches[branch] = found.at(json.loads(body or b"{}").get("startingPoint", "main")).sha
                return self.plain({})
            case "POST", ["preupload", revision]:
                files = store.writable(name, self.user).at(revision).files
                return self.plain({"files": [mode(each["path"], files) for each in json.loads(body)["files"]]})
            case "POST", ["commit", revision]:
                found = store.writable(name, self.user)
                lines = [json.loads(line) for line in body.splitlines()]
                made = store.commit(found, revision, lines, lambda value: base64.b64decode(value["content"]))
                at = f"{self.url}/{name}/commit/{made.sha}"
                return self.plain({"success": True, "commitOid": made.sha, "commitUrl": at})
        raise Refusal(404, message=f"{self.command} {self.path} is not part of this Hub")

    def file(self, name: str, rest: list[str]) -> Answer:
        found = self.store.readable(name, self.user)
        if found.gated:
            raise Refusal(403 if self.user else 401, "GatedRepo", "Access to this model is restricted")
        commit, path = found.at(rest[1]), "/".join(rest[2:])
        if path not in commit.files:
            raise Refusal(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.sha})
        blob, headers = commit.files[path], {"X-Repo-Commit": commit.sha}
        if not blob.large:
            return self.ranged(blob.content, {**headers, "ETag": f'"{blob.oid}"'})
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        # To another name of the same machine, as storage is elsewhere: who goes on to it with a token gives it away.
        elsewhere = self.url.replace("127.0.0.1", "localhost")
        return 302, {**headers, **linked, "Location": f"{elsewhere}/cdn/{blob.sha256}"}, b""

    def large(self, oid: str) -> bytes:
        """A large file of a repository that was made here, not uploaded."""
        if self.headers.get("Authorization"):
            raise Refusal(400, message="a token was sent to the storage")
        for repository in self.store.repositories.values():
            for commit in repository.commits.values():
                for blob in commit.files.values():
                    if blob.large and blob.sha256 == oid:
                        return blob.content
        raise Refusal(404, message="no such object")

    def ranged(self, content: bytes, headers: dict[str, str]) -> Answer:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, {**headers, "Accept-Ranges": "bytes"}, content
        first, last = int(asked[1]), int(asked[2] or len(content) - 1)
        if first >= len(content):
            raise Refusal(416, headers={"Content-Range": f"bytes */{len(content)}"})
        return 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}, content[first : last + 1]


_VERBS = frozenset({"resolve", "tree", "revision", "paths-info", "auth-check", "refs", "branch", "preupload", "commit"})


def named(parts: list[str]) -> tuple[str, list[str]]:
    """A repository's name, of one part or two, and what follows it."""
    many = 1 if len(parts) == 1 or parts[1] in _VERBS else 2
    return "/".join(parts[:many]), parts[many:]


def info(repository: Repository, commit: Commit) -> dict[str, Any]:
    facts: dict[str, Any] = {"id": repository.id, "sha": commit.sha, "private": repository.private, "tags": []}
    facts["gated"] = "auto" if repository.gated else False
    facts["siblings"] = [{"rfilename": path} for path in commit.files]
    if "README.md" in commit.files and (found := header(commit.files["README.md"].content.decode())) is not None:
        facts["cardData"] = found
    return facts


def entry(path: str, commit: Commit) -> dict[str, Any]:
    blob = commit.files[path]
    facts: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.oid}
    if blob.large:
        facts["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
    return facts


def mode(path: str, files: Mapping[str, Any]) -> dict[str, Any]:
    """How a file is to be sent, and which one is there by its name."""
    large, there = path.endswith(LARGE), files.get(path)
    known = {} if there is None else {"oid": there.sha256 if there.large else there.oid}
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **known}


def header(card: str) -> Any:
    found = re.match(r"---\n(.*?)\n---(\n|$)", card, re.DOTALL)
    return None if found is None else yaml.safe_load(found[1])


def validated(card: str) -> dict[str, Any]:
    """Judge a card's metadata, as the Hub does before it takes one."""
    try:
        data = header(card)
    except yaml.YAMLError as error:
        raise Refusal(400, message=f"Invalid metadata: {error}") from error
    if not isinstance(data, dict):
        return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
    for result in (each for model in data.get("model-index", ()) for each in model["results"]):
        if not result["task"]["type"] or not result["dataset"]["type"] or not result["metrics"]:
            raise Refusal(400, message='"model-index[0].results[0]" is not complete')
    if any(not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) for base in _listed(data.get("base_model"))):
        raise Refusal(400, message='"base_model" with value is not valid')
    return {"errors": [], "warnings": []}


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def checked(oid: str, content: bytes) -> str:
    if hashlib.sha256(content).hexdigest() != oid:
        raise Refusal(400, message="the content is not what its hash says")
    return oid
