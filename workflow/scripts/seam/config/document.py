"""Make docs/configuration.md from workflow/schemas/config.schema.yaml."""

from __future__ import annotations

from typing import Any

from seam.config.schema import resolved
from seam.config.wording import bounds

INTRODUCTION = """\
# Configuration

<!-- Made from workflow/schemas/config.schema.yaml by workflow/scripts/document_config.py: change the schema, then run
     make docs -->

`config.yaml` holds the published evaluation. For a run of your own, write the keys that differ into another file and
pass it with `--configfile mine.yaml`. Snakemake merges it over `config.yaml`: keys that your file does not mention
keep their value, and a list replaces the whole list. A profile can bring such a file too, as `profiles/demo` does.

- The whole configuration is checked before any job starts. A mistake ends in one sentence that names the key.
- `--config seed=1` sets a key of the top level. Nested numbers, as in `--config 'search={epochs: 3}'`, arrive as text
  and are refused: write them in a file.
- Both options take several values, so write targets before them:
  `snakemake indirect --cores 2 --configfile mine.yaml`.
- Paths start at the working directory; `~` is your home folder.
- YAML reads `1e-3` as text: write 0.001. It reads yes, no, on and off as true and false: put quotes around class names
  that are such words. Class names that are whole numbers need no quotes.
- Names of models, data sets and groups become folders. They can have letters, digits, `_`, `-` and `.`.
- A search takes each setting from the first place that has it: `overrides` for the target, the entry's `search`,
  `search`, the default. A change reruns the jobs whose settings it changes, and all that is made from their results.
- A student takes its settings likewise: from `overrides` for the data set, the entry's `transfer`, `transfer`, the
  default.
"""

ENTRIES = {"datasets": "An entry, under a name of your choice:", "models": "An entry, under a name of your choice:"}
TYPES = {
    "integer": "whole number", "number": "number", "string": "text", "object": "keys with values", "null": "null",
    "boolean": "`true`, `false`",
}  # fmt: skip

Rules = dict[str, Any]  # a JSON schema or a part of one


def document(schema: Rules) -> str:
    """Return the whole page as Markdown."""
    parts = [INTRODUCTION]
    for key, rules in schema["properties"].items():
        parts += [f"## {key}", rules["description"]]
        rules = resolved(rules, schema)
        entry = resolved(rules.get("additionalProperties") or rules.get("items") or {}, schema)
        if "properties" in entry:
            parts += [ENTRIES.get(key, "An entry:"), _table(entry, {}, schema)]
        elif "properties" in rules:
            parts.append(_table(rules, rules["default"], schema))
        else:
            parts.append(f"Value: {_values(rules)}. Default: {_code(rules['default'])}.")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(rules: Rules, defaults: dict[str, Any], schema: Rules) -> str:
    """Return a table of the keys of an object.

    The keys of an object within it follow with a dotted name, unless they have a section of their own.
    """
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for key, property_rules in rules["properties"].items():
        rows.append(_row(key, property_rules, _default(key, property_rules, rules, defaults), schema))
        if _has_section(key, property_rules, schema):
            continue
        property_rules = resolved(property_rules, schema)
        for name, inner in property_rules.get("properties", {}).items():
            inner = resolved(inner, schema)
            rows.append(
                _row(f"{key}.{name}", inner, _default(name, inner, property_rules, defaults.get(key) or {}), schema)
            )
    return "\n".join(rows)


def _row(key: str, rules: Rules, default: str, schema: Rules) -> str:
    values = _values(resolved(rules, schema))
    if _has_section(key, rules, schema):
        values = f"{'keys of' if 'properties' in resolved(rules, schema) else 'as'} [{key}](#{key})"
    kinds = _kinds_with(key, schema) if rules in schema["$defs"]["dataset"]["properties"].values() else ""
    return f"| `{key}` | {values} | {default} | {kinds}{resolved(rules, schema)['description']} |"


def _has_section(key: str, rules: Rules, schema: Rules) -> bool:
    """Return whether the keys of this object are those of a section of the page."""
    return "$ref" in rules and rules["$ref"] == schema["properties"].get(key, {}).get("$ref")


def _default(key: str, property_rules: Rules, rules: Rules, defaults: dict[str, Any]) -> str:
    """Return the default of a key in words.

    property_rules: the rules of the key; rules, defaults: those of the object that it is in.
    """
    kinds_by_default: dict[Any, list[str]] = {}
    for case in rules.get("allOf", []):
        special = case["then"].get("properties", {}).get(key)
        if special and "default" in special:
            kinds_by_default.setdefault(special["default"], []).extend(_kinds(case))
    if kinds_by_default:
        return "; ".join(f"{_code(value)} ({', '.join(kinds)})" for value, kinds in kinds_by_default.items())
    if key in rules.get("required", []):
        return "required"
    value = defaults.get(key, property_rules.get("default"))
    if isinstance(value, dict):
        return "as below"
    return "not given" if value is None else _code(value)


def _kinds_with(key: str, schema: Rules) -> str:
    """Return a sentence that names the kinds of data sets which take the key; nothing if all do."""
    takes: dict[str, bool] = {}
    for case in schema["$defs"]["dataset"]["allOf"]:
        takes |= dict.fromkeys(_kinds(case), "not" not in case["then"].get("properties", {}).get(key, {}))
    return "" if all(takes.values()) else f"Only for {', '.join(kind for kind in takes if takes[kind])}. "


def _kinds(case: Rules) -> list[str]:
    return case["if"]["properties"]["kind"]["enum"]


def _values(rules: Rules) -> str:
    """Return in words which values a key may have."""
    if "enum" in rules:
        return ", ".join(f"`{value}`" for value in rules["enum"] if value is not None)
    types = rules["type"] if isinstance(rules["type"], list) else [rules["type"]]
    words = " or ".join(_list(rules) if name == "array" else TYPES[name] for name in types)
    return ", ".join([words, *bounds(rules)])


def _list(rules: Rules) -> str:
    items = "names" if rules["items"].get("type") == ["string", "integer"] else _values(rules["items"])
    if "minItems" in rules and rules["minItems"] == rules.get("maxItems"):
        return f"list of {rules['minItems']}: {items}"
    if items.startswith("number, "):
        return f"list of numbers ({items.removeprefix('number, ')})"
    return f"list of {items}"


def _code(value: Any) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`[{', '.join(map(str, value))}]`" if isinstance(value, list) else f"`{value}`"
