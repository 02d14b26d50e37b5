"""Which result is exported, and where to."""

from pathlib import Path

import pytest
import torch

from algorithms.errors import UserError
from algorithms.storage import Storage
from orchestrator import export
from orchestrator.results import ResultStore


@pytest.fixture
def exported(storage, monkeypatch):
    """Export without a checkpoint's content: the policy is a stand-in."""
    from algorithms.sac.policy import DeterministicPolicy, Policy

    policy = Policy([torch.zeros(3, 8), torch.zeros(8, 4)], [torch.zeros(1, 8), torch.zeros(1, 4)])
    monkeypatch.setattr(export, "read_policy", lambda result: DeterministicPolicy(policy))
    return lambda cell, seed=0, out=None: export.export_policy(cell, seed, out, Storage(storage))


def test_a_folder_takes_the_file_under_its_default_name(
    exported, finish, expand, quickstart, tmp_path, monkeypatch
):
    cell, _ = expand(quickstart)
    finish(cell, 0)
    path, _ = exported(cell.name, out=tmp_path)
    assert path == tmp_path / f"{cell.name}-seed0.pt2"
    assert path.stat().st_size > 0
    monkeypatch.chdir(tmp_path)
    assert exported(cell.name)[0] == Path(path.name)


@pytest.mark.parametrize("out", ["/proc/policy.pt2", "/proc"])
def test_what_cannot_be_written_is_one_sentence(exported, finish, expand, quickstart, out):
    cell, _ = expand(quickstart)
    finish(cell, 0)
    with pytest.raises(UserError, match=r"/proc.* cannot be written: ") as error:
        exported(cell.name, out=Path(out))
    assert "\n" not in str(error.value)


def test_a_shared_result_is_found_by_every_name(
    exported, finish, expand, comparison, storage, tmp_path, monkeypatch
):
    """MBPO, and MOPO without a penalty, are one training."""
    monkeypatch.chdir(tmp_path)
    comparison["variants"] = {"mbpo": {"algorithm": "mbpo"}, "plain": {"penalty": "none"}}
    mbpo, plain = expand(comparison | {"algorithm": "mopo"})
    finish(mbpo, 0)
    store = ResultStore(Storage(storage))
    store.add_name(plain.result_key(0), plain.name)
    assert exported(mbpo.name)[1] == exported(plain.name)[1]
    # Another sweep trains it further, under a name of its own.
    renamed = store.get(mbpo.result_key(0)).model_copy(
        update={"cell": "other", "other_names": (), "epochs": 5000}
    )
    store.put(renamed)
    assert {exported(name)[1].epochs for name in ("other", mbpo.name, plain.name)} == {5000}


def test_a_result_of_version_0_1_is_read(storage, finish, expand, quickstart):
    cell, _ = expand(quickstart)
    result = finish(cell, 0)
    path = storage / "results" / f"{result.key}.json"
    old = path.read_text().replace('"cell"', '"trial"').replace('"position"', '"index"')
    assert '"index": 0' in old
    path.write_text(old)
    assert ResultStore(Storage(storage)).get(result.key) == result
