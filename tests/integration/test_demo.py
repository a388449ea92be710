"""`scripts/demo` as a user calls it: its own documents as JSON, the whole story, arguments that cannot be used, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "scripts" / "demo"
SAMPLES = REPOSITORY / "agents" / "invoices" / "samples"

DOCUMENTS_S_MAX = 180
STORY_S_MAX = 400
"""A later run takes less than a minute on two free cores; tests share theirs."""
KEYS = {"file", "workflow_id", "status", "invoice", "missing", "steps"}


def demo(*arguments: str, directory: Path = REPOSITORY, timeout_s: float) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAGALOG_")}
    return subprocess.run(
        [str(DEMO), *arguments],
        cwd=directory,
        env=environment | {"NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def objects(output: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in output.splitlines()]
    assert all(set(one) == KEYS for one in found)
    return found


@pytest.mark.stack
def test_own_documents_end_posted_or_with_a_person(tmp_path: Path) -> None:
    """Paths are relative to where it is called, and come back as they were given, also twice."""
    directory = tmp_path / "zwei Rechnungen é"
    directory.mkdir()
    for name in ("falcon-office.png", "sakura-instruments.png", "lindental-total-wrong.png"):
        shutil.copy(SAMPLES / name, directory)
    given = [
        "zwei Rechnungen é/falcon-office.png",
        "zwei Rechnungen é/sakura-instruments.png",
        "zwei Rechnungen é/lindental-total-wrong.png",
        "zwei Rechnungen é/falcon-office.png",
        "gone.pdf",
    ]
    ended = demo("--json", "--invoices", *given, directory=tmp_path, timeout_s=DOCUMENTS_S_MAX)
    assert ended.returncode == 0, ended.stderr
    found = objects(ended.stdout)
    assert Counter(one["file"] for one in found) == Counter(given)
    by_file = {Path(one["file"]).name: one for one in found}

    office = [one for one in found if one["file"] == given[0]]
    for one in office:
        assert one["status"] == "completed"
        assert one["invoice"] == {
            "invoice_number": "FO-20817",
            "date": "2024-03-18",
            "currency": "GBP",
            "amount": 635.04,
        }
        assert [step["name"] for step in one["steps"]] == ["read", "validate", "match", "post", "notify"]
        assert {step["status"] for step in one["steps"]} == {"done"}
    assert by_file["sakura-instruments.png"]["invoice"]["amount"] == 143_440

    wrong = by_file["lindental-total-wrong.png"]
    assert wrong["status"] == "review"
    assert wrong["invoice"]["amount"] is None
    assert wrong["invoice"]["invoice_number"] == "2024-00502"
    assert "differs from net" in wrong["steps"][1]["reasons"][0]

    gone = by_file["gone.pdf"]
    assert gone["status"] == "review"
    assert set(gone["invoice"].values()) == {None}
    assert "gone.pdf cannot be opened" in gone["steps"][0]["reasons"][0]


@pytest.mark.stack
def test_the_whole_story_holds() -> None:
    ended = demo("--json", timeout_s=STORY_S_MAX)
    assert ended.returncode == 0, ended.stderr
    found = objects(ended.stdout)
    statuses = Counter(one["status"] for one in found)
    assert statuses == {"completed": 218, "review": 3, "compensated": 1, "degraded": 1}, ended.stderr
    assert "✗" not in ended.stderr
    (undone,) = [one for one in found if one["status"] == "compensated"]
    assert {step["name"]: step.get("undone") for step in undone["steps"] if "undone" in step} == {
        "reserve": "done",
        "post": "done",
    }
    (gap,) = [one for one in found if one["status"] == "degraded"]
    assert [(line["step"], line["stand_in"]) for line in gap["missing"]] == [("match", "default")]


def test_wrong_arguments_are_one_sentence() -> None:
    ended = demo("--invoice-files", timeout_s=30)
    assert ended.returncode == 2
    assert "unrecognized arguments" in ended.stderr
    assert ended.stdout == ""


def test_help_has_examples() -> None:
    ended = demo("--help", timeout_s=30)
    assert ended.returncode == 0
    assert "scripts/demo --invoices" in ended.stdout


@pytest.mark.stack
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAGALOG_")}
    temporary = tmp_path / "t"
    temporary.mkdir(mode=0o755)
    process = subprocess.Popen(
        [str(DEMO)],
        env=environment | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "1/8" in line:
            break
    assert list(temporary.iterdir())
    os.killpg(process.pid, signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(60) == 130, rest
    assert "interrupted" in rest
    assert list(temporary.iterdir()) == []
    assert _processes_with(str(temporary)) == []


def _processes_with(text: str) -> list[str]:
    """Command lines of processes that have it among their arguments, or in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            about = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue  # it has ended, or belongs to somebody else
        if text.encode() in about and process.name != str(os.getpid()):
            found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found
