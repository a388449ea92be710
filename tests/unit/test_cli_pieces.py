"""The pieces of the command line that need no server: what it reads, what it says, how it ends, and where it looks."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer.main

from sagalog.engine.backlog import Overloaded
from sagalog.engine.cli import app, exit_code
from sagalog.engine.cli.context import NoAddress, NotFound, bootstrap_of, postgres_of, settings
from sagalog.engine.cli.output import cell
from sagalog.engine.cli.setup import load_definition
from sagalog.engine.cli.workflows import read_input, why
from sagalog.engine.client import TopicsMissing, UnknownDefinition, WaitTimeout
from sagalog.engine.projection.queries import InvalidQuery
from sagalog.engine.projection.sql import SqlConflict, SqlUnavailable
from sagalog.infra.errors import DiskFullError, MissingExtraError, SettingsError
from sagalog.schemas.definitions import Definition
from sagalog.schemas.errors import InvalidDefinition, InvalidRecord, SagalogError
from sagalog.schemas.limits import PAYLOAD_BYTES_MAX
from sagalog.topics.log import LogUnavailable, RecordTooLarge

from ..commands import Ended, Place, call

DEFINITION = {"name": "order", "steps": [{"name": "one", "agent": "bank"}]}
GONE = 2**22 + 1
"""No process has it: it is beyond the largest id that Linux gives."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def called(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    return partial(call, place, monkeypatch, capsys)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory of its own, without settings; modules imported from it are forgotten afterwards."""
    for name in [name for name in os.environ if name.startswith("SAGALOG_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("mine"):
            del sys.modules[name]


# --- read_input


def test_input_is_json_from_the_line_a_file_or_standard_input(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "input.json").write_text('{"file": "é.png"}', encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[1, 2]")))

    assert read_input('{"a": null}') == {"a": None}
    assert read_input("@input.json") == {"file": "é.png"}
    assert read_input("-") == [1, 2]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not JSON"),
        ("{a: 1}", "is not JSON"),
        ("\udcff", "is not JSON (str is not valid UTF-8"),
        ("@none.json", "none.json cannot be read (No such file or directory)"),
        ("@.", ". cannot be read (Is a directory)"),
        ("[" * 65 + "]" * 65, "is nested deeper than 64"),
        (str(2**64), "beyond 64 bits"),
    ],
)
def test_what_is_no_input_names_the_option(here: Path, text: str, problem: str) -> None:
    with pytest.raises(InvalidRecord) as raised:
        read_input(text)
    assert raised.value.field == "--input"
    assert problem in raised.value.problem


def test_an_input_that_is_too_large_is_not_called_broken(here: Path) -> None:
    fits = '"' + "x" * (PAYLOAD_BYTES_MAX - 2) + '"'
    (here / "fits.json").write_text(fits)
    (here / "large.json").write_text(fits[:-1] + 'x"')

    assert len(read_input("@fits.json")) == PAYLOAD_BYTES_MAX - 2
    with pytest.raises(InvalidRecord, match=f"--input: is more than {PAYLOAD_BYTES_MAX:,} bytes"):
        read_input("@large.json")


# --- load_definition


def test_a_definition_comes_from_a_file_or_a_module(here: Path) -> None:
    (here / "order.json").write_text(json.dumps(DEFINITION))
    (here / "mine.py").write_text(
        f"from sagalog.schemas.definitions import Definition\nsaga = Definition.model_validate({DEFINITION!r})\n"
    )

    assert load_definition("order.json") == load_definition("mine:saga") == Definition.model_validate(DEFINITION)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("none.json", NotFound, r"^none\.json cannot be read \(No such file or directory\); name a file or module:"),
        ("order", NotFound, "^'order' is neither a file nor module:name, such as "),
        (":saga", NotFound, "^':saga' is neither a file nor module:name"),
        ("mine:", NotFound, "^'mine:' is neither a file nor module:name"),
        ("mine_none:saga", NotFound, "^mine_none:saga: No module named 'mine_none'; check the spelling"),
        ("mine_good:other", NotFound, "^mine_good:other: module 'mine_good' has no attribute 'other'; check"),
        ("mine_good:saga", InvalidDefinition, "^mine_good:saga: is a int, not a Definition$"),
        ("mine_syntax:saga", InvalidDefinition, "^mine_syntax:saga: importing mine_syntax failed with SyntaxError: "),
        ("mine_raises:saga", InvalidDefinition, "^mine_raises:saga: importing mine_raises failed with KeyError: 'x'$"),
        ("mine_refused:saga", InvalidDefinition, "^steps"),
        ("broken.json", InvalidDefinition, "^definition: is not JSON"),
        ("wrong.json", InvalidDefinition, r"^steps"),
    ],
)  # fmt: skip
def test_what_is_no_definition_says_why(here: Path, source: str, error: type[SagalogError], message: str) -> None:
    (here / "mine_good.py").write_text("saga = 1\n")
    (here / "mine_syntax.py").write_text("saga = (\n")
    (here / "mine_raises.py").write_text("{}['x']\n")
    refused = {"name": "order", "steps": []}
    (here / "mine_refused.py").write_text(
        f"from sagalog.schemas.definitions import parse_definition\nsaga = parse_definition({json.dumps(refused).encode()!r})\n"
    )
    (here / "broken.json").write_text("{")
    (here / "wrong.json").write_text(json.dumps(refused))
    with pytest.raises(error, match=message) as raised:
        load_definition(source)
    assert type(raised.value) is error


