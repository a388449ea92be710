"""References: what a saga's steps take, before any of it is there. They become bindings of the definition.

To the type checker a reference is the value that it will stand for, so that it finds a wrong field, a wrong type and a missing
argument. At run time it knows two things: its binding, and the shape that the models give it.

Rules:
- A reference leads to fields and elements and nothing else: whatever would need the value itself (a comparison, an `if`, text made
  of it) is refused, with the remedy.
- What a type checker cannot see (a default that nobody fills in, an output that may be missing) makes the shape nullable, with
  the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Generic, NoReturn, ParamSpec, TypeVar, cast, overload

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from sagalog.schemas.definitions import Binding, Fields, FromInput, FromItem, FromStep, Value
from sagalog.schemas.errors import InvalidDefinition
from sagalog.schemas.ids import Direction
from sagalog.schemas.shapes import Shape, child

from .agent import Agent
from .context import Context

P = ParamSpec("P")
T = TypeVar("T")

CONTEXT: Final = cast(Context, object())
"""Stands where an agent's function has its context, in `bind(agent, ...)`: the host fills it."""


class NotThere(InvalidDefinition, AttributeError):
    """A field that the type of a reference does not have."""


class Ref:
    """A value that will be there when the workflow runs. Made by a saga; to the type checker it is that value."""

    __slots__ = ("_binding", "_shape", "_source")

    def __init__(self, binding: FromInput | FromStep | FromItem, shape: Shape, source: object) -> None:
        self._binding = binding
        self._shape = shape
        self._source = source
        """Whose it is: a saga, or a step for its items."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            # What copies, inspects or prints asks for such names, and takes the answer no.
            raise AttributeError(name)
        return _inner(self, name)

    def __getitem__(self, key: str | int) -> Any:
        return _inner(self, str(key))

    def __repr__(self) -> str:
        return f"<reference {said(self._binding)}>"

    __hash__ = object.__hash__


def _inner(ref: Ref, part: str) -> Any:
    where = said(ref._binding)
    if not part or "." in part:
        raise NotThere(where, f"the key {part!r} cannot be reached by a path; let an agent take it out")
    found = child(ref._shape, part)
    if isinstance(found, str):
        raise NotThere(where, f"{found}; take what is there, or change the model")
    return Ref(extended(ref._binding, part), found, ref._source)


def _refuse(name: str) -> Callable[..., NoReturn]:
    def refuse(self: Ref, *_: object) -> NoReturn:
        raise InvalidDefinition(
            said(self._binding),
            f"is not known before the workflow runs, and {name} needs its value; decide with `when`, loop with `map`, "
            "and compute in an agent",
        )

    return refuse


_REFUSED: Final = (
    *("bool", "eq", "ne", "lt", "le", "gt", "ge", "iter", "len", "contains", "str", "format", "int", "float", "index", "call"),
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "rfloordiv", "mod", "rmod", "pow", "rpow"),
    *("and", "rand", "or", "ror", "xor", "rxor", "neg", "abs", "invert", "setitem", "await"),
)  # fmt: skip
for _name in _REFUSED:
    setattr(Ref, f"__{_name}__", _refuse(f"__{_name}__"))


def said(binding: FromInput | FromStep | FromItem) -> str:
    """A reference as messages name it."""
    match binding:
        case FromInput(input=path):
            root = "input"
        case FromStep(step=step, path=path):
            root = f"{step}.output"
        case FromItem(item=path):
            root = "item"
    return f"{root}.{path}" if path else root


def extended(binding: FromInput | FromStep | FromItem, part: str) -> FromInput | FromStep | FromItem:
    match binding:
        case FromInput(input=path):
            return FromInput(input=f"{path}.{part}" if path else part)
        case FromStep(step=step, path=path):
            return FromStep(step=step, path=f"{path}.{part}" if path else part)
        case FromItem(item=path):
            return FromItem(item=f"{path}.{part}" if path else part)


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """An object that is made field by field, of references and constants."""

    what: type[BaseModel] | Agent[..., Any] | None
    fields: Mapping[str, Any]
    """By their names in JSON."""


class Given(Generic[P]):
    """To the type checker: the arguments of an agent's function."""


@overload
def bind(what: Agent[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Given[P]: ...


@overload
def bind(what: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...


def bind(what: Any, /, *args: Any, **kwargs: Any) -> Any:
    """An input made of references and constants: of a model's fields, or of the parameters of an agent's function.

        bind(Charge, amount=saga.input.amount, reservation=reserved.output.id)
        bind(charge_card, amount=saga.input.amount, ctx=CONTEXT)

    Arguments are named. Raises InvalidDefinition for what is neither, and for a field that is not there.
    """
    if isinstance(what, Agent):
        name = f"bind({what.__name__})"
        handler = what.handler(Direction.EXECUTE)
        known = {field: field for field in (handler.fields or filter(None, (handler.whole,)))}
        given = {key: value for key, value in kwargs.items() if value is not CONTEXT}
    elif isinstance(what, type) and issubclass(what, BaseModel):
        name = f"bind({what.__name__})"
        known = {field: _json_name(what, field) for field in what.model_fields}
        known |= {alias: alias for alias in known.values()}  # its constructor takes aliases
        given = kwargs
    else:
        raise InvalidDefinition("bind", f"{what!r} is neither a pydantic model nor an agent; name one of the two")
    if args:
        raise InvalidDefinition(name, "takes its fields by name; write field=...")
    for key in given:
        if key not in known:
            raise InvalidDefinition(f"{name}.{key}", f"is no field of it; it has {', '.join(known) or 'none'}")
    if isinstance(what, Agent) and len(known) == 1:
        # One parameter gets the whole input.
        return next(iter(given.values()), Bound(what, {}))
    return Bound(what, {known[key]: value for key, value in given.items()})


def _json_name(model: type[BaseModel], name: str) -> str:
    alias = model.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else name


def lowered(value: Any, where: str) -> Binding:
    """The binding that a value becomes: of a reference its own, of a constant its JSON. Raises InvalidDefinition."""
    if isinstance(value, Ref):
        return value._binding
    if isinstance(value, FromInput | FromStep | FromItem | Value | Fields):
        return value
    if isinstance(value, Bound):
        return Fields(fields={name: lowered(inner, f"{where}.{name}") for name, inner in value.fields.items()})
    if isinstance(value, Mapping) and holds_reference(value):
        return Fields(fields={str(name): lowered(inner, f"{where}.{name}") for name, inner in value.items()})
    return Value(value=constant(value, where))


def constant(value: Any, where: str) -> Any:
    """The JSON of a constant: of a model, a date, a Decimal, ... Raises InvalidDefinition."""
    if holds_reference(value):
        raise InvalidDefinition(
            where, "is made of references where only constants can stand; bind them to fields, or let an agent make it"
        )
    try:
        return to_jsonable_python(value)
    except PydanticSerializationError as error:
        raise InvalidDefinition(
            where, f"is no constant that can be written as JSON ({str(error).splitlines()[0]}); bind it with bind(...)"
        ) from None


def holds_reference(value: Any) -> bool:
    """Whether it is, or has anywhere inside, what is not known yet."""
    if isinstance(value, Mapping):
        return any(map(holds_reference, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(holds_reference, value))
    return isinstance(value, Ref | Bound)


def references(value: Any) -> Iterator[Ref]:
    """Every reference inside."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, Bound):
        for inner in value.fields.values():
            yield from references(inner)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from references(inner)
