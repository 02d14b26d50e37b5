"""`orchestrator data ...`, and what a sweep says of its data."""

import h5py
import numpy as np
import pytest
import yaml

from algorithms.data.source import load as load_data
from algorithms.data.source import resolve
from algorithms.errors import UserError
from algorithms.storage import Storage
from orchestrator.cli import main
from orchestrator.plan import make_plan
from orchestrator.sweep.cell import cells_of
from orchestrator.sweep.model import load_sweep


@pytest.fixture
def command(storage):
    return lambda *arguments: main(["--storage", str(storage), *map(str, arguments)])


def test_show_describes_and_draws_a_data_set(command, hopper_file, tmp_path, capsys):
    picture = tmp_path / "picture.png"
    path = hopper_file()
    assert command("data", "show", f"file:{path}", "--env", "Hopper-v4", "--picture", picture) == 0
    text = capsys.readouterr().out
    assert "300" in text
    with h5py.File(path) as file:
        ends = file["terminals"][()] | file["timeouts"][()]
        mean = file["rewards"][()].sum() / ends.sum()
        by_task = file["terminals"][()].sum() / ends.sum()
    assert f"{ends.sum()} complete, {300 / ends.sum():.0f} steps on average" in text
    assert f"{by_task:.1%} by the task" in text
    assert f"{mean:.1f} on average" in text
    assert f"{100 * (mean + 20.272305) / (3234.3 + 20.272305):.1f} on average" in text
    assert "no check has anything to say" in text
    assert resolve(f"file:{path}", env="Hopper-v4").content_hash[:12] in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_show_warns(command, hopper_file, capsys):
    path = hopper_file()
    with h5py.File(path, "a") as file:
        file["actions"][:, 1] = 0.5
    assert command("data", "show", f"file:{path}", "--env", "Hopper-v4") == 2
    assert "contradicts" in capsys.readouterr().err
    allowed = ("--allow", "physics")
    assert command("data", "show", f"file:{path}", "--env", "Hopper-v4", *allowed) == 0
    assert "warning: " in (text := " ".join(capsys.readouterr().out.split()))
    assert "actions never change in dimension 1" in text