# --- why


def workflow(**changed: Any) -> dict[str, Any]:
    """A workflow as the projection shows it."""
    empty = ("stopped", "failure", "missing", "withheld", "paused", "signals", "next", "tenant", "attributes")
    nothing = {**dict.fromkeys(empty), "terminal": False, "priority": 5}
    return {"workflow": {**nothing, **changed}, "steps": [], "reviews": [], "dead_letters": []}


def test_a_workflow_that_goes_on_gives_no_reason() -> None:
    found = workflow()
    found["steps"] = [{"step": "one", "status": "done"}, {"step": "two", "status": "waiting"}]
    assert why(found) == []


def test_why_says_what_an_open_workflow_waits_for() -> None:
    withheld = [
        {"step": "pay", "service": "bank", "reason": "circuit_open", "since_ms": 1_500},
        {"step": "ship", "service": None, "reason": "in_flight", "since_ms": 2_000},
    ]
    found = workflow(withheld=withheld)
    found["steps"] = [
        {"step": "read", "status": "running", "agent": "ocr", "attempt": 2},
        {"step": "post", "status": "backing_off", "retry_at": "12:00"},
        {"step": "bill", "status": "reconciling", "agent": "bank", "attempt": 1, "retry_at": None},
        {"step": "file", "status": "reconciling", "agent": "archive", "attempt": 3, "retry_at": "12:01"},
    ]
    assert why(found) == [
        "pay waits since 1970-01-01 00:00:01.500: the circuit of bank is open",
        "ship waits since 1970-01-01 00:00:02.000: in_flight",
        "read waits for agent ocr, attempt 2",
        "post waits for its next attempt at 12:00",
        "bill: whether attempt 1 happened is not known, agent bank is asked",
        "file: whether attempt 3 happened is not known, agent archive is asked again at 12:01",
    ]
    # A finished workflow waits for nothing, whatever its steps were when it ended.
    assert why({**found, "workflow": workflow(terminal=True)["workflow"]}) == []


def test_why_says_where_a_workflow_comes_from_and_what_was_done_anew() -> None:
    found = workflow()
    found["lineage"] = {
        "forked_from": {"workflow_id": "o-1", "at_offset": 17, "who": "ana", "reason": "a new price"},
        "rewinds": [
            {"step": "pay", "undo": True, "who": "bo", "reason": "wrong sum"},
            {"step": "ship", "undo": False, "who": "bo", "reason": "lost"},
        ],
        "forks": ["o-3"],
    }
    letter = {"direction": "execute", "step": "pay", "failed_attempts": 2, "redriven_by": "o-2~1"}
    found["dead_letters"] = [letter]
    assert why(found) == [
        "forked from o-1 at offset 17 by ana: a new price",
        "rewound to pay once that was undone, by bo: wrong sum",
        "rewound to ship without undoing, by bo: lost",
        "forked into o-3",
        "dead letter: execute pay, 2 failed attempts; tried again in o-2~1",
    ]


