"""The content of a hub: repositories with their commits, tags and files."""

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from typing import Any

LFS_PATTERNS = ('*.bin', '*.ckpt', '*.npz', '*.onnx', '*.pt', '*.pth', '*.safetensors', '*.zip')
LFS_SIZE = 10 * 1024**2  # any larger file is an LFS file, whatever its name


class Refused(Exception):  # noqa: N818  (an answer, which the server sends)
    """An error answer in the Hub's form: the client's exception depends on `X-Error-Code`."""

    def __init__(self, status: int, message: str, *, code: str = '', commit: str = '', **content: str) -> None:
        super().__init__(message)
        named = {'X-Error-Code': code, 'X-Error-Message': message, 'X-Repo-Commit': commit}
        self.status, self.headers = status, {name: value for name, value in named.items() if value}
        self.content = dict(error=message, **content)


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """The file that git stores in place of an LFS file."""
        size = len(self.content)
        return f'version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n'.encode()

    @cached_property
    def blob(self) -> str:
        """The sha1 of git's blob."""
        kept = self.pointer if self.lfs else self.content
        return hashlib.sha1(b'blob %d\0' % len(kept) + kept).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """The file in the listing of a tree."""
        size = len(self.content)
        entry = dict(type='file', path=path, size=size, oid=self.blob)
        lfs = dict(oid=self.sha256, size=size, pointerSize=len(self.pointer))
        return {**entry, 'lfs': lfs} if self.lfs else entry


@dataclass(frozen=True)
class Commit:
    title: str
    files: dict[str, File]


class Repo:
    """A model repository with one branch, `main`; it begins as the Hub's do, with a commit of `.gitattributes`."""

    def __init__(self, name: str, *, private: bool = False) -> None:
        self.name, self.private = name, private
        self.commits: dict[str, Commit] = {}  # by hash, oldest first
        self.tags: dict[str, str] = {}
        attributes = ''.join(f'{pattern} filter=lfs diff=lfs merge=lfs -text\n' for pattern in LFS_PATTERNS)
        self.commit('initial commit', {'.gitattributes': File(attributes.encode())})

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def files(self, revision: str = 'main') -> dict[str, File]:
        return self.commits[self.resolve(revision)].files

    def commit(self, title: str, files: dict[str, File]) -> str:
        """Commit `files` as the complete state of main; returns the commit's hash."""
        content = repr((list(self.commits), title, [(path, file.blob) for path, file in sorted(files.items())]))
        oid = hashlib.sha1(content.encode()).hexdigest()
        self.commits[oid] = Commit(title, dict(files))
        return oid

    def resolve(self, revision: str) -> str:
        """The commit of a branch, a tag or a commit's hash."""
        oid = {'main': self.head, **self.tags}.get(revision, revision)
        if oid not in self.commits:
            raise Refused(404, f'Invalid rev id: {revision}', code='RevisionNotFound')
        return oid


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub stores a file of this name and size in LFS."""
    return size > LFS_SIZE or any(fnmatch(path, pattern) for pattern in LFS_PATTERNS)
