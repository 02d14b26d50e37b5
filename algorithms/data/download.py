"""Fetching a file over HTTP: whole and checked, or not at all.

What arrives is written to `NAME.part` beside the target, which a later attempt, of this process or
another, continues. Length and hash are checked before the part is renamed to the target: who sees
the target sees a whole file. Only one process at a time may fetch a file, so the caller holds a
lease.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from algorithms.errors import UserError
from algorithms.identity import file_sha256

if TYPE_CHECKING:
    from requests import Response

CHUNK = 1 << 16  # bytes; what a cut may lose of what has arrived
GAIN = 1 << 20  # bytes after which a broken connection no longer counts as a failure
LINE_EVERY_S = 30.0  # where there is no terminal
TRY_AGAIN = {408, 425, 429}  # and every status of 500 and more


class Patience(NamedTuple):
    """How long to wait for a server, and how often to ask it again."""

    connect_s: float = 10.0
    read_s: float = 30.0  # without a byte
    tries: int = 5  # of one address, in a row without progress
    unanswered: int = 2  # of an address that has not answered at all
    backoff_s: float = 1.0  # before the second try; doubled before each further one


class Wanted(NamedTuple):
    """A file, and what is known of it beforehand."""

    label: str  # what the user calls it
    target: Path
    length: int | None  # bytes
    sha256: str | None  # hex
    signature: bytes = b""  # with which it begins: tells an unknown file from a page of a web site

    @property
    def part(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def notes(self) -> Path:
        """Which version of the file the part is of: its address and the server's mark of it."""
        return self.target.with_name(f"{self.target.name}.part.json")


class AgainError(Exception):
    """It failed, and may succeed when it is tried again: a cut, a stall, a busy server."""


class RefusedError(Exception):
    """The address does not have the file."""


def fetch(
    wanted: Wanted,
    addresses: Sequence[str],
    *,
    progress: Progress | None = None,
    patience: Patience = Patience(),  # noqa: B008 - immutable
) -> str:
    """Put the file where it is wanted; returns the address that had it.

    Args:
        wanted: what, and where to.
        addresses: in the order in which they are asked.
        progress: display to add a bar to; by default a new one on stderr.
        patience: with servers.

    Raises:
        UserError: no address has it, or it cannot be written.
    """
    reasons = []
    try:
        wanted.target.parent.mkdir(parents=True, exist_ok=True)
        with _display(wanted, progress) as display:
            for address in addresses:
                try:
                    _Transfer(wanted, address, patience, display).run()
                except RefusedError as error:
                    reasons.append(f"{address} {error}")
                    display.say(f"{wanted.label}: {reasons[-1]}")
                else:
                    return address
    except OSError as error:
        raise UserError(_cannot_write(wanted, error)) from None
    raise UserError(
        f"{wanted.label} could not be downloaded ({'; '.join(reasons)}): run the command again, "
        f"or put the file at {wanted.target}"
    )