def test_why_says_what_went_wrong_and_who_has_to_look() -> None:
    found = workflow(
        terminal=True,
        stopped="event 7 cannot be read",
        failure={"message": "deadline exceeded", "kind": "timeout"},
        missing=[{"step": "match", "why": "ledger is down", "stand_in": "default"}],
    )
    found["reviews"] = [
        {"kind": "compensation_failed", "reason": "post could not be undone", "decided_at": None},
        {"kind": "task", "reason": "look", "decided_at": "12:00", "decision": "approve", "decided_by": "ana"},
    ]
    found["dead_letters"] = [{"direction": "compensate", "step": "post", "failed_attempts": 10}]
    assert why(found) == [
        "stopped: event 7 cannot be read",
        "failed in the workflow: deadline exceeded (timeout)",
        "missing match: ledger is down (default stands in)",
        "review (compensation_failed): post could not be undone",
        "review (task): look; approve by ana",
        "dead letter: compensate post, 10 failed attempts",
    ]


def test_why_names_the_items_of_a_step_that_maps_and_not_the_step() -> None:
    found = workflow()
    running = {"status": "running", "agent": "ocr", "attempt": 1}
    found["steps"] = [
        {"step": "each", **running},
        {"step": "each[0]", **running},
        {"step": "each[1]", "status": "done"},
    ]

    assert why(found) == ["each[0] waits for agent ocr, attempt 1"]


def test_why_says_what_people_have_to_do_with_it() -> None:
    found = workflow(
        paused={"who": "ana", "reason": "a call", "at_ms": 1_500}, signals=[{"name": "paid", "at_ms": 2_000}]
    )
    found["steps"] = [{"step": "nap", "status": "awaiting", "until_at": "12:00"}]

    assert why(found) == [
        "paused by ana since 1970-01-01 00:00:01.500: a call",
        "nap waits, at most until 12:00",
        "signal paid of 1970-01-01 00:00:02.000 is kept until a step waits for it",
    ]


# --- exit codes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRecord("input", "is wrong"), 2),
        (InvalidDefinition("steps", "is empty"), 2),
        (UnknownDefinition("x"), 2),
        (InvalidQuery("x"), 2),
        (SettingsError("x"), 2),
        (NoAddress("x"), 2),
        (TopicsMissing("x"), 3),
        (LogUnavailable("x"), 3),
        (RecordTooLarge("x"), 3),
        (SqlUnavailable("x"), 3),
        (SqlConflict("x"), 3),
        (MissingExtraError.of("jgo", "embedded"), 3),
        (DiskFullError.of(Path(), 1, 2), 3),
        (WaitTimeout("x"), 4),
        (NotFound("x"), 5),
        (Overloaded(0, 2, 1, 1_000), 6),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, SagalogError) else str(value),
)
def test_every_error_has_its_exit_code(error: SagalogError, code: int) -> None:
    assert exit_code(error) == code


# --- where the servers are


