"""Conditions: CEL (Common Expression Language) over a workflow's input and the outputs of its steps; and keys of limits.

    input.amount > 1000.0 && steps.read.confidence < 0.9

Rules:
- An expression is compiled when its definition is checked: wrong syntax and unknown names are refused there, with the remedy.
- Evaluating reads no clock and no chance, and its cost is bounded: the length of an expression and its loops are.

Source: https://cel.dev (the language), cel-rust (the evaluator behind the Python package).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from hashlib import blake2b
from typing import Any, Final

import cel
import orjson

from .errors import InvalidDefinition
from .limits import CONDITION_CHARS_MAX, CONDITION_MACROS_MAX, LIMIT_KEY_CHARS_MAX

_VARIABLES: Final = ("input", "steps")
_KEY_VARIABLES: Final = ("input", "tenant", "service")
_MACRO: Final = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(\s*(\w+)")
_STEPS: Final = re.compile(r"(?<![.\w])steps\b(?:\s*\.\s*(\w+)|\s*\[\s*[\"']([^\"']*)[\"']\s*\])?")
_TEXT: Final = re.compile(r"(?<!\[)(?:\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')")
"""A string that is not an index."""


class ConditionFailed(Exception):
    """The expression could not be evaluated with these values; the message says why."""


class Condition:
    """A compiled expression that is true or false. Raises InvalidDefinition when it cannot be one."""

    __slots__ = ("_program", "source", "steps")

    def __init__(self, source: str, where: str, reachable: Set[str]) -> None:
        self.source = source
        self._program = _compiled(source, where, _VARIABLES)
        self.steps = _named_steps(source, where, reachable)
        """The steps whose outputs it looks at."""

    def holds(self, value: Any, outputs: Mapping[str, Any]) -> bool:
        """Whether it is true of the workflow's input and the outputs of `steps` by name. Raises ConditionFailed."""
        try:
            found = self._program.execute({"input": value, "steps": outputs})
        except Exception as error:  # noqa: BLE001 - whatever the evaluator raises: the values do not fit the expression
            why = f"{type(error).__name__}: {_first_line(error)}"
            raise ConditionFailed(f"its condition {self.source!r} cannot be evaluated: {why}") from None
        if found is not True and found is not False:
            raise ConditionFailed(f"its condition {self.source!r} is {type(found).__name__}, neither true nor false")
        return found


class Key:
    """A compiled expression that says under which key of a limit a command counts. Raises InvalidDefinition when it cannot."""

    NONE: Final = "(none)"
    """The key of values for which there is none: what it looks at is missing, or is no text, number or the like."""

    __slots__ = ("_program",)

    def __init__(self, source: str, where: str) -> None:
        self._program = _compiled(source, where, _KEY_VARIABLES)

    def of(self, value: Any, tenant: str | None, service: str | None) -> str:
        """The key for a workflow's input, its tenant, and the step's service. Never raises."""
        try:
            found = self._program.execute({"input": value, "tenant": tenant, "service": service})
            text = found if isinstance(found, str) else orjson.dumps(found, option=orjson.OPT_SORT_KEYS).decode()
        except Exception:  # noqa: BLE001 - whatever the evaluator raises: the values do not fit the expression
            return self.NONE
        if text == "null":
            return self.NONE
        if len(text) > LIMIT_KEY_CHARS_MAX:
            return blake2b(text.encode(errors="replace"), digest_size=16).hexdigest()
        return text


def _compiled(source: str, where: str, variables: tuple[str, ...]) -> cel.Program:
    if len(source) > CONDITION_CHARS_MAX:
        raise InvalidDefinition(where, f"is {len(source):,} characters, more than {CONDITION_CHARS_MAX:,}")
    bound = _MACRO.findall(source)
    if len(bound) > CONDITION_MACROS_MAX:
        raise InvalidDefinition(where, f"has more than {CONDITION_MACROS_MAX} loops; let an agent decide instead")
    try:
        program = cel.compile(source)
    except ValueError as error:
        raise InvalidDefinition(where, f"is no CEL expression ({_first_line(error)})") from None
    for name in program.variables():
        if name not in variables and name not in bound:
            raise InvalidDefinition(where, f"names {name!r}, which is unknown; there are {' and '.join(variables)}")
    return program


def _named_steps(source: str, where: str, reachable: Set[str]) -> tuple[str, ...]:
    named: dict[str, None] = {}
    for found in _STEPS.finditer(_TEXT.sub("''", source)):
        name = found.group(1) or found.group(2)
        if name is None:
            # size(steps), a computed name: it would see those that have ended, whichever these are.
            raise InvalidDefinition(where, "uses `steps` without naming one: write steps.name or steps['name']")
        if name not in reachable:
            raise InvalidDefinition(
                where, f"takes the output of {name!r}, which need not have ended by then; add it to needs"
            )
        named[name] = None
    return tuple(named)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
