"""D4RL's own files: found, downloaded, and checked to be what they should be.

Where the catalogue pins a file's hash, that decides. Where it does not, the first file is
recorded in a lock file beside the downloads, which decides from then on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import Progress

from algorithms.data import hdf5
from algorithms.data.catalog import CATALOG, D4RL, D4RL_PREFIX, task_of
from algorithms.data.checks import Evidence, warnings_of
from algorithms.data.columns import understand
from algorithms.data.dataset import OfflineDataset
from algorithms.data.download import Patience, Wanted, fetch
from algorithms.data.file import content_hash, read_files
from algorithms.data.source import of_catalog, refuse_size
from algorithms.data.spec import Choices, DataFile, DatasetSpec
from algorithms.environments.table import ENVIRONMENTS
from algorithms.errors import UserError
from algorithms.identity import file_sha256
from algorithms.offline import is_offline
from algorithms.storage import DEFAULT_STORAGE, HeldError, Storage, is_file

# Asked in this order. The first is plain HTTP: what comes from there is trusted for its hash alone.
ADDRESSES = (
    "http://rail.eecs.berkeley.edu/datasets/offline_rl/{folder}/{file}",
    "https://huggingface.co/datasets/imone/D4RL/resolve/main/{file}",
)
PATIENCE = Patience()
LOCK_FILE = "datasets.lock.json"
SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Pin(BaseModel):
    """What a file has to be."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str
    url: str | None = None  # None: found, not downloaded
    # Of what is not just as the file has it: Adroit's have no next observations.
    content: str | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def resolve(dataset_id: str, choices: Choices, storage: Storage | None) -> DatasetSpec:
    """The spec; a file whose hash nobody knows yet is downloaded first.

    Raises:
        UserError: it cannot be, or what was said contradicts the catalogue.
    """
    refuse_size(dataset_id, choices.size)
    entry = _entry(dataset_id)
    spec = DatasetSpec(
        id=dataset_id,
        env_id=entry.env_id,
        content_hash="",
        task=task_of(dataset_id.removeprefix(D4RL_PREFIX)),
    )
    spec = of_catalog(dataset_id, spec, choices)
    version = dataset_id.rpartition("-")[2]
    if entry.sha256 is not None:
        return spec.model_copy(update={"content_hash": entry.sha256, "version": version})
    if storage is None:
        storage = Storage(os.environ.get("ORCHESTRATOR_STORAGE") or DEFAULT_STORAGE)
    pin = _pin(dataset_id, storage) or _first_pin(dataset_id, storage)
    return spec.model_copy(
        update={
            "content_hash": pin.content or pin.sha256,
            "files": (DataFile(path=entry.file, sha256=pin.sha256),),
            "version": version,
            "notes": pin.notes,
            "warnings": pin.warnings,
        }
    )


def cache_folder(storage: Storage) -> Path:
    """Where files are downloaded to, and where the lock file lies."""
    named = os.environ.get("ORCHESTRATOR_DATA")
    return Storage(named).path("") if named else storage.path("data/d4rl")


def folders(storage: Storage) -> list[Path]:
    """Where a file may lie, first come first served: ours, then d4rl's own places."""
    candidates = [cache_folder(storage), storage.path("data/d4rl")]
    if named := os.environ.get("D4RL_DATASET_DIR"):
        candidates.append(Path(named))
    with suppress(RuntimeError):  # a container's user need not have a home
        candidates.append(Path("~/.d4rl/datasets").expanduser())
    return list(dict.fromkeys(candidates))


def find(spec: DatasetSpec, storage: Storage) -> Path | None:
    """The first file of that name and length, if there is one.

    Raises:
        UserError: all that there are have another length.
    """
    pin = _pin(spec.id, storage)
    paths = present(spec.id, storage)
    for path in paths:
        if pin is None or path.stat().st_size == pin.bytes:
            return path
    if paths and pin:
        raise UserError(
            f"{paths[0]} has {paths[0].stat().st_size:,} bytes, but {spec.id} has "
            f"{pin.bytes:,}{_by(spec.id, storage)}: it is cut off or another file, so delete it, "
            "and it is downloaded"
        )
    return None


