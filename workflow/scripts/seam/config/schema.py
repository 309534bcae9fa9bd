"""The schema of the configuration: shapes, bounds and defaults, and a sentence for each violation."""

import contextlib
import copy
import functools
import math
import operator
import os
from pathlib import Path

import yaml
from jsonschema import Draft202012Validator, validators

from seam.config.wording import alternatives, closest, did_you_mean, dotted, shown
from seam.errors import UserError


def read_schema(path):
    """Return the JSON schema in this YAML file."""
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def require_unique_keys(path):
    """Raises UserError where the YAML file has a key twice: of two YAML keeps the last, and says nothing."""

    def look(node, where):
        if isinstance(node, yaml.SequenceNode):
            for number, entry in enumerate(node.value):
                look(entry, [*where, number])
        elif isinstance(node, yaml.MappingNode):
            seen = {}
            for key, value in node.value:
                name = str(key.value)
                if name in seen and key.tag != "tag:yaml.org,2002:merge":
                    key_twice, lines = dotted([*where, name]), f"{seen[name]} and {key.start_mark.line + 1}"
                    raise UserError(
                        f"{path} has {key_twice} twice (lines {lines}), and only the last counts: join them."
                    )
                seen[name] = key.start_mark.line + 1
                look(value, [*where, name])

    with contextlib.suppress(yaml.YAMLError), open(path, encoding="utf-8") as file:  # Snakemake reads JSON, too
        look(yaml.compose(file, Loader=yaml.SafeLoader), [])


def check_schema(config, schema):
    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, x: type(x) is int)
    checker = validators.extend(Draft202012Validator, type_checker=types)
    errors = list(checker(schema).iter_errors(config))
    if errors:
        # A misspelt key often means a missing one too: name the misspelt one.
        first = next((error for error in errors if error.validator == "additionalProperties"), errors[0])
        raise UserError(sentence(first, schema, config))


def sentence(error, schema, config):
    """A jsonschema ValidationError of the config as one sentence: the key, what was found, what is allowed."""
    path, value, rule, rules = list(error.absolute_path), error.instance, error.validator, error.schema
    key = dotted(path) or "The config"
    if rule == "additionalProperties":
        unknown = next(name for name in value if name not in rules["properties"])
        return _unknown_key(path, unknown, rules, schema)
    if rule == "required":
        missing = next(name for name in error.validator_value if name not in value)
        return f"{dotted([*path, missing])} is missing: docs/configuration.md says what it may be."
    if rule == "not":  # a key that the schema refuses for this kind of data set
        kind = functools.reduce(operator.getitem, path[:-1], config)["kind"]
        return f"{key} is not for data of kind {kind}: leave it out."
    if rule == "pattern" and "propertyNames" in error.absolute_schema_path:
        return (
            f"{key} has the name {shown(value)}, but a name can only have letters, digits, '_', '-' and '.', "
            "and none of the last two first."
        )
    if rule == "pattern":
        names = rules["pattern"].strip("^()$").split("|")
        allowed = f"{', '.join(names)}, a list of names or groups by name"
        return f"{key} is {shown(value)}, but must be {allowed}{did_you_mean(value, names)}."
    if rule == "enum":
        return (
            f"{key} is {shown(value)}, but must be {alternatives(rules['enum'])}{did_you_mean(value, rules['enum'])}."
        )
    if rule == "type":
        return _wrong_type(key, value, rules)
    if rule == "uniqueItems":
        twice = next(item for item in value if value.count(item) > 1)
        return f"{key} names {shown(twice)} twice: once is enough."
    if rule in ("minItems", "maxItems", "minProperties"):
        least, most = rules.get("minItems", rules.get("minProperties")), rules.get("maxItems")
        wanted = f"exactly {least}" if least == most else f"at least {least}"
        return f"{key} has {len(value)} value{'' if len(value) == 1 else 's'}, but needs {wanted}."
    return f"{key} is {shown(value)}, but must be {_range(rules)}."


def _unknown_key(path, name, rules, schema):
    key, known = dotted([*path, name]), list(rules["properties"])
    close = closest(name, known)
    if close:
        return f"{key} is not a known key: did you mean {close}?"
    for section in known:  # right, but one level too high
        inner = _resolved(rules["properties"][section], schema)
        if isinstance(inner, dict) and name in inner.get("properties", {}):
            return f"{key} is not a known key: it belongs in {dotted([*path, section])}."
    return f"{key} is not a known key: known are {', '.join(known)}."


