"""The schema of the configuration, and the rewriting of a configuration that does not depend on its meaning."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from seam.config.wording import dotted, shown
from seam.errors import UserError


def read_schema(path: str | Path) -> dict[str, Any]:
    """Return the JSON schema in this YAML file."""
    return yaml.safe_load(Path(path).read_text(encoding="utf-8"))


def resolved(rules: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return rules with the definition that their `$ref` names merged in; keys beside the `$ref` win."""
    if "$ref" in rules:
        return {**schema["$defs"][rules["$ref"].rpartition("/")[2]], **rules}
    return rules


def require_unique_keys(path: str | Path) -> None:
    """Raise UserError if the YAML file has a key twice: YAML itself silently keeps the last of the two."""
    with contextlib.suppress(yaml.YAMLError), open(path, encoding="utf-8") as file:  # Snakemake reads JSON, too
        for key, first, second in _repeated_keys(yaml.compose(file, Loader=yaml.SafeLoader), []):
            raise UserError(
                f"{path} has {key} twice (lines {first} and {second}), and only the last counts: join them."
            )


def _repeated_keys(node: yaml.Node | None, path: list[str | int]) -> Iterator[tuple[str, int, int]]:
    """Yield (key, line, line of its repetition) of every key that a mapping under this node has twice."""
    if isinstance(node, yaml.SequenceNode):
        for place, entry in enumerate(node.value):
            yield from _repeated_keys(entry, [*path, place])
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and key.tag != "tag:yaml.org,2002:merge":
                yield dotted([*path, name]), lines[name], line
            lines[name] = line
            yield from _repeated_keys(value, [*path, name])


def with_text_keys(value: Any, path: tuple[str | int, ...] = ()) -> Any:
    """Return a copy of the configuration in which keys that are whole numbers are text.

    Raises UserError for keys and numbers that YAML makes by surprise: true (from yes), null, infinite numbers.
    """
    if isinstance(value, list):
        return [with_text_keys(item, (*path, place)) for place, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{dotted(path)} is {value}, but must be a finite number.")
    if not isinstance(value, dict):
        return value
    for key in value:
        if not isinstance(key, (str, int)) or isinstance(key, bool):
            where = dotted(path) or "The config"
            raise UserError(f"{where} has the key {shown(key)}, which is not text: put quotes around what was meant.")
    return {str(key): with_text_keys(item, (*path, str(key))) for key, item in value.items()}


def with_defaults(value: Any, rules: dict[str, Any], schema: dict[str, Any]) -> Any:
    """Return a copy of a valid value with the defaults of its schema; numbers are floats where it says number.

    A default that is a mapping fills in the keys that are not given, also within mappings.
    """
    rules = resolved(rules, schema)
    if isinstance(value, list):
        return [with_defaults(item, rules.get("items", {}), schema) for item in value]
    if isinstance(value, dict):
        properties = {
            key: resolved(property_rules, schema) for key, property_rules in _properties(rules, value).items()
        }
        for key, property_rules in properties.items():
            default = copy.deepcopy(property_rules.get("default"))
            if isinstance(default, dict):
                value = {**value, key: merged(default, value.get(key, {}))}
            elif "default" in property_rules and "not" not in property_rules and key not in value:
                value = {**value, key: default}
        others = rules.get("additionalProperties") or {}
        return {key: with_defaults(item, properties.get(key, others), schema) for key, item in value.items()}
    return float(value) if rules.get("type") == "number" else value


def _properties(rules: dict[str, Any], value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return {key: rules} of a mapping, including the cases of `allOf` whose condition this value meets."""
    properties = dict(rules.get("properties", {}))
    for case in rules.get("allOf", []):
        if Draft202012Validator(case["if"]).is_valid(value):
            for key, property_rules in case["then"].get("properties", {}).items():
                properties[key] = {**properties[key], **property_rules}
    return properties


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `under` with the values of `over` in place of its own, also within dictionaries."""
    inner = {key: merged(under[key], value) for key, value in over.items() if isinstance(under.get(key), dict)}
    return {**under, **over, **inner}


def normalised(config: dict[str, Any]) -> dict[str, Any]:
    """Write class names as text and the home folder for `~` in paths; return the same configuration."""
    for dataset in config["datasets"].values():
        if dataset["classes"] is not None:
            dataset["classes"] = list(map(str, dataset["classes"]))
        for key in ("root", "groups"):
            if dataset.get(key):
                dataset[key] = os.path.expanduser(dataset[key])
    for model in config["models"].values():
        model.update({key: os.path.expanduser(model[key]) for key in ("architecture", "weights")})
        if isinstance(model.get("classes"), list):
            model["classes"] = list(map(str, model["classes"]))
        elif model.get("classes") is not None:
            model["classes"] = os.path.expanduser(model["classes"])
    for entry in config["direct_reuse"]:
        targets = entry["targets"]
        if isinstance(targets, list):
            entry["targets"] = list(map(str, targets))
        elif isinstance(targets, dict):
            entry["targets"] = {name: list(map(str, classes)) for name, classes in targets.items()}
    return config