def missing(spec: DatasetSpec, storage: Storage) -> str | None:
    """None if the file is there with its right length or can be downloaded, else a sentence."""
    try:
        if find(spec, storage) is None and is_offline():
            return _put_it_there(spec.id, storage)
    except UserError as error:
        return str(error)
    return None


def at_hand(spec: DatasetSpec, storage: Storage) -> bool:
    try:
        return find(spec, storage) is not None
    except UserError:
        return False


def to_download(spec: DatasetSpec, storage: Storage) -> int:
    """Bytes that `load` has to download first."""
    pin = _pin(spec.id, storage)
    return 0 if pin is None or at_hand(spec, storage) else pin.bytes


def load(spec: DatasetSpec, storage: Storage, progress: Progress | None) -> OfflineDataset:
    """Read the file, downloaded if it has to be, if it is D4RL's.

    Raises:
        UserError: it cannot be had, is cut off, or is another file.
    """
    path = find(spec, storage)
    sha256 = spec.files[0].sha256 if spec.files else spec.content_hash
    if path is None:
        path = _obtain(spec.id, storage, progress, sha256=sha256)
    if _file_sha256(path) != sha256:
        raise UserError(
            f"{path} has SHA-256 {_file_sha256(path)[:12]}..., but {spec.id} has "
            f"{sha256[:12]}...{_by(spec.id, storage)}: it is damaged or another file, "
            "so delete it, and it is downloaded"
        )
    return understand([hdf5.read(path)], ENVIRONMENTS[spec.env_id], spec.env_id).data


def addresses(dataset_id: str) -> list[str]:
    entry = _entry(dataset_id)
    return [address.format(folder=entry.folder, file=entry.file) for address in ADDRESSES]


def _entry(dataset_id: str) -> D4RL:
    entry = CATALOG[dataset_id]
    assert isinstance(entry, D4RL)
    return entry


def present(dataset_id: str, storage: Storage) -> list[Path]:
    """Files of that name, wherever they are looked for."""
    name = _entry(dataset_id).file
    return [path for folder in folders(storage) if is_file(path := folder / name)]


def _obtain(
    dataset_id: str, storage: Storage, progress: Progress | None, *, sha256: str | None
) -> Path:
    """Download the file, unless another process just did.

    Raises:
        UserError: no address has it, it cannot be written, or ORCHESTRATOR_OFFLINE is set.
    """
    if is_offline():
        raise UserError(_put_it_there(dataset_id, storage))
    target = cache_folder(storage) / _entry(dataset_id).file
    with _alone(target.parent, target.name, f"another process downloads {dataset_id}: waiting"):
        if not is_file(target):
            pin = _pin(dataset_id, storage)
            length = pin.bytes if pin else None
            wanted = Wanted(dataset_id, target, length, sha256, SIGNATURE)
            address = fetch(wanted, addresses(dataset_id), progress=progress, patience=PATIENCE)
            if pin is None:
                try:
                    _record(dataset_id, storage, target, address)
                except UserError:  # not what its address promised: the next command asks again
                    target.unlink(missing_ok=True)
                    raise
    return target


def _put_it_there(dataset_id: str, storage: Storage) -> str:
    """What to do by hand where nothing may be downloaded."""
    entry, pin = _entry(dataset_id), _pin(dataset_id, storage)
    known = f" ({pin.bytes:,} bytes, SHA-256 {pin.sha256[:12]}...)" if pin else ""
    return (
        f"{dataset_id} needs {entry.file}{known}, and ORCHESTRATOR_OFFLINE forbids to download "
        f"it: put it into {cache_folder(storage)}, from {addresses(dataset_id)[0]}"
    )


