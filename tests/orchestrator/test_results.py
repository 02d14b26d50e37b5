import shutil
import threading
from pathlib import Path

import pytest

from algorithms.errors import UserError
from algorithms.storage import Storage
from orchestrator.results import ResultStore


@pytest.fixture
def result(quickstart, expand, finish):
    trial, _ = expand(quickstart)
    return finish(trial, 1, position=1)


def test_what_is_put_is_got(result, storage):
    assert ResultStore(Storage(storage)).get(result.key) == result


def test_an_unknown_key_is_none_and_reading_creates_nothing(storage):
    assert ResultStore(Storage(storage)).get("0" * 16) is None
    assert ResultStore(Storage(storage)).all() == []
    assert not storage.exists()


def test_a_later_result_replaces_an_earlier(result, storage):
    store = ResultStore(Storage(storage))
    later = result.model_copy(update={"epochs": 9, "run_score": None})
    store.put(later)
    assert store.all() == [later]


def test_a_reader_never_sees_half_a_result(result, storage):
    store = ResultStore(Storage(storage))
    versions = [result.model_copy(update={"trial": str(i) * 5000}) for i in range(10)]
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for version in versions:
                store.put(version)

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        read = [store.get(result.key) for _ in range(200)]
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert all(seen in (result, *versions) for seen in read)
    assert [path.name for path in (storage / "results").iterdir()] == [f"{result.key}.json"]


@pytest.mark.parametrize("text", ["", "{}", '{"key": "x", "a field of a later version": 1}'])
def test_an_unreadable_result_is_named(result, storage, text):
    (storage / "results" / f"{result.key}.json").write_text(text)
    with pytest.raises(UserError, match=rf"{result.key}\.json .*delete it"):
        ResultStore(Storage(storage)).get(result.key)


def test_a_training_that_lags_behind_does_not_undo_what_is_there(result, storage):
    store = ResultStore(Storage(storage))
    store.put(result.model_copy(update={"epochs": 1, "run_score": 0.0, "status": "running"}))
    assert store.get(result.key) == result


def test_a_lost_training_is_replaced_by_the_one_that_starts_anew(
    quickstart, expand, finish, storage
):
    trial, _ = expand(quickstart)
    lost = finish(trial, 0, epochs=3)
    shutil.rmtree(lost.checkpoint)
    anew = finish(trial, 0, epochs=1, checkpoint="anew")
    assert ResultStore(Storage(storage)).get(lost.key) == anew


def test_scores_of_finished_trainings_are_kept_by_their_epochs(result, storage):
    store = ResultStore(Storage(storage))
    store.put(result.model_copy(update={"finished_scores": {5: 10.0}}))
    store.put(result.model_copy(update={"epochs": 8, "finished_scores": {8: 20.0}}))
    assert store.get(result.key).finished_scores == {5: 10.0, 8: 20.0}


def test_a_storage_may_be_moved(result, storage, tmp_path):
    moved = storage.rename(tmp_path / "moved")
    checkpoint = ResultStore(Storage(moved)).get(result.key).existing_checkpoint
    assert checkpoint == str(moved / Path(result.checkpoint).relative_to(storage))
