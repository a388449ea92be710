"""Commands that prepare a system: topics and definitions."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from sagalog.schemas.definitions import Definition, parse_definition
from sagalog.schemas.errors import InvalidDefinition, SagalogError
from sagalog.schemas.limits import DEFINITION_BYTES_MAX
from sagalog.schemas.mermaid import mermaid
from sagalog.topics.provision import check, provision
from sagalog.topics.specs import all_specs

from .context import NotFound, open_client, open_log, run, settings, topics_of
from .output import out, pretty, print_json, table

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]

topics_app = typer.Typer(no_args_is_help=True, help="The topics of this prefix: make them, check them.")
definitions_app = typer.Typer(no_args_is_help=True, help="Definitions: check, register, list, show, draw.")


def register(app: typer.Typer) -> None:
    app.add_typer(topics_app, name="topics")
    app.add_typer(definitions_app, name="definitions")


# --- topics


@topics_app.command("create")
def topics_create(
    agent: Annotated[list[str] | None, typer.Option(help="Also the command topic of this agent; repeatable.")] = None,
    json: Json = False,
) -> None:
    """Make the topics that are missing; refuse those that do not fit, with the difference.

    Example: sagalog topics create --agent ocr --agent ledger
    """

    async def work() -> list[str]:
        found = settings()
        async with open_log(found) as log:
            return await provision(
                log,
                topics_of(found),
                all_specs(agent or ()),
                partitions=found.partitions,
                replication=found.replication,
                min_insync_replicas=found.min_insync_replicas,
            )

    made = run(work())
    if json:
        print_json({"created": made})
    else:
        out.print("\n".join(f"created {name}" for name in made) or "All topics are there.")


@topics_app.command("list")
def topics_list(json: Json = False) -> None:
    """What each topic holds, and how it is. Exits 1 when one is missing or does not fit.

    Example: sagalog topics list --json
    """

    async def work() -> tuple[list[dict[str, Any]], list[str]]:
        found = settings()
        topics = topics_of(found)
        specs = all_specs()
        async with open_log(found) as log:
            described = await log.describe([topics.name(spec) for spec in specs])
        rows = []
        for spec in specs:
            topic = described.get(topics.name(spec))
            rows.append(
                {
                    "topic": topics.name(spec),
                    "partitions": topic.partitions if topic else None,
                    "replication": topic.replication if topic else None,
                    "cleanup": topic.config.get("cleanup.policy") if topic else "missing",
                    "key": spec.keyed.value,
                    "holds": spec.holds,
                }
            )
        return rows, check(described, topics, specs, found.partitions)

    rows, problems = run(work())
    if json:
        print_json({"topics": rows, "problems": problems})
    else:
        table(None, list(rows[0]), [list(row.values()) for row in rows])
        for problem in problems:
            out.print(problem, style="red", markup=False)
    if problems or any(row["partitions"] is None for row in rows):
        raise typer.Exit(1)


# --- definitions

Source = Annotated[str, typer.Argument(help="A JSON or YAML file, or module:name of a Definition.")]


@definitions_app.command("check")
def definitions_check(source: Source, json: Json = False) -> None:
    """Say whether a definition can run, and if not, what is wrong where. Exits 2 when it cannot, 0 with warnings.

    \b
    Examples: sagalog definitions check invoice.json
              sagalog definitions check sagalog.agents.invoices.saga:definition
    """
    found = load_definition(source)
    if json:
        steps = [step.name for step in found.steps]
        print_json({"name": found.name, "hash": found.hash, "steps": steps, "warnings": found.warnings})
    else:
        out.print(f"{found.name}@{found.hash}: {len(found.steps)} steps, fits.")
        for warning in found.warnings:
            out.print(f"warning: {warning}", style="yellow", markup=False)


@definitions_app.command("register")
def definitions_register(source: Source, json: Json = False) -> None:
    """Make a definition known to every partition, and its agents' command topics. Repeatable.

    Example: sagalog definitions register sagalog.agents.invoices.saga:definition
    """
    definition = load_definition(source)

    async def work() -> str:
        async with open_client(settings()) as client:
            return await client.register(definition)

    hash_ = run(work())
    if json:
        print_json({"name": definition.name, "hash": hash_})
    else:
        out.print(f"registered {definition.name}@{hash_}")


@definitions_app.command("list")
def definitions_list(json: Json = False) -> None:
    """All registered definitions, the newest of a name last.

    Example: sagalog definitions list
    """

    async def work() -> list[Definition]:
        async with open_client(settings()) as client:
            return await client.definitions()

    found = run(work())
    if json:
        print_json([{"name": d.name, "hash": d.hash, "steps": [step.name for step in d.steps]} for d in found])
    else:
        table(
            None,
            ["name", "hash", "steps", "description"],
            [[d.name, d.hash, " ".join(step.name for step in d.steps), d.description] for d in found],
        )


@definitions_app.command("show")
def definitions_show(name: Annotated[str, typer.Argument(help="A name, or name@hash.")]) -> None:
    """A registered definition, as JSON.

    Example: sagalog definitions show invoice
    """

    async def work() -> Definition:
        async with open_client(settings()) as client:
            return await client.definition(name)

    out.print(pretty(run(work()).model_dump(mode="json")), markup=False)


@definitions_app.command("schema")
def definitions_schema() -> None:
    """The JSON Schema of definitions, for editors and other languages.

    Example: sagalog definitions schema > sagalog.schema.json
    """
    print_json(Definition.model_json_schema())


@definitions_app.command("mermaid")
def definitions_mermaid(source: Source) -> None:
    """A definition as a Mermaid flowchart.

    Example: sagalog definitions mermaid sagalog.agents.invoices.saga:definition
    """
    out.print(mermaid(load_definition(source)), markup=False, end="", soft_wrap=True)


_FILES: Final = (".json", ".yaml", ".yml")
YAML_VALUES_MAX: Final = 100_000


def _from_yaml(raw: bytes, source: str) -> Mapping[str, Any]:
    # YAML 1.2, in which `on` and `no` are words; what stands there twice, and every tag, is refused. Loaded when it is wanted.
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if len(raw) > DEFINITION_BYTES_MAX:
        raise InvalidDefinition(source, f"is {len(raw):,} bytes, more than {DEFINITION_BYTES_MAX:,}")
    try:
        found = YAML(typ="safe", pure=True).load(raw)
    except (YAMLError, ValueError) as error:
        raise InvalidDefinition(source, f"is not YAML ({' '.join(str(error).split())[:300]})") from None
    if not isinstance(found, Mapping):
        raise InvalidDefinition(source, f"holds a {type(found).__name__}; a definition is a mapping")
    _check_aliases(found, source)
    return found


def _check_aliases(document: Mapping[str, Any], source: str) -> None:
    """Aliases of aliases grow without bound when they are written out."""
    left: list[Any] = [document]
    for _ in range(YAML_VALUES_MAX):
        if not left:
            return
        value = left.pop()
        if isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list):
            left += value
    raise InvalidDefinition(source, f"has more than {YAML_VALUES_MAX:,} values with its aliases written out")


def load_definition(source: str) -> Definition:
    """From a JSON or YAML file, or from `module:name`. Raises InvalidDefinition, NotFound."""
    path = Path(source)
    if path.suffix in _FILES or path.is_file():
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise NotFound(f"{source} cannot be read ({error.strerror}); name a file or module:name") from None
        return parse_definition(_from_yaml(raw, source) if path.suffix in (".yaml", ".yml") else raw)
    module, colon, name = source.partition(":")
    if not (module and colon and name):
        raise NotFound(f"{source!r} is neither a file nor module:name, such as sagalog.agents.invoices.saga:definition")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise NotFound(
            f"{source}: {error}; check the spelling, and that it can be imported from this directory"
        ) from None
    except SagalogError:
        raise
    except Exception as error:  # noqa: BLE001 - the module is the user's own, and may fail with anything
        raise InvalidDefinition(source, f"importing {module} failed with {type(error).__name__}: {error}") from None
    if not isinstance(found, Definition):
        raise InvalidDefinition(source, f"is a {type(found).__name__}, not a Definition")
    return found
