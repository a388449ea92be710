"""What a JSON Schema says about the values that fit it: whether a path can lead anywhere, and whether one schema fits another.

Two questions with two rules:
- `unreachable` is asked about any definition: it answers only what is certain. Whatever it does not understand may exist.
- `child` and `misfit` are asked by the typed builder, about schemas that were made from types: what need not fit is a misfit, as
  it is to a type checker (a text where a number is wanted, null where it must not be). Bounds, patterns and lengths are no types.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from .limits import JSON_DEPTH_MAX

REFS_MAX: Final = 32
"""References in a row that are followed; a longer chain, or a ring of them, says nothing."""
KEYS_SHOWN_MAX: Final = 12
"""Known fields that a message lists."""

_UNREADABLE: Final = frozenset(
    {
        "allOf",
        "not",
        "if",
        "then",
        "else",
        "dependentSchemas",
        "unevaluatedProperties",
        "$anchor",
        "$dynamicAnchor",
        "$dynamicRef",
    }
)
"""Keywords that are not read: a schema with one of them says nothing."""
_ALTERNATIVES: Final = ("anyOf", "oneOf")
_FORMATS: Final = frozenset(
    {"date", "date-time", "time", "duration", "uuid", "email", "uri", "ipv4", "ipv6", "ipv4network", "ipv6network"}
)
"""Formats that are types of their own: not every text is one."""
_WORDS: Final = {
    "string": "a text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A schema, or a part of one, in the document that its references point into."""

    schema: Any
    """A mapping; or True, by which everything fits, or False, by which nothing does."""
    root: Mapping[str, Any]
    null: str = ""
    """Why null may stand here although the schema does not say so; empty when it may not."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """Where a value need not be what is wanted. `path` leads from the value to it; empty is the value itself."""

    path: str
    problem: str


def shape_of(schema: Mapping[str, Any] | bool, null: str = "") -> Shape:
    return Shape(schema, schema if isinstance(schema, Mapping) else {}, null)


ANY: Final = Shape(True, {})
NULL: Final = Shape({"type": "null"}, {})


def list_of(item: Shape, null: str = "") -> Shape:
    """A list of what `item` says."""
    items = {"anyOf": [item.schema, {"type": "null"}]} if item.null else item.schema
    return Shape({"type": "array", "items": items}, item.root, null)


# --- reading


def alternatives(shape: Shape) -> list[Shape]:
    """What it may be, one by one, references resolved; [ANY] when the schema does not say."""
    return list(_alternatives(shape, 0))


def _alternatives(shape: Shape, depth: int) -> Iterator[Shape]:
    if shape.null:
        yield NULL
    schema = _resolved(shape)
    if depth > JSON_DEPTH_MAX or not isinstance(schema, Mapping) or _UNREADABLE & schema.keys():
        yield replace(shape, schema=schema is not False, null="")
        return
    for word in _ALTERNATIVES:
        if word in schema:
            if "properties" in schema or "items" in schema or not isinstance(schema[word], list):
                yield ANY
                return
            for part in schema[word]:
                yield from _alternatives(Shape(part, shape.root), depth + 1)
            return
    kinds = schema.get("type")
    if isinstance(kinds, list):
        for kind in kinds:
            yield Shape({**schema, "type": kind}, shape.root)
    elif kinds is None and ("properties" in schema or "additionalProperties" in schema):
        # By JSON Schema it may be no object at all; of a type it is one, and a path into anything else leads nowhere.
        yield Shape({**schema, "type": "object"}, shape.root)
    else:
        yield Shape(schema, shape.root)


def _resolved(shape: Shape) -> Any:
    """The schema behind its references; True when they lead nowhere that is understood."""
    schema = shape.schema
    for _ in range(REFS_MAX):
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return schema
        reference = schema["$ref"]
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            return True
        found: Any = shape.root
        for part in reference.removeprefix("#").split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        if found is None:
            return True
        schema = found
    return True


def _kind(shape: Shape) -> str:
    """The type of one alternative; empty when its schema does not say."""
    if not isinstance(shape.schema, Mapping):
        return ""
    kind = shape.schema.get("type")
    return kind if isinstance(kind, str) and kind in _WORDS else ""


def describe(shape: Shape) -> str:
    """In words: "a text", "an integer or null", "an object (Order)"."""
    found: dict[str, None] = {}
    for one in alternatives(shape):
        kind = _kind(one)
        schema = one.schema if isinstance(one.schema, Mapping) else {}
        if "const" in schema or "enum" in schema:
            values = schema.get("enum", [schema.get("const")])
            found[f"one of {', '.join(map(repr, values[:KEYS_SHOWN_MAX]))}"] = None
        elif kind == "object" and schema.get("title") and "properties" in schema:
            found[f"an object ({schema['title']})"] = None
        elif kind == "string" and schema.get("format") in _FORMATS:
            found[f"a text ({schema['format']})"] = None
        else:
            found[_WORDS.get(kind, "anything")] = None
    return " or ".join(found)


# --- paths


def unreachable(schema: Mapping[str, Any], path: str) -> str | None:
    """Why no value that fits the schema has anything at the dotted path; None when one may have."""
    found = reached((shape_of(schema),), path)
    return found if isinstance(found, str) else None


def reached(shapes: Sequence[Shape], path: str) -> Sequence[Shape] | str:
    """What may be at the dotted path of a value of one of the shapes; or why there surely is nothing."""
    parts = path.split(".") if path else []
    for place, part in enumerate(parts):
        inner: list[Shape] = []
        problems: dict[str, None] = {}
        for one in (one for shape in shapes for one in alternatives(shape)):
            found = _open_child(one, part)
            if isinstance(found, str):
                problems[found] = None
            else:
                inner.append(found)
        if not inner:
            so_far = ".".join(parts[:place]) or "it"
            return f"{so_far} {' or '.join(filter(None, problems)) or 'is null'}"
        shapes = inner
    return shapes


def items_of(shapes: Sequence[Shape]) -> Sequence[Shape] | str:
    """What an item of a list of these shapes may be; or what they are when they surely are no list."""
    found: list[Shape] = []
    others: dict[str, None] = {}
    for one in (one for shape in shapes for one in alternatives(shape)):
        kind = _kind(one)
        if not kind:
            found.append(ANY)
        elif kind == "array":
            first = one.schema.get("prefixItems", ())
            found += [Shape(schema, one.root) for schema in (*first, one.schema.get("items", True))]
        else:
            others[describe(one)] = None
    return found or " or ".join(others)


def _open_child(shape: Shape, part: str) -> Shape | str:
    """One alternative's part, or why there surely is none (empty for null, which explains nothing)."""
    schema, kind = shape.schema, _kind(shape)
    if kind == "object":
        properties = schema.get("properties", {})
        if part in properties:
            return "may not have it" if properties[part] is False else Shape(properties[part], shape.root)
        if part.isdecimal() or schema.get("additionalProperties") is not False or "patternProperties" in schema:
            # A number may be an index: without a type the schema allows a list, too.
            return ANY
        return f"has no field {part!r}; {_known(properties)}"
    if kind == "array":
        if not part.isdecimal():
            return f"is a list; an index is wanted where {part!r} stands"
        return _element(shape, int(part))
    if kind == "null":
        return ""
    return f"is {describe(shape)} and has no parts" if kind else ANY


