"""The source distribution and the wheel: what is in them, and that the wheel works by itself."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

pytestmark = pytest.mark.slow


def run(*command, cwd, path=""):
    """Output of a command that sees only what `path` holds, and the environment's libraries."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    environment |= {"PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The files of the project that git would commit, or all of an unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sources") / "project"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        shutil.copytree(ROOT, folder, symlinks=True)
        return folder
    for name in listed.stdout.splitlines():
        if not (ROOT / name).exists():
            continue  # deleted, not yet committed
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def build(kind, sources, out):
    """One distribution, made offline with the setuptools at hand, and what the build said."""
    code = f"import sys; from setuptools import build_meta as b; b.build_{kind}(sys.argv[1])"
    said = run(sys.executable, "-W", "always", "-c", code, out, cwd=sources)
    (built,) = out.iterdir()
    return built, said


@pytest.fixture(scope="module")
def source_distribution(sources, tmp_path_factory):
    built, said = build("sdist", sources, tmp_path_factory.mktemp("sdist"))
    assert "Deprecat" not in said
    assert " found matching " not in said  # warns of what MANIFEST.in names and is not there
    return built


@pytest.fixture(scope="module")
def unpacked(source_distribution, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    # Its own work, so nothing to guard against; `filter` came with Python 3.11.4.
    shutil.unpack_archive(source_distribution, folder)
    (project,) = folder.iterdir()
    return project


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory):
    """As an installer makes it that finds no wheel: from the source distribution."""
    built, said = build("wheel", unpacked, tmp_path_factory.mktemp("wheel"))
    assert "Deprecat" not in said
    assert "importable" not in said  # setuptools, of data folders that look like packages
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("installed") / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    run(*install, "--target", target, wheel, cwd=target.parent)
    return target


def files_below(folder, *parts):
    return {
        str(path.relative_to(folder))
        for part in parts
        for path in (folder / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_source_distribution_holds_what_a_packager_needs(unpacked, sources):
    parts = ["tests", "sweeps", "docs", "algorithms", "orchestrator"]
    assert files_below(sources, *parts) <= files_below(unpacked, *parts)
    for name in ["CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile",
                 "README.md", "constraints.txt", "pyproject.toml", ".ci/run"]:  # fmt: skip
        assert (unpacked / name).read_bytes() == (sources / name).read_bytes()


def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel, sources):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        told = archive.read(metadata).decode()
    examples = {f"orchestrator/examples/{path.name}" for path in (sources / "sweeps").iterdir()}
    assert names == files_below(sources, "algorithms", "orchestrator") | examples
    assert {"algorithms/py.typed", "orchestrator/py.typed"} <= names
    assert "License-Expression: Apache-2.0" in told
    assert "License-File: LICENSE" in told


def test_the_installed_wheel_prints_its_examples_and_its_version(installed, sources, tmp_path):
    command = [sys.executable, "-m", "orchestrator"]
    printed = run(*command, "example", "quickstart", cwd=tmp_path, path=installed)
    about_the_schema, _, sweep = printed.partition("\n")
    assert "orchestrator schema" in about_the_schema
    assert sweep == (sources / "sweeps" / "quickstart.yaml").read_text(encoding="utf-8")
    version = run(*command, "--version", cwd=tmp_path, path=installed)
    assert f'version = "{version.strip()}"\n' in PYPROJECT


def test_the_installed_wheel_finds_the_policies_of_its_data(installed, tmp_path):
    code = (
        "import algorithms; print(algorithms.__file__)\n"
        "from algorithms.data.source import resolve\n"
        "from algorithms.data.bundled.recipe import policies_folder\n"
        "recipe = resolve('bundled/hopper-medium-replay').recipe\n"
        "folder = policies_folder(recipe.policies)\n"
        "for part in recipe.parts: print((folder / f'{part.level}.safetensors').is_file())"
    )
    where, *found = run(sys.executable, "-c", code, cwd=tmp_path, path=installed).splitlines()
    assert Path(where).is_relative_to(installed)
    assert len(found) > 1
    assert set(found) == {"True"}
