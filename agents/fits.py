"""Whether what a step is given fits what it takes, by the schemas of both: what a type checker cannot see of a saga.

Rule: a message names the place in the definition, what is there and why, and what is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sagalog.schemas.definitions import FromStep, SchemaValidator
from sagalog.schemas.errors import InvalidDefinition
from sagalog.schemas.shapes import Misfit, Shape, alternatives, describe, misfit, shape_of

from .agent import Agent
from .refs import Bound, Ref, constant, holds_reference, said


@dataclass(frozen=True, slots=True)
class Unsure:
    """Own outputs of a step, as its undoing sees them: null when nobody knows whether the step took effect."""

    step: str
    why: str


def check_fits(value: Any, target: Shape, where: str, taker: str, unsure: Unsure | None = None) -> None:
    """Raises InvalidDefinition when `value` (a reference, what is bound, a constant) need not fit `target`, which `taker` takes."""
    if isinstance(value, Ref):
        _check_shape(_shape(value, unsure), target, where, said(value._binding), taker)
    elif isinstance(value, Shape):
        _check_shape(value, target, where, "what is there", taker)
    elif isinstance(value, Bound):
        if isinstance(value.what, type):
            # What the model itself wants, before what takes it: so that an object that nobody takes is checked, too.
            own = shape_of(value.what.model_json_schema())
            _check_fields(value.fields, own, where, value.what.__name__, unsure)
        elif isinstance(value.what, Agent):
            taker = f"agent {value.what.name!r}"
        _check_fields(value.fields, target, where, taker, unsure)
    elif isinstance(value, Mapping) and (holds_reference(value) or any(isinstance(v, Shape) for v in value.values())):
        _check_fields(value, target, where, taker, unsure)
    else:
        _check_constant(constant(value, where), target, where, taker)


def _shape(ref: Ref, unsure: Unsure | None) -> Shape:
    binding = ref._binding
    if unsure is not None and isinstance(binding, FromStep) and binding.step == unsure.step:
        return replace(ref._shape, null=ref._shape.null or unsure.why)
    return ref._shape


def _check_shape(source: Shape, target: Shape, where: str, what: str, taker: str) -> None:
    found = misfit(source, target)
    if found is not None:
        raise _refused(found, where, what, taker, target)


def _refused(found: Misfit, where: str, what: str, taker: str, target: Shape) -> InvalidDefinition:
    place = f"{what}.{found.path}" if found.path else what
    wanted = "" if "wanted" in found.problem or found.path else f", where {describe(target)} is wanted"
    if found.problem.startswith("may be null"):
        remedy = "give it a default, or let the model allow null"
    elif found.problem.startswith("may be left out"):
        remedy = "make it required in the model that it comes from, or give it a default in the model that takes it"
    else:
        remedy = "bind another value, or change one of the models"
    return InvalidDefinition(where, f"{taker} takes it, and {place} {found.problem}{wanted}; {remedy}")


def _check_fields(fields: Mapping[str, Any], target: Shape, where: str, taker: str, unsure: Unsure | None) -> None:
    objects = [one for one in alternatives(target) if not isinstance(one.schema, Mapping) or _may_be_object(one)]
    if not objects:
        raise InvalidDefinition(where, f"is an object, where {taker} takes {describe(target)}; bind one value instead")
    problems: list[InvalidDefinition] = []
    for one in objects:
        try:
            _check_object(fields, one, where, taker, unsure)
        except InvalidDefinition as error:
            problems.append(error)
    if len(problems) == len(objects):
        raise problems[0]


def _may_be_object(shape: Shape) -> bool:
    return bool(shape.schema.get("type", "object") == "object")


def _check_object(fields: Mapping[str, Any], target: Shape, where: str, taker: str, unsure: Unsure | None) -> None:
    if not isinstance(target.schema, Mapping) or "type" not in target.schema:
        return
    properties = target.schema.get("properties", {})
    rest = target.schema.get("additionalProperties", not properties)
    for name in target.schema.get("required", ()):
        if name not in fields:
            raise InvalidDefinition(f"{where}.{name}", f"is missing, and {taker} wants it; bind it")
    for name, value in fields.items():
        wanted = properties.get(name, rest)
        if wanted is False:
            raise InvalidDefinition(
                f"{where}.{name}", f"is nothing that {taker} takes; it takes {', '.join(properties) or 'no fields'}"
            )
        check_fits(value, Shape(wanted, target.root), f"{where}.{name}", taker, unsure)


def _check_constant(value: Any, target: Shape, where: str, taker: str) -> None:
    schema = target.schema
    if isinstance(schema, Mapping) and schema is not target.root and "$defs" in target.root:
        schema = {**schema, "$defs": target.root["$defs"]}
    if not isinstance(schema, Mapping):
        return
    problem = SchemaValidator(schema, where).problem(value)
    if problem is not None:
        place, _, what = problem.partition(": ")
        raise InvalidDefinition(place, f"is a constant that {taker} does not take: {what}; give it another one")