class _Transfer:
    """One address, asked until it has given the whole file or failed too often."""

    def __init__(self, wanted: Wanted, address: str, patience: Patience, display: _Display) -> None:
        self._wanted, self._address = wanted, address
        self._patience, self._display = patience, display
        self._answered = False

    def run(self) -> None:
        """Raises: RefusedError."""
        failures = 0
        while True:
            before = _size(self._wanted.part)
            try:
                resumed = self._receive()
                self._accept(resumed=resumed)
            except AgainError as error:
                failures = 1 if _size(self._wanted.part) - before >= GAIN else failures + 1
                tries = self._patience.tries if self._answered else self._patience.unanswered
                if failures >= tries:
                    raise RefusedError(f"{error} (tried {failures} times)") from None
                pause = self._patience.backoff_s * 2 ** (failures - 1)
                self._display.say(
                    f"{self._wanted.label}: {self._address} {error}; next try in {pause:g} s"
                )
                time.sleep(pause)
            else:
                return

    def _receive(self) -> bool:
        """Ask for what the part lacks, and add it; whether any of it is of an earlier request.

        Raises:
            AgainError, RefusedError
        """
        import requests
        from urllib3.exceptions import HTTPError

        wanted = self._wanted
        start, mark = self._resumable()
        if start and start == wanted.length:
            return True
        headers = {"Accept-Encoding": "identity"}  # lengths are the file's
        if start:
            headers["Range"] = f"bytes={start}-"
            if mark:
                headers["If-Range"] = mark
        timeouts = (self._patience.connect_s, self._patience.read_s)
        try:
            with requests.get(
                self._address, headers=headers, stream=True, timeout=timeouts
            ) as response:
                self._answered = True
                start, total = self._begin(response, start)
                end = self._write(response, start, total)
        except requests.Timeout:
            raise AgainError("does not answer in time") from None
        except requests.ConnectionError:
            raise AgainError("cannot be reached") from None
        except requests.RequestException as error:
            raise RefusedError(f"cannot be asked: {error}") from None
        except HTTPError as error:
            stalled = "timed out" in str(error).lower()
            at = decimal(_size(wanted.part))
            raise AgainError(f"{'stalls' if stalled else 'breaks off'} at {at}") from None
        if total is not None and end < total:
            raise AgainError(f"breaks off at {decimal(end)} of {decimal(total)}")
        return start > 0

    def _resumable(self) -> tuple[int, str | None]:
        """Bytes of the part that may be continued from this address, and the version they are of.

        Where the hash is known it decides in the end, and any part will do. Otherwise the part
        must be of this address, and the server must be able to tell whether its file is the same.
        """
        wanted = self._wanted
        size = _size(wanted.part)
        notes = _read_json(wanted.notes)
        mark = notes.get("mark") if notes.get("address") == self._address else None
        if wanted.length is not None and size > wanted.length:
            return 0, None
        if mark is None and wanted.sha256 is None:
            return 0, None
        return size, mark

    def _begin(self, response: Response, start: int) -> tuple[int, int | None]:
        """Where the answer's bytes belong, and the length of the whole file as the server says."""
        wanted, status = self._wanted, response.status_code
        if status in TRY_AGAIN or status >= 500:
            raise AgainError(f"answers {status} {response.reason}")
        if status == 416:  # the part is longer than the file
            wanted.part.unlink(missing_ok=True)
            raise AgainError("has another version of the file than before")
        if status == 206:
            found = re.fullmatch(
                r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "")
            )
            if found is None or int(found[1]) != start:
                wanted.part.unlink(missing_ok=True)
                raise AgainError("gives another part of the file than was asked for")
            total = None if found[2] == "*" else int(found[2])
        elif status == 200:
            start = 0
            length = response.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
        else:
            raise RefusedError(f"answers {status} {response.reason}")
        if None not in (total, wanted.length) and total != wanted.length:
            raise RefusedError(f"has a file of {total:,} bytes, not of {wanted.length:,}")
        chunked = response.headers.get("Transfer-Encoding") == "chunked"
        if total is None and wanted.length is None and not chunked:
            raise RefusedError("does not say how long the file is")
        return start, wanted.length if total is None else total

    def _write(self, response: Response, start: int, total: int | None) -> int:
        """Add the answer's bytes to the part; returns its length."""
        wanted = self._wanted
        if total is not None and shutil.disk_usage(wanted.part.parent).free < total - start:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with open_part(wanted.part, start) as file:
            # After an old part is gone, and before a byte of the new one.
            notes = {"address": self._address, "mark": _mark(response)}
            wanted.notes.write_text(json.dumps(notes), encoding="utf-8")
            end = start
            self._display.show(end, total)
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                file.write(chunk)
                end += len(chunk)
                self._display.show(end, total)
                if total is not None and end > total:
                    raise RefusedError(f"sends more than {total:,} bytes")
            file.flush()
            os.fsync(file.fileno())
        return end

    def _accept(self, *, resumed: bool) -> None:
        """Rename the part to the target, if it is the file that is wanted.

        Raises:
            AgainError: it is not, and its beginning was of an earlier request.
            RefusedError: it is not.
        """
        wanted = self._wanted
        with wanted.part.open("rb") as file:
            begins = file.read(len(wanted.signature)) == wanted.signature
        sha256 = file_sha256(wanted.part) if wanted.sha256 else None
        if begins and sha256 == wanted.sha256:
            wanted.part.replace(wanted.target)
            wanted.notes.unlink(missing_ok=True)
            return
        wanted.part.unlink()
        if resumed:
            raise AgainError("does not continue what had arrived before")
        if sha256 and wanted.sha256:
            raise RefusedError(
                f"has a file of SHA-256 {sha256[:12]}..., not {wanted.sha256[:12]}..."
            )
        raise RefusedError("has a file of another format")


def open_part(path: Path, start: int) -> Any:
    """The file of what has arrived, to be continued or begun anew."""
    return path.open("ab" if start else "wb")


def _mark(response: Response) -> str | None:
    """What tells this version of the file from others, for If-Range; a weak ETag does not."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _cannot_write(wanted: Wanted, error: OSError) -> str:
    folder = wanted.target.parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        size = f" ({decimal(wanted.length)})" if wanted.length else ""
        return (
            f"no space left in {folder} for {wanted.label}{size}: make room, or name another "
            "folder in ORCHESTRATOR_DATA, and run the command again, which continues"
        )
    return (
        f"{folder} cannot be written ({error.strerror}), where {wanted.label} is to lie: name "
        "another folder in ORCHESTRATOR_DATA"
    )


class _Display:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, wanted: Wanted, progress: Progress) -> None:
        self._label, self._progress = wanted.label, progress
        self._task = progress.add_task(f"downloading {wanted.label}", total=wanted.length)
        self._lines = not progress.console.is_terminal
        self._said = time.monotonic()
        if self._lines:
            size = f" ({decimal(wanted.length)})" if wanted.length else ""
            self.say(f"downloading {wanted.label}{size} to {wanted.target}")

    def say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def show(self, done: int, total: int | None) -> None:
        self._progress.update(self._task, completed=done, total=total)
        if self._lines and time.monotonic() - self._said > LINE_EVERY_S:
            of = f" of {decimal(total)}" if total else ""
            self.say(f"downloading {self._label}: {decimal(done)}{of}")
            self._said = time.monotonic()


@contextmanager
def _display(wanted: Wanted, progress: Progress | None) -> Iterator[_Display]:
    display: AbstractContextManager[Progress]
    if progress is not None:
        display = nullcontext(progress)
    else:
        console = Console(stderr=True)
        display = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
    with display as shown:
        yield _Display(wanted, shown)
