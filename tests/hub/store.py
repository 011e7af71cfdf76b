"""What a Hub keeps: users, repositories with branches and commits, large files by their hash. No network in here."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.pt filter=lfs diff=lfs merge=lfs -text\n"
LARGE = (".safetensors", ".bin", ".pt", ".pth")
"""Files that are kept by their hash, as `.gitattributes` says."""


class Refusal(Exception):
    """An answer other than success."""

    def __init__(
        self, status: int, code: str = "", message: str = "", headers: Mapping[str, str] | None = None, **body: Any
    ) -> None:
        super().__init__(f"{status} {code} {message}")
        self.status, self.code, self.message, self.headers = status, code, message, dict(headers or {})
        self.body = {"error": message, **body}


@dataclass(frozen=True)
class User:
    """Whoever a token belongs to. `role`: what the token may do."""

    name: str
    orgs: tuple[tuple[str, str], ...] = ()
    """Name and the user's role there: admin, write, contributor or read."""
    role: str = "write"

    def writes(self, namespace: str) -> bool:
        there = {self.name: "admin", **dict(self.orgs)}.get(namespace)
        return self.role != "read" and there in ("admin", "write", "contributor")

    def reads(self, namespace: str) -> bool:
        return namespace == self.name or namespace in dict(self.orgs)


@dataclass(frozen=True)
class Blob:
    """A file of a commit."""

    content: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        version = "version https://git-lfs.github.com/spec/v1"
        return f"{version}\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def oid(self) -> str:
        """The name that git has for it."""
        stored = self.pointer if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()


@dataclass(frozen=True)
class Commit:
    sha: str
    files: Mapping[str, Blob]
    parent: str | None
    title: str


@dataclass
class Repository:
    """A model on the Hub. `branches`: name -> commit."""

    id: str
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def add(self, branch: str, files: Mapping[str, Blob], title: str) -> Commit:
        parent = self.branches.get(branch)
        tree = {name: files[name].oid for name in sorted(files)}
        text = json.dumps([self.id, parent, title, len(self.commits), tree])
        commit = Commit(hashlib.sha1(text.encode()).hexdigest(), dict(files), parent, title)
        self.commits[commit.sha] = commit
        self.branches[branch] = commit.sha
        return commit

    def at(self, revision: str) -> Commit:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[sha]

    def history(self, branch: str = "main") -> list[Commit]:
        """Newest first."""
        found, sha = [], self.branches.get(branch)
        while sha is not None:
            found.append(self.commits[sha])
            sha = self.commits[sha].parent
        return found


class Store:
    """All of it."""

    def __init__(self, users: Mapping[str, User]) -> None:
        self.users = dict(users)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.lock = threading.RLock()

    def create(self, name: str, private: bool = False, files: Mapping[str, bytes] | None = None) -> Repository:
        made = self.repositories[name] = Repository(name, private)
        made.add("main", {".gitattributes": Blob(ATTRIBUTES, False)}, "initial commit")
        if files:
            given = {path: Blob(content, path.endswith(LARGE)) for path, content in files.items()}
            made.add("main", {**made.at("main").files, **given}, "earlier")
        return made

    def readable(self, name: str, user: User | None) -> Repository:
        """The repository, for who may read it."""
        found = self.repositories.get(name)
        hidden = found is None or (found.private and not (user and user.reads(name.partition("/")[0])))
        if hidden or found is None:
            raise Refusal(404 if user else 401, "RepoNotFound", "Repository not found")
        return found

    def writable(self, name: str, user: User | None) -> Repository:
        found = self.readable(name, user)
        if user is None:
            raise Refusal(401, message="Invalid username or password.")
        if not user.writes(name.partition("/")[0]):
            raise Refusal(403, message="Forbidden: you must use a write token to upload to a repository.")
        return found

    def commit(self, repository: Repository, branch: str, lines: Iterable[Mapping[str, Any]], content: Any) -> Commit:
        """Apply what a commit request says, or nothing of it.

        Args:
            content: decodes a regular file's value.
        """
        head = repository.at(branch)
        if branch not in repository.branches:
            raise Refusal(400, message=f"{branch} is no branch")
        files, title = dict(head.files), ""
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit", head.sha) != head.sha:
                    raise Refusal(412, message="A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = Blob(content(value), False)
            elif key == "lfsFile":
                if value["oid"] not in self.objects:
                    raise Refusal(400, message=f"LFS pointer pointed to a file that does not exist: {value['oid']}")
                files[value["path"]] = Blob(self.objects[value["oid"]], True)
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refusal(404, "EntryNotFound", "A file with this name doesn't exist")
            elif key == "deletedFolder":
                folder = f"{value['path'].rstrip('/')}/"
                files = {path: blob for path, blob in files.items() if not path.startswith(folder)}
            else:
                raise Refusal(400, message=f"unknown {key}")
        return repository.add(branch, files, title)
