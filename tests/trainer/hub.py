"""A Hub on disk, in the place of the one that transformers pushes to."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers.trainer
from huggingface_hub import CommitInfo, HfApi, RepoUrl
from huggingface_hub.utils import filter_repo_objects

ADDRESS = "https://huggingface.co"


@dataclass
class Repo:
    """One repository.

    Attributes:
        private: whether it is.
        commits: branch and message of each commit, in order.
    """

    private: bool | None
    commits: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Hub:
    """Keeps repositories as folders, one for each branch.

    Attributes:
        root: where they are.
        repos: what is known of each, by its name.
        tokens: the token of every call.
    """

    root: Path
    repos: dict[str, Repo] = field(default_factory=dict)
    tokens: list[str | None] = field(default_factory=list)

    def create_repo(
        self, repo_id: str, *, token: str | None = None, private: bool | None = None, exist_ok: bool = False
    ) -> RepoUrl:
        self.tokens.append(token)
        name = repo_id if "/" in repo_id else f"someone/{repo_id}"
        if name in self.repos and not exist_ok:
            raise FileExistsError(name)
        self.repos.setdefault(name, Repo(private))
        return RepoUrl(f"{ADDRESS}/{name}", endpoint=ADDRESS)

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: str,
        path_in_repo: str | None = None,
        commit_message: str | None = None,
        token: str | None = None,
        revision: str | None = None,
        ignore_patterns: list[str] | None = None,
        run_as_future: bool = False,
    ) -> CommitInfo | Future[CommitInfo]:
        self.tokens.append(token)
        branch = revision or "main"
        files = [str(p.relative_to(folder_path)) for p in Path(folder_path).rglob("*") if p.is_file()]
        for name in filter_repo_objects(files, ignore_patterns=ignore_patterns):
            target = self.folder(repo_id, branch) / (path_in_repo or "") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder_path) / name, target)
        self.repos[repo_id].commits.append((branch, commit_message or ""))
        number = len(self.repos[repo_id].commits)
        commit = CommitInfo(
            commit_url=f"{ADDRESS}/{repo_id}/commit/{number:040x}",
            commit_message=commit_message or "",
            commit_description="",
            oid=f"{number:040x}",
        )
        return done(commit) if run_as_future else commit

    def folder(self, repo_id: str, branch: str = "main") -> Path:
        return self.root / repo_id / branch

    def files(self, repo_id: str, branch: str = "main") -> set[str]:
        folder = self.folder(repo_id, branch)
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@dataclass
class SlowHub(Hub):
    """Uploads in the thread of the Hub's own client, and each upload waits until it is let through.

    Attributes:
        gate: lets uploads through while it is set.
        error: what they fail with, if they fail.
        fails_at_once: whether they fail in the call, and not in their thread.
        begun: the message of each upload, when it began.
        at_once: the largest number of uploads at a time.
    """

    gate: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    fails_at_once: bool = False
    begun: list[str] = field(default_factory=list)
    at_once: int = 0
    client: HfApi = field(default_factory=HfApi)
    _active: int = 0

    def upload_folder(self, *, run_as_future: bool = False, **options: Any) -> Any:
        if not run_as_future:
            return super().upload_folder(**options)
        if self.error is not None and self.fails_at_once:
            raise self.error
        return self.client.run_as_future(self._upload, options)

    def _upload(self, options: dict[str, Any]) -> Any:
        self._active += 1
        self.begun.append(options["commit_message"])
        self.at_once = max(self.at_once, self._active)
        try:
            assert self.gate.wait(30)
            if self.error is not None:
                raise self.error
            return super().upload_folder(**options)
        finally:
            self._active -= 1


def done(value: CommitInfo) -> Future[CommitInfo]:
    """A future that is over: which pushes HF leaves out as too many must not depend on the machine."""
    future: Future[CommitInfo] = Future()
    future.set_result(value)
    return future


def connect(monkeypatch: Any, root: Path, kind: type[Hub] = Hub) -> Any:
    """Have transformers push to a new Hub under `root`."""
    hub = kind(root)
    if hasattr(transformers.trainer, "hf_api"):
        monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    else:
        monkeypatch.setattr(transformers.trainer, "create_repo", hub.create_repo)
        monkeypatch.setattr(transformers.trainer, "upload_folder", hub.upload_folder)
    return hub