# --- the lock file: what is known of files that the catalogue does not pin

_PINS = TypeAdapter(dict[str, Pin])


def lock_file(storage: Storage) -> Path:
    return cache_folder(storage) / LOCK_FILE


def _pin(dataset_id: str, storage: Storage) -> Pin | None:
    """What the file has to be, by the catalogue or the lock file, if either says."""
    entry = _entry(dataset_id)
    if entry.bytes is not None and entry.sha256 is not None:
        return Pin(bytes=entry.bytes, sha256=entry.sha256)
    return _recorded(storage).get(dataset_id)


def _recorded(storage: Storage) -> dict[str, Pin]:
    path = lock_file(storage)
    if not is_file(path):
        return {}
    try:
        return _PINS.validate_json(path.read_bytes())
    except ValidationError:
        raise UserError(
            f"{path} is not a lock file of data sets: restore it, or delete it to record them anew"
        ) from None


def _first_pin(dataset_id: str, storage: Storage) -> Pin:
    """Record the first file that is found, or downloaded.

    Raises:
        UserError: there is none, and none can be downloaded, or it is not in D4RL's layout.
    """
    paths = present(dataset_id, storage)
    if not paths and not is_offline():
        _say(f"{dataset_id}: nothing is known of its content yet, so it is downloaded now")
    path = paths[0] if paths else _obtain(dataset_id, storage, None, sha256=None)
    pin = _pin(dataset_id, storage)
    if pin is not None:
        return pin
    try:
        return _record(dataset_id, storage, path, None)
    except UserError as error:
        raise UserError(f"{error}: delete {path}, and it is downloaded") from None


def _record(dataset_id: str, storage: Storage, path: Path, address: str | None) -> Pin:
    """Enter a file into the lock file, unless there is an entry; returns the entry.

    Raises:
        UserError: it cannot be read as data of its environment.
    """
    env_id = _entry(dataset_id).env_id
    columns = [column._replace(where=dataset_id) for column in read_files([path])]
    understood = understand(columns, ENVIRONMENTS[env_id], env_id)
    file = DataFile(path=str(path), sha256=_file_sha256(path))
    evidence = Evidence(understood.data, columns, understood.derived, env_id)
    pin = Pin(
        bytes=path.stat().st_size,
        sha256=file.sha256,
        url=address,
        content=content_hash([file], understood, ENVIRONMENTS[env_id], None),
        notes=understood.notes,
        warnings=warnings_of(dataset_id, evidence),
    )
    folder = cache_folder(storage)
    with _alone(folder, LOCK_FILE, f"another process writes {folder / LOCK_FILE}: waiting"):
        recorded = _recorded(storage)
        pin = recorded.setdefault(dataset_id, pin)
        rows = {name: row.model_dump(mode="json") for name, row in recorded.items()}
        content = json.dumps(rows, indent=1, sort_keys=True) + "\n"
        Storage(folder).put(LOCK_FILE, content.encode())
    return pin


def _by(dataset_id: str, storage: Storage) -> str:
    """Where a pin that is not the catalogue's is from, for messages."""
    return "" if _entry(dataset_id).sha256 else f" in {lock_file(storage)}"


@contextmanager
def _alone(folder: Path, name: str, otherwise: str) -> Iterator[None]:
    """Hold a name in a folder; says `otherwise` where that takes waiting."""
    store = Storage(folder)
    with ExitStack() as held:
        try:
            try:
                held.enter_context(store.lease(name, wait=False))
            except HeldError:
                _say(otherwise)
                held.enter_context(store.lease(name))
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}): name another folder in "
                "ORCHESTRATOR_DATA"
            ) from None
        yield


def _say(line: str) -> None:
    Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


def _file_sha256(path: Path) -> str:
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001 - they tell versions apart
    """Once per process: half a second for the largest file."""
    return file_sha256(path)
