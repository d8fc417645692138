"""What runs on GitHub, and before a commit, names only things that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
FORMS = sorted(set(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml")) - {ROOT / ".github/ISSUE_TEMPLATE/config.yml"})
FIELDS = {"markdown", "input", "textarea", "dropdown", "checkboxes"}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in read(workflow)["jobs"].values() for step in job["steps"]]


def targets() -> set[str]:
    """Targets of the Makefile that a person may name."""
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_workflow_has_the_jobs_that_are_promised() -> None:
    (workflow,) = WORKFLOWS
    jobs = read(workflow)["jobs"]
    assert jobs.keys() == {"all", "core", "docs"}
    assert jobs["core"]["strategy"]["matrix"]["python"] == ["3.12", "3.13"]
    ran = [step["run"] for name in ("all", "docs") for step in jobs[name]["steps"] if "run" in step]
    assert ran == ["make test", "make docs"]
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(f"$(BIN)/{check}" in recipe for check in ("ruff check", "ruff format --check", "mypy"))
    # `on` is a boolean in YAML 1.1.
    assert read(workflow)[True].keys() == {"push", "pull_request"}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_make_target_and_file_of_a_workflow_exists(workflow: Path) -> None:
    for step in steps(workflow):
        for words in re.findall(r"\bmake((?: [a-z][\w-]*)+)", step.get("run", "")):
            assert set(words.split()) <= targets(), step["run"]
        named = re.findall(r"\btests/[\w/]+\.py", step.get("run", ""))
        named += [path for key, path in step.get("with", {}).items() if key == "cache-dependency-path"]
        assert all((ROOT / path).is_file() for path in named), named


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_have_an_exact_version_and_jobs_a_limit(workflow: Path) -> None:
    content = read(workflow)
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used and all(re.fullmatch(r"[\w-]+/[\w/-]+@(v\d+\.\d+\.\d+|[0-9a-f]{40})", action) for action in used), used
    assert content["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] and not job["runs-on"].endswith("latest") for job in content["jobs"].values())


def test_pythons_are_those_the_project_is_for() -> None:
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    given = [step["with"]["python-version"] for step in steps(WORKFLOWS[0]) if "setup-python" in step.get("uses", "")]
    # As text: the number 3.10 is 3.1.
    assert given == ["${{ matrix.python }}", "${{ matrix.python }}", oldest.removeprefix(">=")]
    jobs = read(WORKFLOWS[0])["jobs"]
    assert jobs["all"]["strategy"]["matrix"]["python"] == [oldest.removeprefix(">="), "3.13"]
    # The runner has other Pythons, of which make would take the newest.
    assert jobs["all"]["env"]["PYTHON"] == "python${{ matrix.python }}"


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_issue_forms_have_what_github_asks_for(form: Path) -> None:
    content = read(form)
    assert content["name"] and content["description"]
    asked = [field for field in content["body"] if field["type"] != "markdown"]
    assert asked and all(field["type"] in FIELDS and field["attributes"]["label"] for field in content["body"])
    names = [field["id"] for field in asked]
    assert len(names) == len(set(names)) and any(field.get("validations", {}).get("required") for field in asked)


def test_files_named_by_forms_exist() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (*FORMS, ROOT / ".github/pull_request_template.md")]
    for text in [*texts, (ROOT / "SECURITY.md").read_text(encoding="utf-8")]:
        for path in re.findall(r"\b(?:docs|tests|lorarar)/[\w/.-]*\w", text):
            assert (ROOT / path).exists(), path
        for target in re.findall(r"`make ([\w-]+)`", text):
            assert target in targets()
    assert "## Test plan" in texts[-1]


def test_hooks_before_a_commit_are_pinned_and_are_those_of_make_test() -> None:
    published, local = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert re.fullmatch(r"v\d+\.\d+\.\d+", published["rev"])
    assert {"check-yaml", "check-added-large-files"} <= {hook["id"] for hook in published["hooks"]}
    entries = {hook["id"]: hook["entry"] for hook in local["hooks"]}
    assert entries["ruff"].startswith(".venv/bin/ruff check")
    assert entries["ruff-format"].startswith(".venv/bin/ruff format")
    assert entries["mypy"] == ".venv/bin/mypy"


def test_the_changelog_knows_the_present_version() -> None:
    from lorarar import __version__ as version

    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)
    assert headings[:2] == ["Unreleased", version]
    kinds = re.findall(r"^### (.+)", text, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
