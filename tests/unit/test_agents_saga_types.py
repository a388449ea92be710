"""What the type checker finds in a saga of the typed builder: each line that is marked, and no other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .test_docs import typed_example

HERE = Path(__file__).resolve().parent
SAGAS = HERE / "typed_sagas.py"
LINES = SAGAS.read_text().splitlines()


def checked(file: Path) -> list[tuple[int, str, str]]:
    """mypy's messages about a file: line, severity, text. With the settings and the cache of the project."""
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--hide-error-context",
            "--no-pretty",
            "--disable-error-code=empty-body",
            str(file),
        ],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = [re.fullmatch(r".*?:(\d+): (error|note): (.*)", line) for line in ended.stdout.splitlines()]
    assert ended.stderr == ""
    return [(int(match[1]), match[2], match[3]) for match in found if match]


@pytest.fixture(scope="module")
def said() -> list[tuple[int, str, str]]:
    return checked(SAGAS)


def test_every_wrong_line_is_refused_and_no_other(said: list[tuple[int, str, str]]) -> None:
    marked = {number for number, line in enumerate(LINES, 1) if line.endswith("# refused")}

    assert len(marked) > 20
    assert {line for line, severity, _ in said if severity == "error"} == marked


def test_what_a_step_gives_has_its_agents_type(said: list[tuple[int, str, str]]) -> None:
    revealed = {line: text for line, _, text in said if text.startswith("Revealed type is ")}
    wanted = {number: line.partition("# is ")[2] for number, line in enumerate(LINES, 1) if "# is " in line}

    assert {line: re.sub(r'Revealed type is "|"$|\w+\.(?=\w)', "", text) for line, text in revealed.items()} == wanted


def test_the_example_in_the_docs_is_right_and_a_mistake_in_it_is_found(tmp_path: Path) -> None:
    example = typed_example()
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(example)
    wrong.write_text(example.replace("payment=charged.output.number", "payment=charged.output"))

    assert checked(right) == []
    assert [severity for _, severity, _ in checked(wrong) if severity == "error"] == ["error"]
