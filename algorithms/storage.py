"""Where everything that is kept between runs lies: the only place that writes it.

A `Storage` is a URL; its scheme chooses a backend from `BACKENDS`. Names are relative, with `/`.
A reader sees a file as it was or as it is, never a part of it.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from filelock import FileLock, Timeout

from algorithms.errors import UserError, expected

DEFAULT_STORAGE = "~/orchestrator"


class HeldError(Exception):
    """Somebody else has the lease."""


class Backend(Protocol):
    """What a kind of storage has to do; `Storage` says what each of these means."""

    def get(self, name: str) -> bytes | None: ...
    def put(self, name: str, content: bytes) -> None: ...
    def put_if_absent(self, name: str, content: bytes) -> bool: ...
    def list(self, folder: str) -> list[str]: ...
    def delete(self, name: str) -> None: ...
    def publish(self, folder: str, files: Mapping[str, bytes], last: str) -> bool: ...
    def lease(self, name: str, *, wait: bool) -> Any: ...
    def fetch(self, name: str) -> Path: ...
    def path(self, name: str) -> Path: ...


class Storage:
    """All that is kept below one root.

    It can be pickled and compared; making it touches nothing.

    Args:
        url: a folder's path, or `file://` and one.

    Raises:
        UserError: a scheme that there is no backend for, or a folder that cannot be one.
    """

    def __init__(self, url: str | Path) -> None:
        scheme, separator, rest = str(url).partition("://")
        scheme = scheme.lower()
        if not separator:
            scheme, rest = "", str(url)
        if scheme not in BACKENDS:
            known = [name for name in BACKENDS if name]
            sentence = expected("scheme", scheme, known)
            raise UserError(f"storage {url}: {sentence}, or the path of a folder")
        self._backend = BACKENDS[scheme](rest)
        self.url = str(self._backend)

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.url,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Storage) and other.url == self.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __str__(self) -> str:
        return self.url

    def get(self, name: str) -> bytes | None:
        """A file's content, or None where there is none."""
        return self._backend.get(name)

    def put(self, name: str, content: bytes) -> None:
        """Write or replace a file."""
        self._backend.put(name, content)

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one; whether it was written. Of several callers one wins."""
        return self._backend.put_if_absent(name, content)

    def list(self, folder: str) -> list[str]:
        """The names of the files directly in a folder, sorted; none where there is no folder."""
        return self._backend.list(folder)

    def delete(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; nothing where there is none."""
        self._backend.delete(name)

    def publish(self, folder: str, files: Mapping[str, bytes], *, last: str) -> bool:
        """Make a folder of files visible, whole or not at all; whether it was this call that did.

        Args:
            folder: where `last` exists already, nothing changes.
            files: content by name.
            last: the one of `files` whose presence says that all are there.
        """
        return self._backend.publish(folder, files, last)

    @contextmanager
    def lease(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Hold a name exclusively; whoever dies lets go.

        Args:
            name: what is held.
            wait: for whoever has it, without limit.

        Raises:
            HeldError: somebody else has it, and `wait` is false.
        """
        with self._backend.lease(name, wait=wait):
            yield

    def fetch(self, name: str) -> Path:
        """A local file with the content of an existing file, for libraries that read paths."""
        return self._backend.fetch(name)

    def path(self, name: str) -> Path:
        """The local path of a name, for libraries that write on their own: Ray Tune, MLflow."""
        return self._backend.path(name)


def is_file(path: Path) -> bool:
    """Whether it is a file; False as well where its folder may not be entered."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_dir(path: Path) -> bool:
    """Whether it is a folder; False as well where its own folder may not be entered."""
    try:
        return path.is_dir()
    except OSError:
        return False


class LocalFolder:
    """A folder of a file system; on a cluster, one that all nodes share."""

    def __init__(self, root: str) -> None:
        try:
            path = Path(root)
            self._root = (path.expanduser() if root.startswith("~") else path).absolute()
        except RuntimeError as error:  # ~somebody without a home
            raise UserError(f"storage {root}: {error}") from None

    def __str__(self) -> str:
        return str(self._root)

    def get(self, name: str) -> bytes | None:
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UserError(f"{self.path(name)} cannot be read: {error.strerror}") from None

    def put(self, name: str, content: bytes) -> None:
        with self._aside(name, content) as aside:
            aside.replace(self.path(name))

    def put_if_absent(self, name: str, content: bytes) -> bool:
        with self._aside(name, content) as aside:
            try:
                os.link(aside, self.path(name))  # atomic, and fails where there is a file
            except FileExistsError:
                return False
            return True

    @contextmanager
    def _aside(self, name: str, content: bytes) -> Iterator[Path]:
        """A new file with that content in the same folder; whatever is left of it is removed."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        try:
            with aside.open("xb") as file:
                file.write(content)
            yield aside
        finally:
            aside.unlink(missing_ok=True)

    def list(self, folder: str) -> list[str]:
        found = self.path(folder).glob("[!.]*")
        return sorted(path.name for path in found if path.is_file())

    def delete(self, name: str) -> None:
        path = self.path(name)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def publish(self, folder: str, files: Mapping[str, bytes], last: str) -> bool:
        path = self.path(folder)
        if (path / last).is_file():
            return False
        aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        aside.mkdir(parents=True)
        try:
            for name, content in files.items():
                (aside / name).write_bytes(content)
            aside.rename(path)
        except OSError:  # of the rename: somebody else published the same folder first
            if not (path / last).is_file():
                raise
            return False
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return True

    @contextmanager
    def lease(self, name: str, *, wait: bool) -> Iterator[None]:
        path = self.path(f"locks/{name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(path, timeout=-1 if wait else 0)
            lock.acquire()
        except Timeout:
            raise HeldError(name) from None
        try:
            yield
        finally:
            lock.release()

    def fetch(self, name: str) -> Path:
        return self.path(name)

    def path(self, name: str) -> Path:
        return self._root / name


def _file_url(rest: str) -> LocalFolder:
    host, slash, path = rest.partition("/")
    if not slash or host not in ("", "localhost"):
        raise UserError(f"storage file://{rest}: give file:// and an absolute path: file:///data")
    return LocalFolder(unquote(slash + path))


# By scheme: a URL without it, and its backend. A path is a folder's.
BACKENDS: dict[str, Callable[[str], Backend]] = {"": LocalFolder, "file": _file_url}