def leave(directory: Path, **document: Any) -> None:
    """What a `sagalog dev` in that directory leaves."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "dev.json").write_text(json.dumps(document))


DEV = {"bootstrap": "127.0.0.1:9", "postgres": "postgresql://dev@127.0.0.1/dev"}


def test_addresses_are_those_of_a_running_dev(here: Path) -> None:
    leave(here / ".sagalog", pid=os.getpid(), **DEV)
    found = settings()
    assert (found.bootstrap, found.postgres) == (DEV["bootstrap"], DEV["postgres"])


def test_what_is_set_wins_over_a_running_dev(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(here / ".sagalog", pid=os.getpid(), **DEV)
    monkeypatch.setenv("SAGALOG_BOOTSTRAP", "kafka:1")
    (here / "sagalog.toml").write_text('prefix = "mine"\n')
    found = settings()
    assert (found.bootstrap, found.postgres, found.prefix) == ("kafka:1", DEV["postgres"], "mine")


def test_dev_is_looked_for_in_the_directory_of_data(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(here / "elsewhere", pid=os.getpid(), **DEV)
    assert settings().bootstrap is None
    monkeypatch.setenv("SAGALOG_DATA_DIR", str(here / "elsewhere"))
    assert settings().bootstrap == DEV["bootstrap"]


def test_a_dev_that_was_killed_is_passed_over(here: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    leave(here / ".sagalog", pid=ended.pid, **DEV)
    assert settings().bootstrap is None


@pytest.mark.parametrize(
    "content", ["", "[]", "7", "{", "{}", '{"pid": "x"}', '{"pid": null}', '{"pid": -1}', '{"pid": 0}', f'{{"pid": {GONE}}}',
                '{"pid": 99999999999999999999}', "\xff"],
)  # fmt: skip
def test_a_broken_file_of_dev_is_passed_over(here: Path, content: str) -> None:
    (here / ".sagalog").mkdir()
    document = content[:-1] + f', "bootstrap": "{DEV["bootstrap"]}"}}' if content.startswith('{"') else content
    (here / ".sagalog" / "dev.json").write_bytes(document.encode("latin-1"))
    assert settings().bootstrap is None


def test_a_dev_of_another_user_is_good_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    leave(here / ".sagalog", pid=1, **DEV)
    monkeypatch.setattr(os, "kill", refuse)
    assert settings().bootstrap == DEV["bootstrap"]


def test_a_file_of_dev_that_cannot_be_read_is_passed_over(here: Path) -> None:
    (here / ".sagalog" / "dev.json").mkdir(parents=True)
    assert settings().bootstrap is None


def test_no_address_says_how_to_get_one(here: Path) -> None:
    found = settings()
    with pytest.raises(NoAddress, match=r"SAGALOG_BOOTSTRAP=host:port, or run `sagalog dev`"):
        bootstrap_of(found)
    with pytest.raises(
        NoAddress, match=r"SAGALOG_POSTGRES=postgresql://user:password@host:port/database, or run `saga"
    ):
        postgres_of(found)


# --- the whole, without a server


def commands() -> Iterator[tuple[str, Any]]:
    """Every command, with what click knows of it."""
    pending: list[tuple[str, Any]] = [("", typer.main.get_command(app))]
    while pending:
        name, command = pending.pop()
        inner = getattr(command, "commands", None)
        if inner is None:
            yield name.strip(), command
        else:
            pending += [(f"{name} {one}", inner[one]) for one in inner]


ALL = dict(commands())


def test_the_documented_commands_are_there() -> None:
    assert set(ALL) == {
        "dev", "engine", "agent", "project", "watch",
        "start", "wait", "list", "show", "history", "cancel", "verify", "replay",
        "signal", "pause", "resume", "terminate", "prioritize", "reviews", "decide", "migrate",
        "rewind", "fork", "redrive", "dead-letters list",
        "topics create", "topics list",
        "definitions check", "definitions register", "definitions list", "definitions show", "definitions mermaid",
        "definitions schema",
        "schedules set", "schedules list", "schedules show", "schedules pause", "schedules resume", "schedules trigger",
        "schedules remove", "schedules next",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_command_has_an_example_with_options_that_exist(called: Callable[..., Ended], name: str) -> None:
    ended = called(*name.split(), "--help")
    assert (ended.code, ended.err) == (0, "")
    text = " ".join(inspect.cleandoc(ALL[name].help).replace("\\\n", " ").split())
    examples = re.findall(rf"sagalog {name}(?: |$)(.*?)(?=sagalog {name} |$)", text.partition("Example")[2])
    assert examples, text
    assert f"sagalog {name}" in " ".join(ended.out.split())
    known = {option for parameter in ALL[name].params for option in parameter.opts}
    used = {option for example in examples for option in re.findall(r"(?<=\s)--?[a-z][a-z-]*", f" {example}")}
    assert used <= known | {option.replace("--", "--no-") for option in known}


def test_examples_keep_their_lines(called: Callable[..., Ended]) -> None:
    lines = called("start", "--help").out.splitlines()
    assert '  Examples: sagalog start invoice -i \'{"file": "a.png"}\' --id invoice-1' in lines
    assert "            sagalog start invoice -i @input.json --wait 60" in lines


def test_an_unknown_variable_is_named(called: Callable[..., Ended]) -> None:
    ended = called("list", SAGALOG_BOOTSTRAPS="kafka:9092")
    assert ended.code == 2
    sentence = (
        "The environment variable SAGALOG_BOOTSTRAPS is not a setting: the nearest known one is SAGALOG_BOOTSTRAP."
    )
    assert ended.one_sentence() == f"Error: {sentence}\n"


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "message"),
    [
        (("list",), {}, 2, "no PostgreSQL is named: set SAGALOG_POSTGRES="),
        (("wait", "x"), {}, 2, "no Kafka is named: set SAGALOG_BOOTSTRAP="),
        (("start", "x", "-i", "{"), {}, 2, "--input: is not JSON"),
        (("definitions", "check", "x"), {}, 5, "'x' is neither a file nor module:name"),
        (("wait", "x"), {"SAGALOG_BOOTSTRAP": "127.0.0.1:1"}, 3, "no Kafka broker answers at 127.0.0.1:1 "),
        (("list",), {"SAGALOG_POSTGRES": "postgresql://u:secret@127.0.0.1:1/d"}, 3, "connecting failed: OperationalError"),
        (("wait", "x"), {"SAGALOG_PARTITIONS": "many"}, 2, "The setting partitions (SAGALOG_PARTITIONS) cannot be 'many'"),
        (("agent", "none"), {}, 2, "'none' does not name agents: write MODULE:NAME"),
        (("dev", "--definition", "none"), {}, 5, "'none' is neither a file nor module:name"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(
    called: Callable[..., Ended], arguments: tuple[str, ...], variables: dict[str, str], code: int, message: str
) -> None:
    ended = called(*arguments, **variables)
    assert ended.code == code
    assert ended.one_sentence().startswith(f"Error: {message}")
    assert "secret" not in ended.err


def test_a_wrong_call_is_shown_how(called: Callable[..., Ended]) -> None:
    for arguments in (("starts",), ("start",), ("wait", "x", "--timeouts", "1"), ("list", "--limit", "0")):
        ended = called(*arguments)
        assert ended.code == 2
        assert ended.out == ""
        assert "--help" in ended.err


def test_a_picture_is_no_json(called: Callable[..., Ended]) -> None:
    ended = called("show", "order-1", "--mermaid", "--json")
    assert ended.code == 2
    assert "stands beside --json; give one of the two" in ended.err


def test_brackets_in_a_message_are_no_markup() -> None:
    for text in ("[red]boom[/red]", "[/]", r"a\[b", "c:\\"):
        assert cell(text).plain == text
    assert cell("failed").style == "red"
    assert cell(None).plain == ""


# --- definitions in files


def test_a_yaml_definition_is_the_same_as_its_json(tmp_path: Path) -> None:
    text = """
    name: order
    steps:
      - {name: reserve, agent: stock, compensate: {}}
      - name: charge
        agent: bank
        needs: [reserve]
        fallbacks:
          - agent: other
            on: [refusal]
    """
    (tmp_path / "order.yaml").write_text(text)

    found = load_definition(str(tmp_path / "order.yaml"))

    (tmp_path / "order.json").write_bytes(found.encoded)
    assert load_definition(str(tmp_path / "order.json")).hash == found.hash
    assert found.steps[1].fallbacks[0].on == ("refusal",), "YAML 1.2: `on` is a word"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", 'found duplicate key "a"'),
        ("- x\n", "holds a list; a definition is a mapping"),
        ("!!python/object:os.system x\n", "is not YAML"),
        ("a: [", "is not YAML"),
        ("\x00", "is not YAML"),
        ("x" * 262_145, "more than 262,144"),
        (
            "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
            "with its aliases written out",
        ),
        ("name: x\nsteps: []\n", "steps"),
    ],
)
def test_what_is_no_yaml_definition_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "d.yaml").write_text(text)

    with pytest.raises(InvalidDefinition) as raised:
        load_definition(str(tmp_path / "d.yaml"))

    assert said in str(raised.value)
