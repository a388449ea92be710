"""The command line as a user meets it: the README's example, word for word, by processes of its own in an empty directory.

One `sagalog dev` serves the module; it takes the session's stack instead of starting a second one. The other commands find it by
the file that it leaves. A process per command costs a second, so the same commands with other options are `called` in this one.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from sagalog.engine.projection.sql import schema_name
from sagalog.topics.kafka import KafkaLog
from sagalog.topics.log import Message, Out, TopicPartition
from sagalog.topics.specs import Topics

from ..commands import Ended, Place, call, until
from ..conftest import SESSION_TIMEOUT_MS, Stack

pytestmark = pytest.mark.stack

REPOSITORY = Path(__file__).resolve().parents[2]
PARTITIONS = 2
UNREACHABLE_S_MAX = 20.0
DEV_START_S_MAX = 60.0
DEV_STOP_S_MAX = 15.0

IDLE = {
    "name": "idle",
    "input_schema": {
        "type": "object",
        "properties": {"amount": {"type": "integer"}},
        "additionalProperties": False,
    },
    # A step that nobody does: its attempts are lost after a second, and tried again.
    "steps": [
        {
            "name": "one",
            "agent": "nobody",
            "start_timeout_ms": 500,
            "timeout_ms": 10,
            "retry": {"attempts": 50, "base_ms": 1, "cap_ms": 1},
        }
    ],
}


def readme() -> str:
    return (REPOSITORY / "README.md").read_text()


def readme_commands() -> list[tuple[list[str], str]]:
    """The README's `$ sagalog …` lines with the output that stands below each."""
    found: list[tuple[list[str], str]] = []
    for line in re.findall(r"^    (.*)$", readme().split("```")[2].partition("\n## ")[0], re.MULTILINE):
        if line.startswith("$ sagalog "):
            found.append((shlex.split(line, comments=True)[2:], ""))
        else:
            found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return found


def settings_for(stack: Stack, *, addresses: bool) -> dict[str, str]:
    settings = {
        "SAGALOG_PREFIX": f"t{uuid.uuid4().hex[:10]}",
        "SAGALOG_PARTITIONS": str(PARTITIONS),
        "SAGALOG_SESSION_TIMEOUT_MS": str(SESSION_TIMEOUT_MS),
    }
    if addresses:
        settings |= addresses_of(stack)
    return settings


def addresses_of(stack: Stack) -> dict[str, str]:
    return {"SAGALOG_BOOTSTRAP": stack.bootstrap, "SAGALOG_POSTGRES": stack.postgres}