def test_list_shows_the_catalogue(command, capsys):
    assert command("data", "list") == 0
    text = capsys.readouterr().out
    for word in ("bundled/hopper-medium-replay", "d4rl/walker2d-medium-v2", "Walker2d-v4"):
        assert word in text


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("out", ["converted.hdf5", "minari/mine/hopper-v0"])
def test_convert_writes_what_reads_back(command, hopper_file, tmp_path, monkeypatch, storage, out):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    original = f"file:{hopper_file()}"
    assert command("data", "convert", original, out, "--env", "Hopper-v4") == 0
    converted = out if out.startswith("minari/") else f"file:{tmp_path / out}"
    before, after = (
        load_data(resolve(dataset, env="Hopper-v4"), Storage(storage))
        for dataset in (original, converted)
    )
    for name in ("obs", "action", "reward", "next_obs", "terminal"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    # Nothing is overwritten.
    assert command("data", "convert", original, out, "--env", "Hopper-v4") == 2


def test_collect_writes_what_verify_confirms(command, tmp_path, capsys):
    out = tmp_path / "new" / "collected.hdf5"
    arguments = ("hopper/medium", out, "--size", 500, "--processes", 1, "--seed", 3)
    assert command("data", "collect", *arguments) == 0
    assert "500 transitions of Hopper-v4" in capsys.readouterr().out
    assert command("data", "verify", f"file:{out}") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "states from infos/qpos and infos/qvel" in text
    assert "agrees to rounding" in text
    assert command("data", "collect", *arguments) == 2
    assert "is there already" in capsys.readouterr().err


def test_verify_finds_shifted_rows_and_says_so_with_its_exit_code(command, hopper_file, capsys):
    path = hopper_file()
    assert command("data", "verify", f"file:{path}", "--env", "Hopper-v4") == 0
    with h5py.File(path, "a") as file:
        file["next_observations"][:] = np.roll(file["next_observations"][()], 1, axis=0)
    capsys.readouterr()
    assert command("data", "verify", f"file:{path}", "--env", "Hopper-v4") == 1
    assert "contradicts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("convert", "file:x", "minari/x"), "an id such as mine/hopper-v0"),
        (("convert", "file:x", "minari/"), "an id such as mine/hopper-v0"),
        (("collect", "hopper/medium", f"{300 * 'x'}.hdf5"), "File name too long"),
        (("collect", "hopper/medium", "x.txt"), "ends in .hdf5"),
        (("collect", "hopper/best", "x.hdf5"), "unknown policy"),
        (("verify", "file:nothing.hdf5"), "no file"),
        (("fetch", "bundled/nothing"), "unknown data set"),
    ],
)
def test_mistakes_are_told_before_any_work(command, capsys, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("data", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# --- in a sweep


@pytest.fixture
def sweep_of(tmp_path, quickstart):
    """A sweep file in a folder of its own, on one entry of data."""

    def write(entry):
        folder = tmp_path / "sweeps"
        folder.mkdir(exist_ok=True)
        path = folder / "mine.yaml"
        path.write_text(yaml.safe_dump(quickstart | {"datasets": [entry]}))
        return path

    return write


def test_relative_paths_begin_at_the_sweep(sweep_of, hopper_file, tmp_path, monkeypatch):
    path = hopper_file("sweeps/data/a.hdf5")
    monkeypatch.chdir("/")
    for entry in ("file:data/a.hdf5", ["file:data/a.hdf5"], "file:data/*.hdf5"):
        sweep = load_sweep(sweep_of({"id": entry, "env": "Hopper-v4"}))
        assert str(path) == cells_of(sweep)[0].dataset.files[0].path


def test_a_list_of_files_is_one_data_set(sweep_of, hopper_file):
    paths = [hopper_file(f"sweeps/{name}.hdf5", seed=seed) for seed, name in enumerate("ab")]
    entry = {"id": ["file:a.hdf5", "file:b.hdf5"], "env": "Hopper-v4"}
    (dataset,) = {cell.dataset for cell in cells_of(load_sweep(sweep_of(entry)))}
    assert dataset.size == 600
    assert [file.path for file in dataset.files] == list(map(str, paths))
    assert dataset.slug == "a-and-1-more"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"id": []}, "at least one file: path"),
        ({"id": ["bundled/hopper-medium"]}, "lists file: paths only"),
        ({"id": "file:a.hdf5", "allow": ["x"]}, "unknown check in allow 'x': one of action_range"),
        ({"id": "file:a.hdf5", "actions": "cut"}, "actions"),
        ({"id": "bundled/hopper-medium", "allow": ["returns"]}, "data of one's own only"),
        ({"id": "bundled/hopper-medium", "actions": "clip"}, "data of one's own only"),
    ],
)
def test_mistakes_in_an_entry(sweep_of, entry, said):
    with pytest.raises(UserError, match=r"datasets\[0\]|datasets.0") as error:
        cells_of(load_sweep(sweep_of(entry)))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_was_done_to_the_data_stands_in_the_plan_and_below_the_table(
    sweep_of, hopper_file, storage, finish, capsys, command
):
    path = hopper_file("sweeps/a.hdf5")
    with h5py.File(path, "a") as file:
        del file["next_observations"]
        file["actions"][0] = 3
    entry = {"id": "file:a.hdf5", "env": "Hopper-v4", "allow": ["action_range", "physics"]}
    sweep_file = sweep_of(entry)
    sweep = load_sweep(sweep_file)
    told = make_plan(sweep, cells_of(sweep), Storage(storage)).to_json()["data"]
    assert any("has no next_observations: derived" in line for line in told)
    assert any("action_range is allowed: actions lie outside" in line for line in told)
    for cell in cells_of(sweep):
        finish(cell, 0)
    capsys.readouterr()
    assert command("report", sweep_file) == 0
    table = " ".join(capsys.readouterr().out.split())
    content = cells_of(sweep)[0].dataset.content_hash[:12]
    for words in (f"content {content}", "has no next_observations", "action_range is allowed"):
        assert words in table
