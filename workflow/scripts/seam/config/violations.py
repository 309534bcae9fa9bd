"""Check a configuration against its schema; one sentence says which key is wrong and what it may be."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator, ValidationError, validators

from seam.config.schema import resolved
from seam.config.wording import alternatives, bounds, closest, did_you_mean, dotted, shown
from seam.errors import UserError

RENAMED = {"together": "stack"}  # keys of earlier versions
TYPES = {
    "integer": "a whole number", "number": "a number", "string": "text", "array": "a list",
    "object": "keys with values", "null": "null", "boolean": "true or false",
}  # fmt: skip


def check_schema(config: dict[str, Any], schema: dict[str, Any]) -> None:
    """Raise UserError with a sentence about the first violation of the schema."""
    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    validator = validators.extend(Draft202012Validator, type_checker=types)
    errors = list(validator(schema).iter_errors(config))
    if errors:
        # A misspelt key often means that another is missing: name the misspelt one.
        first = next((error for error in errors if error.validator == "additionalProperties"), errors[0])
        raise UserError(_sentence(first, schema, config))


def _sentence(error: ValidationError, schema: dict[str, Any], config: dict[str, Any]) -> str:
    """Return a violation as one sentence: the key, its value, what is allowed."""
    path, rule = list(error.absolute_path), error.validator
    value: Any = error.instance
    rules: Any = error.schema
    key = dotted(path) or "The config"
    if rule == "additionalProperties":
        unknown = next(name for name in value if name not in rules["properties"])
        return _unknown_key(path, unknown, rules, schema)
    if rule == "required":
        missing = next(name for name in rules["required"] if name not in value)
        return f"{dotted([*path, missing])} is missing: docs/configuration.md says what it may be."
    if rule == "not":  # a key that the schema refuses for this kind of data set
        kind = config["datasets"][path[1]]["kind"]
        return f"{key} is not for data of kind {kind}: leave it out."
    if rule == "pattern" and "propertyNames" in error.absolute_schema_path:
        return (
            f"{key} has the name {shown(value)}, but a name can only have letters, digits, '_', '-' and '.', "
            "none of the last two first, and at most 100 of them."
        )
    if rule == "pattern":
        names = rules["pattern"].strip("^()$").split("|")
        known = rules.get("items", {}).get("enum", [])
        types = {"integer": "a whole number", "array": "a list of names"}
        if known or "integer" in rules["type"]:
            types["array"] = "a list"
        types["object"] = "groups by name"
        allowed = alternatives([*names, *(types[name] for name in rules["type"] if name in types)])
        if value in known:
            return f"{key} is {shown(value)}, but must be {allowed}: write [{value}]."
        return f"{key} is {shown(value)}, but must be {allowed}{did_you_mean(value, [*names, *known])}."
    if rule == "enum":
        allowed = rules["enum"]
        return f"{key} is {shown(value)}, but must be {alternatives(allowed)}{did_you_mean(value, allowed)}."
    if rule == "type":
        return _wrong_type(key, value, rules)
    if rule == "uniqueItems":
        repeated = next(item for item in value if value.count(item) > 1)
        return f"{key} names {shown(repeated)} twice: once is enough."
    if rule in ("minItems", "maxItems", "minProperties"):
        least, most = rules.get("minItems", rules.get("minProperties")), rules.get("maxItems")
        wanted = f"exactly {least}" if least == most else f"at least {least}"
        return f"{key} has {len(value)} value{'' if len(value) == 1 else 's'}, but needs {wanted}."
    return f"{key} is {shown(value)}, but must be {' and '.join(bounds(rules))}."


def _unknown_key(path: list[str | int], name: str, rules: dict[str, Any], schema: dict[str, Any]) -> str:
    key, known = dotted([*path, name]), list(rules["properties"])
    if not path and name in RENAMED:
        return f"{key} is not a known key: it is called {RENAMED[name]} now."
    close = closest(name, known)
    if close:
        return f"{key} is not a known key: did you mean {close}?"
    for section in known:  # a known key, but one level too high
        if name in resolved(rules["properties"][section], schema).get("properties", {}):
            return f"{key} is not a known key: it belongs in {dotted([*path, section])}."
    return f"{key} is not a known key: known are {', '.join(known)}."


def _wrong_type(key: str, value: Any, rules: dict[str, Any]) -> str:
    types = rules["type"] if isinstance(rules["type"], list) else [rules["type"]]
    beginning = f"{key} is {shown(value)}, but must be {alternatives(TYPES[name] for name in types)}"
    if isinstance(value, bool) and "string" in types:
        return f"{beginning}: put quotes around words such as yes, no, on and off, which YAML reads as true and false."
    if types == ["boolean"] and isinstance(value, str) and value.lower() in ("true", "false"):
        return f"{beginning}: write {value.lower()}, without quotes."
    number = _plain_number(value, integer="integer" in types) if {"integer", "number"} & set(types) else None
    if number and isinstance(value, str):
        why = "numbers in quotes or like 1e-3 are text to YAML, and so are nested ones in --config"
        return f"{beginning}: write {number} in a config file ({why})."
    if number:
        return f"{beginning}: write {number}."
    if value == "all" and key.endswith((".classes", ".compare_at")):
        return f"{beginning}: leave it out for all."
    if isinstance(value, (int, float)) and "string" in types and "array" not in types:
        return f"{beginning}: put quotes around it."
    if isinstance(value, str) and "array" in types:
        return f"{beginning}: write [{value}]."
    if value is None:
        return f"{beginning}: give it a value or leave it out."
    return f"{beginning}."


def _plain_number(value: Any, integer: bool) -> str | None:
    """Return text like 1e-3, or a float, as a plain decimal number.

    None if it is not a number, is not whole although an integer is wanted, or would be long.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if isinstance(value, bool) or (integer and not number.is_integer()):
        return None
    if number != 0 and not 1e-9 <= abs(number) < 1e9:
        return None
    return f"{number:.12f}".rstrip("0").rstrip(".")
