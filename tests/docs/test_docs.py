"""README and docs: every code block is run, or says why not, and every link leads somewhere.

Code blocks have a language. `sh` and `python` are run in the order of the page, in a folder of its
own that has the project's sweeps and a storage with stand-ins for what they would train; a block
that begins with `# name.py` or `# name.yaml` is that file of the folder. `yaml` is validated as a
sweep, or as a part of one. `text` is shown, not run. A block that is not run has a comment above:

    <!-- not run: REASON -->
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
import yaml
from typer.exceptions import TyperException

from algorithms.data.dataset import arrays_sha256
from algorithms.data.source import resolve
from algorithms.storage import Storage
from orchestrator.cli import app
from orchestrator.results import ResultStore, SeedResult
from orchestrator.sweep.cell import cells_of
from orchestrator.sweep.model import load_sweep

REPOSITORY = Path(__file__).parents[2]
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
LINKED = [*PAGES, REPOSITORY / "CHANGELOG.md", REPOSITORY / "tests" / "benchmarks" / "README.md"]
RUN, SHOWN = ("sh", "python", "yaml"), ("text",)

FENCE = re.compile(r"```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXCUSE = re.compile(r"<!-- not run: (\S.*?) -->\n\Z", re.DOTALL)
FILE = re.compile(r"# (\w+\.(?:py|yaml))\n")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# Where names of the project's files begin. A word with a dot in it, or a folder, is one.
PATH = re.compile(r"`((?:algorithms|orchestrator|sweeps|tests|docs)/[\w./*-]*)`")


class Block(NamedTuple):
    """A code block of a page."""

    language: str
    text: str
    line: int
    excuse: str | None


def blocks_of(page: Path) -> list[Block]:
    content = page.read_text()
    found = []
    for fence in FENCE.finditer(content):
        above = content[: fence.start()]
        excuse = EXCUSE.search(above)
        found.append(Block(*fence.groups(), above.count("\n") + 1, excuse and excuse[1]))
    return found


def page_id(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


def each_block(*languages: str) -> list:
    return [
        pytest.param(page, block, id=f"{page_id(page)}:{block.line}")
        for page in PAGES
        for block in blocks_of(page)
        if block.language in languages
    ]


# --- what can be seen without running anything


def test_a_stranger_needs_two_screens():
    readme = (REPOSITORY / "README.md").read_text()
    assert len(readme.splitlines()) <= 120
    assert "make demo" in readme
    assert "make test" in readme
    words = " ".join(readme.split())
    first = words.index("ormalised score")
    assert words[first:].startswith("ormalised score* of 0 is that of a policy that acts at random")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_has_a_language_and_only_code_is_excused(page):
    content = page.read_text()
    blocks = blocks_of(page)
    assert content.count("\n```") == 2 * len(blocks), "a block is not closed, or is indented"
    for block in blocks:
        assert block.language in (*RUN, *SHOWN), f"{page.name}:{block.line} has no language"
        if block.language in SHOWN:
            assert block.excuse is None, f"{page.name}:{block.line} would not be run anyway"
    assert content.count("<!-- not run:") == sum(block.excuse is not None for block in blocks)


def test_the_sweep_of_the_readme_is_the_one_that_the_demo_runs():
    (shown,) = [b for b in blocks_of(REPOSITORY / "README.md") if b.language == "yaml"]
    assert yaml.safe_load(shown.text) == yaml.safe_load(
        (REPOSITORY / "sweeps" / "quickstart.yaml").read_text()
    )
    assert "orchestrator run sweeps/quickstart.yaml" in (REPOSITORY / "Makefile").read_text()


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    content = FENCE.sub("", page.read_text())
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower())
        .strip()
        .replace(" ", "-")
        for heading in HEADING.findall(content)
    }


@pytest.mark.parametrize("page", LINKED, ids=page_id)
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(REPOSITORY), f"{page.name}: {target} is outside"
        assert file.exists(), f"{page.name}: {target}: no such file"
        if anchor:
            assert anchor in anchors_of(file), f"{page.name}: {target}: no such heading"


@pytest.mark.parametrize("page", LINKED, ids=page_id)
def test_files_that_are_named_exist(page):
    for path in PATH.findall(page.read_text()):
        assert list(REPOSITORY.glob(path)), f"{page.name}: {path}: no such file"


def test_every_page_can_be_reached_from_the_index_and_the_readme():
    pages = {page.name for page in (REPOSITORY / "docs").glob("*.md")}
    for start in ("README.md", "docs/index.md"):
        targets = LINK.findall((REPOSITORY / start).read_text())
        linked = {Path(target.partition("#")[0]).name for target in targets}
        assert pages - {"index.md"} <= linked, start


def test_a_broken_page_is_refused(tmp_path, monkeypatch):
    """The checks above, on a page in which all of it is wrong."""
    monkeypatch.setattr(f"{__name__}.REPOSITORY", tmp_path)
    page = tmp_path / "README.md"
    page.write_text("# A title\n[a](#b-title) `docs/no.md`\n```\nx\n```\n")
    for check in (
        test_links_lead_to_files_and_headings_that_exist,
        test_files_that_are_named_exist,
        test_every_block_has_a_language_and_only_code_is_excused,
    ):
        with pytest.raises(AssertionError):
            check(page)
    page.write_text("# A title\n[a](#a-title) [b](README.md)\n```text\nx\n```\n")
    test_links_lead_to_files_and_headings_that_exist(page)
    test_every_block_has_a_language_and_only_code_is_excused(page)


# --- code that is not run is at least code


@pytest.mark.parametrize(("page", "block"), each_block("python"))
def test_python_is_python_and_imports_what_is_there(page, block):
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            shown = f"# {name}.py\n" in page.read_text()  # a file of the page
            assert shown or importlib.util.find_spec(name), f"{page.name}:{block.line}: {name}"


COMMANDS = [
    pytest.param(line, id=f"{page_id(page)}:{block.line + 1 + number}")
    for page in PAGES
    for block in blocks_of(page)
    if block.language == "sh"
    for number, line in enumerate(block.text.splitlines())
    if re.search(r"\b(make|orchestrator) ", line.split(" #")[0])
]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist_with_their_options(line):
    """Of blocks that are not run as well."""
    words = shlex.split(line, comments=True)
    words = words[: words.index("|")] if "|" in words else words
    words = words[: words.index(">")] if ">" in words else words
    if words[0] == "make":
        makefile = (REPOSITORY / "Makefile").read_text()
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words[1]
        return
    arguments = words[words.index("orchestrator") + 1 :]
    command = typer.main.get_command(app)
    if not arguments[0].startswith("-"):
        command = command.commands[arguments.pop(0)]
        try:
            command.make_context("orchestrator", arguments)
        except TyperException as error:
            pytest.fail(f"{line}: {error}")
    else:
        assert arguments[0] in {name for option in command.params for name in option.opts}


# --- code that is run


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """What `sweeps/quickstart.yaml` leaves behind, made in a moment: nothing of it has learned."""
    import pandas as pd
    import torch

    from algorithms.data import hdf5
    from algorithms.data.bundled.source import cache_name
    from algorithms.mopo.agent import MOPO
    from algorithms.online.collect import collect
    from algorithms.sac.agent import Context, RewardScale
    from algorithms.sac.networks import SACNetworks
    from algorithms.training import checkpoint as files

    storage = Storage(tmp_path_factory.mktemp("docs") / "outputs")
    data = collect("hopper/medium", None, 300, processes=1).data
    # Under the name of the generated data set, whose arrays are checked against their own hash.
    attributes = {"env": "Hopper-v4", "arrays_sha256": arrays_sha256(data)}
    name = cache_name(resolve("bundled/hopper-medium-replay"))
    storage.put(name, hdf5.encode(data, attributes))
    store = ResultStore(storage)
    for cell in cells_of(load_sweep(REPOSITORY / "sweeps" / "quickstart.yaml")):
        generators = [torch.Generator().manual_seed(seed) for seed in cell.seeds]
        settings = cell.settings.model_copy(update={"real_ratio": 1.0})  # no ensemble
        networks = SACNetworks(11, 3, settings, generators)
        agent = MOPO(Context(networks, settings, RewardScale(1.0, 1.0)))
        folder = f"trials/{cell.name}/checkpoint_000000"
        name = f"{folder}/learner_group/learner/{files.TRAINING_COMPONENT}/{files.TRAINING_FILE}"
        storage.put(name, files.encode(agent.state_dict(), cell.seeds))
        for position, seed in enumerate(cell.seeds):
            key, scores = cell.result_key(seed), [1.0 + seed, 2.0 + seed]
            store.put(
                SeedResult(
                    key=key,
                    cell=cell.name,
                    seed=seed,
                    epochs=cell.settings.epochs,
                    run_score=sum(scores) / 2,
                    behaviour_score=12.9,
                    minutes=1.0,
                    checkpoint=str(storage.path(folder)),
                    position=position,
                    ensemble_key=cell.ensemble(seed).key,
                    status="finished",
                )
            )
            store.put_curve(key, pd.DataFrame({"epoch": [1, 2], "normalized_score": scores}))
    return storage


# Runs the blocks that it is given in one process: Python goes on from the Python before it.
RUNNER = """
import json, pathlib, subprocess, sys, yaml
from orchestrator.sweep.model import load_sweep

