"""The settings of GitHub, pre-commit and pip. Nothing here runs them; mistakes would only show after a push."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
PRE_COMMIT = ROOT / ".pre-commit-config.yaml"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
SETTINGS = [*sorted(GITHUB.rglob("*.yml")), PRE_COMMIT]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def every(key: str, tree: Any) -> Iterator[Any]:
    """The values of this key, wherever it stands."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from every(key, value)
    elif isinstance(tree, list):
        for value in tree:
            yield from every(key, value)


def triggers(workflow: dict[Any, Any]) -> dict[str, Any]:
    """What starts the workflow, with its settings. YAML 1.1 reads the key ``on`` as true."""
    return {name: settings or {} for name, settings in workflow[True].items()}


@pytest.mark.parametrize("path", SETTINGS, ids=name_of)
def test_the_file_is_yaml_with_something_in_it(path: Path) -> None:
    assert isinstance(parsed(path), dict)


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_a_workflow_says_when_it_runs_what_and_what_it_may(path: Path) -> None:
    workflow = parsed(path)
    assert triggers(workflow)
    assert workflow["permissions"] == {"contents": "read"}
    # Called workflows have the limits of their own file, and must not share a group with the one that calls them.
    assert workflow["concurrency"]["group"] == f"{path.stem}-${{{{ github.ref }}}}"
    for job in workflow["jobs"].values():
        assert ("uses" in job) != ("steps" in job)
        assert ("timeout-minutes" in job) == ("steps" in job)
        needed = job.get("needs", [])
        needed = [needed] if isinstance(needed, str) else needed
        assert set(needed) <= set(workflow["jobs"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_actions_are_here_or_pinned_by_a_commit(path: Path) -> None:
    """Who can move a tag could change what runs with the rights of this repository. The comment names the version."""
    uses = list(every("uses", parsed(path)))
    assert uses
    for used in uses:
        if used.startswith("./"):
            assert (ROOT / used).is_file(), used
        else:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", used), used
            line = next(x for x in path.read_text(encoding="utf-8").splitlines() if used in x)
            assert re.search(r" # v\d+\.\d+\.\d+$", line), line


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_files_that_a_workflow_names_exist(path: Path) -> None:
    workflow = parsed(path)
    for pattern in [x for found in every("paths", triggers(workflow)) for x in found]:
        assert any(ROOT.glob(pattern)), pattern
    for command in every("run", workflow):
        for file in re.findall(r"(?<![\w./-])[\w.-]+/[\w./-]+\.(?:py|md|txt|toml)\b", command):
            assert (ROOT / file).is_file(), file


def test_actions_are_kept_current() -> None:
    (update,) = parsed(GITHUB / "dependabot.yml")["updates"]
    assert (update["package-ecosystem"], update["directory"]) == ("github-actions", "/")


def test_tests_and_hooks_are_run_as_the_pages_say() -> None:
    """The commands of the README and of CONTRIBUTING.md."""
    commands = {path.stem: " ".join(every("run", parsed(path))) for path in WORKFLOWS}
    assert "python -m pytest -m slow -n 2" in (GITHUB / "CONTRIBUTING.md").read_text("utf-8")
    assert "python -m pytest -m slow -n 2" in commands["slow"]
    assert "pre-commit run --all-files" in commands["tests"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"<!-- test command -->\s*```bash\n(.*)\n", readme)
    for part in line.split(" && ")[:-1]:  # CI has more processors for the tests themselves
        assert part in commands["tests"]


def test_every_hook_that_names_files_finds_some() -> None:
    files = [name_of(path) for path in (ROOT / "neuralil_ase").rglob("*")]
    for hook in every("hooks", parsed(PRE_COMMIT)):
        for pattern in every("files", hook):
            assert any(re.search(pattern, file) for file in files), pattern


def test_the_hook_and_the_package_want_the_same_ruff() -> None:
    """Otherwise the hook changes what the test command then complains of."""
    (pinned,) = (
        repo["rev"].removeprefix("v")
        for repo in parsed(PRE_COMMIT)["repos"]
        if "ruff" in repo["repo"]
    )
    bounds = re.search(r'"ruff>=([\d.]+),<([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert bounds
    lowest, above = map(numbers, bounds.groups())
    assert lowest <= numbers(pinned) < above
    assert lowest[:2] == numbers(pinned)[:2]  # minor versions differ in what they want


def test_the_lowest_versions_are_the_bounds_of_the_package() -> None:
    """And so the lower bounds are tested."""
    bounds = dict(
        re.findall(r'"([\w-]+)>=([\d.]+)', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    )
    text = (GITHUB / "constraints-lowest.txt").read_text(encoding="utf-8")
    lowest = dict(re.findall(r"^([\w-]+)==([\d.]+)", text, re.MULTILINE))
    assert set(lowest) - set(bounds) == {"jaxlib", "pyparsing"}  # which others bring
    for name in set(lowest) & set(bounds):
        assert numbers(lowest[name]) == numbers(bounds[name]), name


def test_all_is_every_extra_but_the_tools() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    names = re.fullmatch(r"neuralil-ase\[(.*)\]", everything)
    assert names
    assert set(names[1].split(",")) == set(extras) - {"test", "all"}


def numbers(version: str) -> list[int]:
    """6.100 and 6.100.0 are the same."""
    found = [int(part) for part in version.split(".")]
    return found + [0] * (3 - len(found))