def _element(shape: Shape, place: int) -> Shape | str:
    first = shape.schema.get("prefixItems", ())
    if place < len(first):
        return Shape(first[place], shape.root)
    rest = shape.schema.get("items", True)
    longest = shape.schema.get("maxItems")
    if rest is False or (isinstance(longest, int) and place >= longest):
        return f"is a list of {longest if longest is not None else len(first)} at most"
    return Shape(rest, shape.root)


def child(shape: Shape, part: str) -> Shape | str:
    """What a value has at a key or an index; or why it has nothing there that its type declares."""
    found: list[Shape] = []
    problems: list[str] = []
    null = ""
    for one in alternatives(shape):
        kind = _kind(one)
        if not kind:
            return ANY
        if kind == "null":
            null = shape.null or "what it is taken from may be null"
            continue
        inner = _declared(one, part)
        if isinstance(inner, str):
            problems.append(inner)
        else:
            found.append(inner)
            null = null or inner.null
    if not found:
        return " or ".join(dict.fromkeys(problems)) or "is null"
    if problems:
        null = null or "not everything that it is taken from has that field"
    if len(found) == 1:
        return replace(found[0], null=null)
    return Shape({"anyOf": [one.schema for one in found]}, shape.root, null)


def _declared(shape: Shape, part: str) -> Shape | str:
    schema, kind = shape.schema, _kind(shape)
    if kind == "object":
        properties = schema.get("properties", {})
        if part in properties:
            missing = "" if part in schema.get("required", ()) else f"{part!r} may be left out, and then it is null"
            return Shape(properties[part], shape.root, missing)
        rest = schema.get("additionalProperties", not properties)
        if rest is False or "patternProperties" in schema:
            return f"has no field {part!r}; {_known(properties)}"
        return (
            Shape(rest, shape.root, f"the key {part!r} need not be there")
            if isinstance(rest, Mapping) and rest
            else ANY
        )
    if kind == "array" and part.isdecimal():
        inner = _element(shape, int(part))
        if isinstance(inner, str) or int(part) < schema.get("minItems", 0):
            return inner
        return replace(inner, null=f"the list need not have an element {part}")
    if kind == "array":
        return f"is a list and has no field {part!r}; take an element by its index, or map over it"
    return f"is {describe(shape)} and has no field {part!r}"


def _known(properties: Iterable[str]) -> str:
    names = list(properties)
    more = f" and {len(names) - KEYS_SHOWN_MAX} more" if len(names) > KEYS_SHOWN_MAX else ""
    return f"it has {', '.join(names[:KEYS_SHOWN_MAX])}{more}" if names else "it has none"


# --- fitting


def misfit(source: Shape, target: Shape) -> Misfit | None:
    """Where a value of `source` need not be one of `target`; None when it fits, as far as the schemas say."""
    return _misfit(source, target, "", ())