names = {"__name__": "__main__"}
for where, language, text, file in json.load(sys.stdin):
    print(f"--- {where}", flush=True)
    if language == "sh":
        if subprocess.run(["bash", "-euo", "pipefail", "-c", text]).returncode:
            sys.exit(f"{where} failed")
    elif language == "yaml":
        path = pathlib.Path(file or "block.yaml")
        path.write_text(text)
        load_sweep(path)
    elif file:  # of a plugin, which is run by the blocks that name it
        pathlib.Path(file).write_text(text)
    else:
        exec(compile(text, where, "exec"), names)
"""
ADDRESSES = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "D4RL_DATASET_DIR")
# A sweep around a block of YAML that is a part of one.
AROUND = {
    "name": "part",
    "algorithm": "mopo",
    "datasets": ["bundled/hopper-medium"],
    "seeds": 1,
}


@pytest.fixture
def run_blocks(storage, tmp_path):
    """Run blocks in a folder of their own, with the storage where `make demo` has it."""
    shutil.copytree(REPOSITORY / "sweeps", tmp_path / "sweeps")
    shutil.copytree(storage.path(""), tmp_path / "outputs")
    environment = {k: v for k, v in os.environ.items() if k not in ADDRESSES}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "ORCHESTRATOR_STORAGE": str(tmp_path / "outputs"),
        "COLUMNS": "120",
    }

    def run_blocks(page: str, blocks: list[Block]) -> subprocess.CompletedProcess[str]:
        given = []
        for block in blocks:
            match = FILE.match(block.text)
            text = block.text
            if block.language == "yaml":
                text = yaml.safe_dump({**AROUND, **yaml.safe_load(text)})
            given.append((f"{page}:{block.line}", block.language, text, match and match[1]))
        return subprocess.run(
            [sys.executable, "-c", RUNNER],
            input=json.dumps(given),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run_blocks


def blocks_to_run(page: Path) -> list[Block]:
    return [b for b in blocks_of(page) if b.language in RUN and b.excuse is None]


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks_to_run(p)], ids=page_id)
def test_the_blocks_of_a_page_run_one_after_the_other(page, run_blocks):
    blocks = blocks_to_run(page)
    done = run_blocks(page_id(page), blocks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if page.name == "README.md":
        check_what_a_stranger_sees(done.stdout)


def check_what_a_stranger_sees(shown: str) -> None:
    """The outputs of the README's commands, and its plugin at work."""
    _, _, commands, _, plugin = shown.split("--- README.md:")
    assert commands.count("penalty=max_std") == 3, commands  # planned, run, reported
    assert commands.count("2.0 +- 0.7") == 4  # two variants, run and reported: the stand-ins'
    assert "penalty=mean_std" in plugin
    assert re.search(r"plugin my_ideas\.py: source \w{12}, part of the keys of 1 cell", plugin)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_a_file_that_a_page_shows_is_used_by_a_later_block(page):
    blocks = blocks_to_run(page)
    for number, block in enumerate(blocks):
        if block.language == "python" and (match := FILE.match(block.text)):
            later = "".join(b.text for b in blocks[number + 1 :])
            assert match[1] in later, f"{page.name}:{block.line}: nobody runs {match[1]}"


def test_the_plugin_of_the_readme_has_six_lines():
    (plugin,) = [b for b in blocks_of(REPOSITORY / "README.md") if b.language == "python"]
    assert len(plugin.text.splitlines()) <= 1 + 6  # the first is the file's name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("works", "fails"),
    [
        (("sh", "true"), ("sh", "false | true")),
        (("python", "x = 1"), ("python", "assert x == 2")),
        (("yaml", "seeds: 2"), ("yaml", "seedz: 2")),
        (("yaml", "plugins: [a.py]"), ("yaml", "plugins: [missing.py]")),
    ],
)
def test_a_block_that_fails_is_seen(run_blocks, works, fails):
    """The runner itself."""
    before = [Block("python", "# a.py\n", 1, None)]
    good, bad = (Block(*block, line, None) for line, block in enumerate((works, fails), start=2))
    done = run_blocks("page", [*before, good, bad])
    assert done.returncode != 0
    assert "--- page:3" in done.stdout