@pytest.fixture(scope="module")
def place(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A directory with the README's order.py, and `sagalog dev` running in it as the README says."""
    place = Place(tmp_path_factory.mktemp("order"), settings_for(stack, addresses=False))
    (place.directory / "order.py").write_text(readme().split("```python\n")[1].split("```")[0])
    (place.directory / "idle.json").write_text(json.dumps(IDLE))
    (dev, _), *_ = readme_commands()
    process = place.run(*dev, **addresses_of(stack))
    try:
        until(lambda: place.dev_file.exists() or process.poll(), DEV_START_S_MAX, lambda: place.said("dev"))
        assert process.poll() is None, place.said("dev")
        yield place
    finally:
        early = process.poll()
        process.send_signal(signal.SIGTERM)
        process.wait(DEV_STOP_S_MAX)
        assert early is None, place.said("dev")


@pytest.fixture(scope="module")
def first(place: Place) -> Ended:
    """The README's own `sagalog start`, once."""
    return place.sagalog(*readme_commands()[1][0])


@pytest.fixture(scope="module")
def printed(place: Place, first: Ended) -> dict[str, str]:
    """What the README's commands about that workflow print. `verify` comes first: it waits for the projection."""
    commands = {arguments[0]: arguments for arguments, _ in readme_commands()[2:]}
    return {name: place.done(*commands[name]) for name in ("verify", "show", "history", "replay") if name in commands}


@pytest.fixture
def called(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Calls a command in this process."""
    return partial(call, place, monkeypatch, capsys)


@pytest.fixture(scope="module")
def idle(place: Place) -> str:
    """The name of a registered definition whose workflows stay open."""
    assert place.done("definitions", "register", "idle.json").startswith("registered idle@")
    return "idle"


# --- the README


def test_the_readmes_example_prints_what_it_says(first: Ended) -> None:
    arguments, output = readme_commands()[1]
    assert arguments[0] == "start"
    assert output.count("\n") == 2
    assert (first.out, first.err, first.code) == (output, "", 1)


def test_the_readmes_other_commands_work(printed: dict[str, str]) -> None:
    """Their lines name the right options and ids; what each prints is looked at below."""
    assert list(printed) == ["verify", "show", "history", "replay"]
    assert all(printed.values())


def test_dev_says_where_everything_is(stack: Stack, place: Place) -> None:
    said = place.said("dev")
    assert re.search(r"^definition  order@[0-9a-f]+$", said, re.MULTILINE)
    assert stack.bootstrap in said
    document = json.loads(place.dev_file.read_text())
    assert document == {"pid": document["pid"], "bootstrap": stack.bootstrap, "postgres": stack.postgres}
    assert place.dev_file.stat().st_mode & 0o077 == 0  # it holds a password


# --- start, wait, list


def test_start_gives_an_id_and_wait_the_result(place: Place, called: Callable[..., Ended]) -> None:
    (place.directory / "input.json").write_text('{"sku": "tea", "amount": 5}')
    started = place.sagalog("start", "order", "-i", "@input.json", "--json")
    assert (started.code, started.err) == (0, "")
    workflow_id = started.json()["workflow_id"]
    assert workflow_id.startswith("order-")

    waited = place.sagalog("wait", workflow_id, "--timeout", "30")
    assert (waited.code, waited.err) == (0, "")
    head, _, output = waited.out.partition("\n")
    assert head == f"{workflow_id}: completed"
    assert json.loads(output) == {"charge": "charged"}
    again = called("wait", workflow_id, "--json").json()
    assert again["workflow_id"] == workflow_id
    assert again["output"] == {"charge": "charged"}


def test_a_second_start_with_an_id_changes_nothing(place: Place, first: Ended, called: Callable[..., Ended]) -> None:
    before = called("wait", "order-1", "--json")
    assert before.code == 1
    assert place.sagalog("start", "order", "-i", "-", "--id", "order-1", stdin='{"sku": "x", "amount": 1}').code == 0
    steps = until(
        lambda: [step for step in called("replay", "order-1", "--json").json()["steps"] if "started" in step["event"]][1:],
        20,
        lambda: "the second start is not in the log",
    )  # fmt: skip
    assert [(step["moves"], len(step["effects"])) for step in steps] == [([], 1)]
    assert steps[0]["effects"][0].startswith("ignored: ")
    assert called("wait", "order-1", "--json").json() == before.json()


def test_wait_says_when_it_was_not_long_enough(place: Place, idle: str, called: Callable[..., Ended]) -> None:
    assert called("start", idle, "--id", "idle-wait").out == "idle-wait\n"
    ended = place.sagalog("wait", "idle-wait", "--timeout", "0.2")
    assert ended.code == 4
    assert "idle-wait has not ended within 0.2 s; see: sagalog show idle-wait" in ended.one_sentence()


def test_list_shows_the_newest_first_and_filters(
    place: Place, printed: dict[str, str], called: Callable[..., Ended]
) -> None:
    rows = called("list", "--status", "compensated", "--json").json()["workflows"]
    assert [row["workflow_id"] for row in rows] == ["order-1"]
    assert rows[0]["failure_message"] == "the card does not cover 500"

    found = called("list", "--json").json()
    assert [row["started_at"] for row in found["workflows"]] == sorted(
        (row["started_at"] for row in found["workflows"]), reverse=True
    )
    assert found["counts"]["compensated"] == 1
    shown = place.done("list", "--name", "order")
    assert re.search(r"^order-1 +order +compensated ", shown, re.MULTILINE)
    assert "compensated: 1" in shown

    wrong = called("list", "--status", "finished")
    assert wrong.code == 2
    assert "'finished' is unknown; known are waiting, running" in wrong.one_sentence()


def test_starts_say_whose_they_are_and_what_becomes_of_them_under_an_id_in_use(
    place: Place, idle: str, called: Callable[..., Ended]
) -> None:
    said = ("--tenant", "acme", "--priority", "8", "--attribute", "customer=4711")
    assert called("start", idle, "--id", "idle-acme", *said, "--on-duplicate", "reject").code == 0
    refused = called("start", idle, "--id", "idle-acme", "--on-duplicate", "reject")
    assert refused.code == 1
    assert "'idle-acme' was not started anew: the workflow is running" in refused.one_sentence()
    assert called("prioritize", "idle-acme", "3", "--reason", "it has time").code == 0

    def listed() -> list[dict[str, object]]:
        found = called("list", "--tenant", "acme", "--where", "customer=4711", "--json").json()["workflows"]
        return [row for row in found if row["priority"] == 3]

    (row,) = until(listed, 20, lambda: "the workflow is not listed with its new priority")
    assert (row["workflow_id"], row["tenant"], row["attributes"]) == ("idle-acme", "acme", {"customer": 4711})
    assert "tenant acme, priority 3, customer=4711\n" in called("show", "idle-acme").out
    assert called("list", "--where", 'customer="4711"', "--json").json()["workflows"] == []
    assert "'customer' is not NAME=VALUE" in called("list", "--where", "customer").one_sentence()

    assert called("start", idle, "--id", "idle-acme", "--tenant", "next", "--on-duplicate", "replace").code == 0
    until(
        lambda: called("list", "--tenant", "next", "--json").json()["workflows"],
        20,
        lambda: "the run that replaces the other is not listed",
    )
    assert called("wait", "idle-acme", "--json").json()["status"] == "cancelled"  # of the last run that has ended
    assert called("cancel", "idle-acme", "--reason", "enough").code == 0


# --- show, history, replay


def test_show_says_what_was_undone_and_why(printed: dict[str, str], called: Callable[..., Ended]) -> None:
    shown = printed["show"]
    assert re.search(r"^reserve +done +stock +1 ", shown, re.MULTILINE)
    assert re.search(r"^charge +failed +bank +1 .* the card does not cover 500$", shown, re.MULTILINE)
    assert re.search(r"^undoing, in this order$", shown, re.MULTILINE)
    assert "- failed in charge: the card does not cover 500 (terminal)" in shown

    document = called("show", "order-1", "--json").json()
    assert document["workflow"]["status"] == "compensated"
    assert document["why"][0] == "failed in charge: the card does not cover 500 (terminal)"
    assert [(row["step"], row["status"]) for row in document["compensations"] if row["undone_order"]] == [
        ("reserve", "done")
    ]


def test_show_draws_a_workflow_with_its_states_coloured(printed: dict[str, str], called: Callable[..., Ended]) -> None:
    drawn = called("show", "order-1", "--mermaid").out

    assert drawn.startswith("flowchart TD\n")
    assert re.search(r'^    s0\["reserve<br/>stock"\]$', drawn, re.MULTILINE)
    assert re.findall(r"^    class (\S+ \S+)$", drawn, re.MULTILINE) == ["s0 done", "s1 failed", "s0u undo_done"]
    unknown = called("show", "none", "--mermaid")
    assert (unknown.code, "workflow 'none' is not in the projection" in unknown.one_sentence()) == (5, True)


def test_history_is_the_log_and_replay_every_transition(
    place: Place, printed: dict[str, str], called: Callable[..., Ended]
) -> None:
    events = called("history", "order-1", "--json").json()
    types = [event["ce_type"] for event in events]
    assert types[:4] == [
        "sagalog.workflow-started.v1",
        "sagalog.step-completed.v1",
        "sagalog.step-failed.v1",
        "sagalog.step-completed.v1",
    ]
    assert events[0]["data"]["input"] == {"sku": "tea", "amount": 500}
    assert [event["offset"] for event in events] == sorted(event["offset"] for event in events)

    shown = [(line.split()[0], line.split()[3]) for line in printed["history"].splitlines()]
    assert shown[:4] == [(str(event["offset"]), event["ce_type"]) for event in events[:4]]

    document = called("replay", "order-1", "--json").json()
    moves = [move for step in document["steps"] for move in step["moves"]]
    assert moves == [
        "workflow: new -> running",
        "reserve: waiting -> running",
        "reserve: running -> done",
        "charge: waiting -> running",
        "charge: running -> failed",
        "workflow: running -> compensating",
        "undo reserve: pending -> running",
        "undo reserve: running -> done",
        "workflow: compensating -> compensated",
    ]
    assert document["state"]["status"] == "compensated"
    assert [line.strip() for line in printed["replay"].splitlines() if line.strip() in moves] == moves


def test_replay_compares_with_a_changed_definition(
    place: Place, printed: dict[str, str], called: Callable[..., Ended]
) -> None:
    file = place.directory / "gentler.yaml"
    file.write_text(
        "name: order\nsteps:\n  - {name: reserve, agent: stock, compensate: {}}\n"
        "  - {name: charge, agent: bank, needs: [reserve], critical: false}\n"
    )

    changed = called("replay", "order-1", "--against", str(file), "--json")
    lines = changed.json()["difference"]

    assert changed.code == 1
    assert "-charge: running -> failed" in lines and "+charge: running -> degraded" in lines
    assert place.done("replay", "order-1", "--against", "order:saga") == "no difference\n"


def test_cancel_stops_an_open_workflow(place: Place, idle: str, called: Callable[..., Ended]) -> None:
    called("start", idle, "--id", "idle-1")
    why = until(lambda: [line for line in called("show", "idle-1").out.splitlines() if line.startswith("- ")], 20, str)
    assert why[0].startswith(("- one waits for agent nobody, attempt ", "- one waits for its next attempt at "))
    assert "asked idle-1 to stop" in place.done("cancel", "idle-1", "--reason", "entered twice", "--who", "Ada")
    ended = place.sagalog("wait", "idle-1", "--json", "--timeout", "30")
    assert ended.code == 1
    assert ended.json()["status"] == "cancelled"
    (cancelled,) = [
        event["data"]
        for event in called("history", "idle-1", "--json").json()
        if event["ce_type"] == "sagalog.cancel-requested.v1"
    ]
    assert cancelled == {"reason": "entered twice", "who": "Ada"}


def test_dead_letters_are_tried_again_and_workflows_forked_and_rewound(
    place: Place, idle: str, printed: dict[str, str], called: Callable[..., Ended]
) -> None:
    letter = "order-1/charge/1/execute"

    def listed() -> dict[str, str | None]:
        found = called("dead-letters", "list", "--json").json()
        return {row["id"]: row["redriven_by"] for row in found}

    assert listed()[letter] is None
    how = called("redrive", letter, "--reason", "a new card", "--who", "Ada", "--json").json()["redriven"][0]
    assert (how["dead_letter"], how["how"], how["step"]) == (letter, "fork", "charge")
    until(lambda: listed()[letter] == how["workflow_id"], 20, lambda: str(listed()))
    assert f"tried again in {how['workflow_id']}" in called("show", "order-1").out
    assert "forked from order-1 at offset" in called("show", how["workflow_id"]).out
    (nothing,) = called("redrive", "order-1/reserve/1/execute", "--reason", "x").one_sentence().splitlines()
    assert "the log holds no dead letter 'order-1/reserve/1/execute'" in nothing

    assert "was undone" in called("fork", "order-1", "--before", "charge").one_sentence()
    forked = called("fork", "order-1", "--before", "reserve", "-i", '{"sku": "tea", "amount": 5}').out.strip()
    assert called("wait", forked, "--json").json()["status"] == "completed"

    called("start", idle, "--id", "idle-2")
    assert (
        "to go back to one" in called("rewind", "idle-2", "one", "--no-undo", "--reason", "again", "--who", "Ada").out
    )
    said = "- rewound to one without undoing, by Ada: again"
    until(lambda: said in called("show", "idle-2").out, 20, lambda: called("show", "idle-2").out)
    called("terminate", "idle-2", "--reason", "enough")


# --- topics, definitions


def test_topics_are_listed_and_made_once(place: Place, called: Callable[..., Ended]) -> None:
    prefix = place.topics.prefix
    found = place.sagalog("topics", "list", "--json")
    assert found.code == 0
    by_name = {row["topic"]: row for row in found.json()["topics"]}
    assert found.json()["problems"] == []
    assert by_name[f"{prefix}.events"] == {
        "topic": f"{prefix}.events", "partitions": PARTITIONS, "replication": 1, "cleanup": "delete", "key": "workflow",
        "holds": "every input of every workflow",
    }  # fmt: skip
    assert by_name[f"{prefix}.checkpoints"]["cleanup"] == "compact"
    assert place.done("topics", "create", "--agent", "fresh") == f"created {prefix}.commands.fresh\n"
    assert called("topics", "create", "--agent", "fresh", "--json").json() == {"created": []}

    other = called("topics", "list", SAGALOG_PARTITIONS="3")
    assert other.code == 1
    assert f"{prefix}.events has 2 partitions where 3 are expected" in other.out


def test_definitions_are_checked_registered_and_shown(place: Place, idle: str, called: Callable[..., Ended]) -> None:
    checked = place.sagalog("definitions", "check", "order:saga", "--json").json()
    assert checked["steps"] == ["reserve", "charge"]
    registered = place.sagalog("definitions", "register", "order:saga", "--json").json()
    assert registered == {"name": "order", "hash": checked["hash"]}
    found = called("definitions", "list", "--json").json()
    assert {"name": "order", "hash": checked["hash"], "steps": ["reserve", "charge"]} in found
    assert re.search(rf"^order +{checked['hash']} +reserve charge", called("definitions", "list").out, re.MULTILINE)
    assert json.loads(called("definitions", "show", "idle").out) == IDLE
    assert json.loads(called("definitions", "show", f"order@{checked['hash']}").out)["name"] == "order"


# --- what is refused


@pytest.mark.parametrize("command", ["show", "history", "replay"])
def test_an_unknown_workflow_is_not_found(called: Callable[..., Ended], command: str) -> None:
    ended = called(command, "order-0")
    assert ended.code == 5
    assert "workflow 'order-0' is not in the" in ended.one_sentence()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("order", "-i", "{'sku': 1}"), "--input: is not JSON"),
        (("other",), r"definition: 'other' is not registered \(known: idle, order\); register it with: sagalog def"),
        (("idle", "-i", '{"amount": "much"}'), "input.amount: "),
        (("idle", "--id", "@x"), "workflow_id: '@x' starts with '@'"),
    ],
)
def test_wrong_input_is_refused_with_its_place(
    idle: str, called: Callable[..., Ended], arguments: tuple[str, ...], message: str
) -> None:
    ended = called("start", *arguments)
    assert ended.code == 2
    assert re.match(f"Error: {message}", ended.one_sentence())


def test_an_unreachable_broker_is_one_sentence_soon(place: Place) -> None:
    ended = place.sagalog("wait", "order-1", SAGALOG_BOOTSTRAP="127.0.0.1:1")
    assert ended.code == 3
    assert "no Kafka broker answers at 127.0.0.1:1 " in ended.one_sentence()
    assert ended.seconds < UNREACHABLE_S_MAX


def test_topics_that_are_not_there_are_named(called: Callable[..., Ended]) -> None:
    for command in ("wait", "verify"):
        ended = called(command, *(["x"] if command == "wait" else ["--no-rows"]), SAGALOG_PREFIX="nobodys")
        assert ended.code == 3
        assert (
            "topic nobodys.events does not exist; make the topics with: sagalog topics create" in ended.one_sentence()
        )


# --- verify


def test_verify_proves_and_finds_what_was_changed_in_postgres(
    stack: Stack, place: Place, first: Ended, called: Callable[..., Ended]
) -> None:
    proved = place.sagalog("verify", "--json")
    assert (proved.code, proved.err) == (0, "")
    document = proved.json()
    assert document["ok"] is True
    assert [partition["partition"] for partition in document["partitions"]] == list(range(PARTITIONS))
    assert sum(partition["checkpoints"] for partition in document["partitions"]) >= 1
    assert sum(partition["rows"] for partition in document["partitions"]) >= 1

    step = sql.Identifier(schema_name(place.topics.prefix), "step")
    change = sql.SQL("UPDATE {} SET output = %s WHERE workflow_id = 'order-1' AND step = 'reserve'").format(step)
    with psycopg.connect(stack.postgres, autocommit=True) as connection:
        assert connection.execute(change, [Jsonb("reservation of gold")]).rowcount == 1
        try:
            found = place.sagalog("verify")
        finally:
            connection.execute(change, [Jsonb("reservation of tea")])
    assert (found.code, found.err) == (1, "")
    assert "DIFFERENT" in found.out
    assert re.search(r"workflow order-1: its rows differ: .*reserve.*output.*gold.*tea", found.out), found.out
    assert called("verify", "--json").json()["ok"] is True


@pytest.mark.parametrize(
    ("key", "change", "difference"),
    [
        ("order-1", lambda value: value.replace(b'"compensated"', b'"completed"'),
         "workflow order-1: its checkpoint differs in status: completed where the fold says compensated"),
        ("order-1", lambda value: b"{", "workflow order-1: its checkpoint cannot be read: "),
        ("order-1", lambda value: None, "workflow order-1: no checkpoint; the fold says compensated"),
        ("order-9", lambda value: value, "workflow order-9: a checkpoint that the log knows nothing of"),
    ],
    ids=["changed", "unreadable", "taken away", "made up"],
)  # fmt: skip
async def test_verify_finds_a_wrong_checkpoint(
    log: KafkaLog,
    place: Place,
    first: Ended,
    key: str,
    change: Callable[[bytes], bytes | None],
    difference: str,
) -> None:
    original = await checkpoint_of(log, place.topics, b"order-1")
    assert original.value is not None
    changed = change(original.value)
    restored = original.value if key == "order-1" else None
    producer = await log.producer("meddler")
    topic = place.topics.checkpoints
    try:
        await producer.append(topic, original.partition, [Out(key.encode(), changed, original.headers)])
        try:
            found = place.sagalog("verify", "--no-rows", "--json")
        finally:
            await producer.append(topic, original.partition, [Out(key.encode(), restored, original.headers)])
    finally:
        await producer.close()
    assert (found.code, found.err) == (1, "")
    document = found.json()
    assert document["ok"] is False
    (line,) = document["partitions"][original.partition]["differences"]
    assert line.startswith(difference)
    assert document["partitions"][1 - original.partition]["differences"] == []


async def checkpoint_of(log: KafkaLog, topics: Topics, key: bytes) -> Message:
    """The newest checkpoint of a workflow."""
    numbers = [TopicPartition(topics.checkpoints, number) for number in range(PARTITIONS)]
    reader = await log.read(dict.fromkeys(numbers), committed=True)
    newest: list[Message] = []
    try:
        for number, end in (await reader.end_offsets(numbers)).items():
            while await reader.position(number) < end:
                for messages in (await reader.poll(200, 1_000)).values():
                    newest += [message for message in messages if message.key == key]
    finally:
        await reader.close()
    return newest[-1]


# --- processes


def test_an_engine_serves_metrics_and_ends_on_sigterm(stack: Stack, tmp_path: Path) -> None:
    """Without agents: a start is an event, too."""
    place = Place(tmp_path, settings_for(stack, addresses=True))
    (tmp_path / "idle.json").write_text(json.dumps(IDLE))
    engine = place.run("engine", SAGALOG_METRICS_PORT="0")
    try:
        address = until(
            lambda: re.search(r"metrics of the engine: (http://127\.0\.0\.1:[0-9]+/metrics)", place.said("engine")),
            30,
            lambda: place.said("engine"),
        )[1]
        place.done("definitions", "register", "idle.json")
        place.done("start", "idle")
        metrics = until(lambda: (m := scrape(address)).get("sagalog_commands_sent_total", 0) > 0 and m, 30, str)
        families = {re.sub(r"\{.*|_(bucket|sum|count|created|total)$", "", name) for name in metrics}
        assert len({name for name in families if name.startswith("sagalog_")}) >= 10
        assert sum(value for name, value in metrics.items() if name.startswith("sagalog_events_folded_total")) > 0
        with urllib.request.urlopen(address, timeout=10) as answer:
            declared = re.findall(r"^# TYPE (sagalog_\w+)", answer.read().decode(), re.MULTILINE)
        assert len(set(declared)) >= 20

        port = address.rsplit(":", 1)[1].split("/")[0]
        second = place.sagalog("engine", SAGALOG_METRICS_PORT=port)
        assert second.code == 3
        assert f"metrics of the engine cannot be served on port {port} (Address already in use)" in second.err
    finally:
        engine.send_signal(signal.SIGTERM)
        code = engine.wait(DEV_STOP_S_MAX)
    assert code == 0, place.said("engine")


def scrape(address: str) -> dict[str, float]:
    with urllib.request.urlopen(address, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_dev_ends_on_sigterm_and_takes_its_file_along(stack: Stack, tmp_path: Path) -> None:
    place = Place(tmp_path, settings_for(stack, addresses=True))
    process = place.run("dev")
    try:
        until(lambda: place.dev_file.exists() or process.poll(), DEV_START_S_MAX, lambda: place.said("dev"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEV_STOP_S_MAX) == 0, place.said("dev")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert not place.dev_file.exists()
    assert "Traceback" not in place.said("dev")


def test_dev_with_what_it_cannot_load_says_so_before_it_starts(stack: Stack, tmp_path: Path) -> None:
    place = Place(tmp_path, settings_for(stack, addresses=True))
    (tmp_path / "broken.py").write_text("saga = 1 / 0\n")
    for option in ("--definition", "--agent"):
        ended = place.sagalog("dev", option, "broken:saga")
        assert ended.code == 2
        assert "importing broken failed with ZeroDivisionError: division by zero" in ended.one_sentence()
        assert not place.dev_file.exists()


# --- schedules


def test_a_schedule_is_set_shown_triggered_and_removed(place: Place, idle: str, called: Callable[..., Ended]) -> None:
    wanted = ["--definition", idle, "--cron", "0 9 1 1 *", "--zone", "Europe/Berlin", "--catch-up", "1h"]
    assert called("schedules", "set", "yearly", *wanted).out.startswith("set yearly; due next at 20")
    assert called("schedules", "trigger", "yearly", "--reason", "now").code == 0
    assert called("schedules", "pause", "yearly", "--reason", "enough", "--who", "ana").code == 0

    def shown() -> dict[str, Any] | None:
        rows: list[dict[str, Any]] = called("schedules", "list", "--json").json()
        return next((row for row in rows if row["name"] == "yearly" and row["status"] == "paused"), None)

    row = until(shown, 20, lambda: "the schedule is not in the projection")
    assert (row["started"], row["running"], row["catch_up_ms"]) == (1, 1, 3_600_000)
    (run,) = row["runs"]
    assert run["id"].startswith("yearly/triggered-") and "token" not in run
    text = called("schedules", "show", "yearly").out
    assert "yearly: paused" in text and "paused by ana: enough" in text and run["id"] in text
    times = called("schedules", "next", "yearly", "--count", "2").out.splitlines()
    assert len(times) == 2 and all(time.endswith("-01-01T09:00:00+01:00") for time in times)

    assert called("schedules", "remove", "yearly", "--reason", "over").code == 0
    until(
        lambda: called("schedules", "show", "yearly", "--json").json()["status"] == "removed",
        20,
        lambda: "the schedule was not removed",
    )
    assert "there is no schedule 'nope'" in place.sagalog("schedules", "show", "nope").one_sentence()
    assert place.sagalog("verify").code == 0