def _misfit(source: Shape, target: Shape, path: str, seen: tuple[tuple[Any, Any], ...]) -> Misfit | None:
    pair = (_key(source), _key(target))
    if pair in seen or len(seen) > JSON_DEPTH_MAX:
        return None  # a model that holds itself: what is inside was compared on the way here
    wanted = alternatives(target)
    for one in alternatives(source):
        problems = [_one_misfit(one, other, path, (*seen, pair)) for other in wanted]
        if not all(problems):
            continue
        if _kind(one) == "null":
            return Misfit(path, f"may be null{f' ({source.null})' if source.null else ''}")
        # The alternative of the same kind says most about what is wrong.
        alike = [problem for problem, other in zip(problems, wanted, strict=True) if _kind(other) == _kind(one)]
        found = alike[0] if len(alike) == 1 else None
        return found or Misfit(path, f"is {describe(one)}, where {describe(target)} is wanted")
    return None


def _key(shape: Shape) -> Any:
    schema = shape.schema
    return (schema["$ref"] if isinstance(schema, Mapping) and "$ref" in schema else id(schema), id(shape.root))


def _one_misfit(source: Shape, target: Shape, path: str, seen: tuple[tuple[Any, Any], ...]) -> Misfit | None:
    """Of one alternative each."""
    if target.schema is False:
        return Misfit(path, "may not be there")
    kind, wanted = _kind(source), _kind(target)
    values = _values(source)
    if not kind and values is None:
        return None
    if _values(target) is not None:
        return _values_misfit(source, target, path)
    if not wanted:
        return None
    if not kind:
        kinds = {_kind_of(value) for value in values or ()}
        kind = kinds.pop() if len(kinds) == 1 else ""
    if kind != wanted and not (kind == "integer" and wanted == "number"):
        return Misfit(path, f"is {describe(source)}, where {describe(target)} is wanted")
    if wanted == "object":
        return _object_misfit(source, target, path, seen)
    if wanted == "array":
        return _list_misfit(source, target, path, seen)
    form = target.schema.get("format")
    if wanted == "string" and form in _FORMATS and source.schema.get("format") != form and values is None:
        return Misfit(path, f"is {describe(source)}, where {describe(target)} is wanted")
    return None


def _values(shape: Shape) -> list[Any] | None:
    """The only values that it may be; None when they are not listed."""
    if not isinstance(shape.schema, Mapping):
        return None
    if "const" in shape.schema:
        return [shape.schema["const"]]
    listed = shape.schema.get("enum")
    return listed if isinstance(listed, list) else None


def _kind_of(value: Any) -> str:
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


def _values_misfit(source: Shape, target: Shape, path: str) -> Misfit | None:
    allowed, given = _values(target) or [], _values(source)
    if given is None:
        return Misfit(path, f"is {describe(source)}, where {describe(target)} is wanted")
    for value in given:
        if value not in allowed:
            return Misfit(path, f"may be {value!r}, where {describe(target)} is wanted")
    return None


def _object_misfit(source: Shape, target: Shape, path: str, seen: tuple[tuple[Any, Any], ...]) -> Misfit | None:
    has, wants = source.schema.get("properties", {}), target.schema.get("properties", {})
    rest = target.schema.get("additionalProperties", True)
    for name in target.schema.get("required", ()):
        if name in has and name not in source.schema.get("required", ()):
            return Misfit(_join(path, name), "may be left out, and is wanted")
        if name not in has and source.schema.get("additionalProperties", not has) is False:
            return Misfit(path, f"has no field {name!r}, which is wanted; {_known(has)}")
        if name not in has:
            return Misfit(path, f"need not have a field {name!r}, which is wanted")
    for name, schema in has.items():
        inner = wants.get(name, rest)
        if inner is False:
            return Misfit(path, f"has a field {name!r}, which is not allowed there; {_known(wants)}")
        found = _misfit(Shape(schema, source.root), Shape(inner, target.root), _join(path, name), seen)
        if found is not None:
            return found
    more = source.schema.get("additionalProperties")
    if isinstance(more, Mapping) and isinstance(rest, Mapping):
        return _misfit(Shape(more, source.root), Shape(rest, target.root), _join(path, "*"), seen)
    return None


def _list_misfit(source: Shape, target: Shape, path: str, seen: tuple[tuple[Any, Any], ...]) -> Misfit | None:
    has, wants = source.schema, target.schema
    first = wants.get("prefixItems", [])
    given = has.get("prefixItems", [])
    least = wants.get("minItems", 0) if first else 0
    if has.get("minItems", 0) < least or (first and len(given) != len(first)):
        return Misfit(path, f"is a list of another length than the {len(first)} that are wanted")
    for place, schema in enumerate(given):
        inner = first[place] if first else wants.get("items", True)
        found = _misfit(Shape(schema, source.root), Shape(inner, target.root), _join(path, str(place)), seen)
        if found is not None:
            return found
    if given or first:
        return None
    items = (Shape(has.get("items", True), source.root), Shape(wants.get("items", True), target.root))
    return _misfit(*items, _join(path, "*"), seen)


def _join(path: str, part: str) -> str:
    return f"{path}.{part}" if path else part
