"""The tests on the lowest versions that pyproject.toml allows, and on the newest: ``nox -s lowest newest``.

On the interpreter that runs nox; the workflow in ``.github/`` has the other Pythons.
"""

from __future__ import annotations

import re

import nox

nox.options.sessions = ["lowest", "newest"]


def _requirements() -> list[str]:
    project = nox.project.load_toml("pyproject.toml")["project"]
    tools = [r for r in project["optional-dependencies"]["test"] if not r.startswith(("ruff", "mypy"))]
    return [*project["dependencies"], *tools]


def _test(session: nox.Session, requirements: list[str]) -> None:
    session.install(*requirements)
    session.install("--no-deps", "-e", ".")
    session.run("python", "-m", "pip", "list", "--format=freeze")
    session.run("python", "-m", "pytest", *session.posargs, env={"PYTHONPATH": ""})


@nox.session
def lowest(session: nox.Session) -> None:
    """Every dependency of ours at its lower bound; what they depend on is pip's choice."""
    _test(session, [re.sub(r">=", "==", requirement) for requirement in _requirements()])


@nox.session
def newest(session: nox.Session) -> None:
    """Every dependency at its newest release."""
    _test(session, ["--upgrade", *_requirements()])