def _wrong_type(key, value, rules):
    words = {
        "integer": "a whole number", "number": "a number", "string": "text", "array": "a list",
        "object": "keys with values", "null": "null", "boolean": "true or false",
    }  # fmt: skip
    kinds = rules["type"] if isinstance(rules["type"], list) else [rules["type"]]
    problem = f"{key} is {shown(value)}, but must be {alternatives([words[kind] for kind in kinds])}"
    if isinstance(value, bool) and "string" in kinds:
        return f"{problem}: put quotes around words such as yes, no, on and off, which YAML reads as true and false."
    if kinds == ["boolean"] and isinstance(value, str) and value.lower() in ("true", "false"):
        return f"{problem}: write {value.lower()}, without quotes."
    number = _number(value, whole="integer" in kinds) if {"integer", "number"} & set(kinds) else None
    if number and isinstance(value, str):
        why = "numbers in quotes or like 1e-3 are text to YAML, and so are nested ones in --config"
        return f"{problem}: write {number} in a config file ({why})."
    if number:
        return f"{problem}: write {number}."
    if value == "all" and key.endswith((".classes", ".compare_at")):
        return f"{problem}: leave it out for all."
    if isinstance(value, (int, float)) and "string" in kinds and "array" not in kinds:
        return f"{problem}: put quotes around it."
    if isinstance(value, str) and "array" in kinds:
        return f"{problem}: write [{value}]."
    if value is None:
        return f"{problem}: give it a value or leave it out."
    return f"{problem}."


def _number(value, whole):
    """Text like 1e-3, or a float, as a plain decimal number; None if it is none, is not `whole` or would be long."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if isinstance(value, bool) or (whole and not number.is_integer()) or not (number == 0 or 1e-9 <= abs(number) < 1e9):
        return None
    return f"{number:.12f}".rstrip("0").rstrip(".")


def _range(rules):
    words = {
        "minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"
    }  # fmt: skip
    return " and ".join(f"{text} {rules[rule]}" for rule, text in words.items() if rule in rules)


def _resolved(schema, root):
    """The schema with what its `$ref` points to put in its place; what stands beside the `$ref` wins."""
    if isinstance(schema, dict) and "$ref" in schema:
        return {**root["$defs"][schema["$ref"].rpartition("/")[2]], **schema}
    return schema


def _properties(schema, value):
    """{key: schema} of an object, with what its `allOf` says for a value of this kind folded in."""
    properties = dict(schema.get("properties", {}))
    for case in schema.get("allOf", []):
        if Draft202012Validator(case["if"]).is_valid(value):
            for key, rules in case["then"].get("properties", {}).items():
                properties[key] = {**properties[key], **rules}
    return properties


def with_defaults(value, schema, root):
    """A copy of a valid value with the defaults of its schema; a default mapping fills in what is not given."""
    schema = _resolved(schema, root)
    if isinstance(value, list):
        return [with_defaults(item, schema.get("items", {}), root) for item in value]
    if isinstance(value, dict):
        properties = {key: _resolved(rules, root) for key, rules in _properties(schema, value).items()}
        for key, rules in properties.items():
            default = copy.deepcopy(rules.get("default"))
            if isinstance(default, dict):
                value = {**value, key: merged(default, value.get(key, {}))}
            elif "default" in rules and "not" not in rules and key not in value:
                value = {**value, key: default}
        others = schema.get("additionalProperties") or {}
        return {key: with_defaults(item, properties.get(key, others), root) for key, item in value.items()}
    if schema.get("type") == "number":
        return float(value)
    return value


def text_keys(value, path=()):
    """A copy in which whole numbers as keys are text. Raises UserError for keys and numbers that YAML makes by
    surprise: true (from yes), null, infinite ones."""
    if isinstance(value, list):
        return [text_keys(item, (*path, i)) for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{dotted(path)} is {value}, but must be a finite number.")
    if not isinstance(value, dict):
        return value
    for key in value:
        if not isinstance(key, (str, int)) or isinstance(key, bool):
            where = dotted(path) or "The config"
            raise UserError(f"{where} has the key {shown(key)}, which is not text: put quotes around what was meant.")
    return {str(key): text_keys(item, (*path, str(key))) for key, item in value.items()}


def normalised(config):
    """Class names as text, and `~` in paths replaced."""
    for dataset in config["datasets"].values():
        if dataset["classes"] is not None:
            dataset["classes"] = list(map(str, dataset["classes"]))
        for key in ("root", "groups"):
            if dataset.get(key):
                dataset[key] = _expanded(dataset[key])
    for model in config["models"].values():
        model.update({key: _expanded(model[key]) for key in ("architecture", "weights")})
    for entry in config["direct_reuse"]:
        targets = entry["targets"]
        if isinstance(targets, list):
            entry["targets"] = list(map(str, targets))
        elif isinstance(targets, dict):
            entry["targets"] = {name: list(map(str, classes)) for name, classes in targets.items()}
    return config


def _expanded(path):
    return os.path.expanduser(path)  # which leaves an unknown user's as it is


def merged(under, over):
    """`under` with what `over` has in its place, key by key, also within dictionaries."""
    inner = {key: merged(under[key], value) for key, value in over.items() if isinstance(under.get(key), dict)}
    return {**under, **over, **inner}
