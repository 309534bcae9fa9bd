"""docs/configuration.md, made from workflow/schemas/config.schema.yaml.

`python workflow/scripts/document_config.py` prints it; with a path it is written there.
"""

INTRODUCTION = """\
# Configuration

<!-- Made from workflow/schemas/config.schema.yaml by workflow/scripts/document_config.py: change the schema, then run
     python workflow/scripts/document_config.py docs/configuration.md -->

`config.yaml` holds the published evaluation. For a run of your own, write a file with what differs and give it with
`--configfile mine.yaml`: it is merged over `config.yaml`. Keys that it does not mention stay as they are; a list
replaces the whole list. A profile can bring such a file too, as `profiles/demo` does.

- The whole configuration is checked before any job starts; a mistake ends in one sentence that names the key.
- `--config seed=1` sets a key of the top level. Nested numbers, as in `--config 'search={epochs: 3}'`, arrive as text
  and are refused: write them in a file.
- Both take several values, so write targets before them: `snakemake indirect --cores 2 --configfile mine.yaml`.
- Paths start at the working directory; `~` is your home folder.
- YAML reads `1e-3` as text: write 0.001. It reads yes, no, on and off as true and false: put quotes around them where a
  class is called so. Classes that are called by whole numbers need no quotes.
- Names of models, data sets and groups become folders: letters, digits, `_`, `-` and `.`.
- A search takes each setting from the first of these that has it: `overrides` for the target, the entry's `search`,
  `search`, the default. A change reruns the jobs whose settings it changes, and what is made from their results.
- A student takes them likewise from `overrides` for the data set, the entry's `transfer`, `transfer`, the default.
"""

ENTRIES = {"datasets": "An entry, under a name of your choice:", "models": "An entry, under a name of your choice:"}


def document(schema):
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    for key, rules in schema["properties"].items():
        parts += [f"## {key}", rules["description"]]
        rules = _resolved(rules, schema)
        inner = _resolved(rules.get("additionalProperties") or rules.get("items") or {}, schema)
        if "properties" in inner:
            parts += [ENTRIES.get(key, "An entry:"), _table(inner, {}, schema)]
        elif "properties" in rules:
            parts.append(_table(rules, rules["default"], schema))
        else:
            parts.append(f"Value: {_values(rules)}. Default: {_code(rules['default'])}.")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _table(rules, defaults, schema):
    """The keys of an object; those of an object in it follow with a dotted name, unless it is described elsewhere."""
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for key, own in rules["properties"].items():
        rows.append(_row(key, own, _default(key, own, rules, defaults), schema))
        if _elsewhere(key, own, schema):
            continue
        own = _resolved(own, schema)
        for name, inner in own.get("properties", {}).items():
            inner = _resolved(inner, schema)
            rows.append(_row(f"{key}.{name}", inner, _default(name, inner, own, defaults.get(key, {})), schema))
    return "\n".join(rows)


def _row(key, rules, default, schema):
    values = f"keys of [{key}](#{key})" if _elsewhere(key, rules, schema) else _values(_resolved(rules, schema))
    only = _kinds_with(key, schema) if rules in schema["$defs"]["dataset"]["properties"].values() else ""
    return f"| `{key}` | {values} | {default} | {only}{_resolved(rules, schema)['description']} |"


def _elsewhere(key, rules, schema):
    """Whether the keys of this object are those of a section of the page."""
    return "$ref" in rules and rules["$ref"] == schema["properties"].get(key, {}).get("$ref")


def _default(key, own, rules, defaults):
    by_kind = {}
    for case in rules.get("allOf", []):
        special = case["then"].get("properties", {}).get(key)
        if special and "default" in special:
            by_kind.setdefault(special["default"], []).extend(_kinds(case))
    if by_kind:
        return "; ".join(f"{_code(value)} ({', '.join(kinds)})" for value, kinds in by_kind.items())
    if key in rules.get("required", []):
        return "needed"
    if key in defaults or "default" in own:
        value = defaults.get(key, own.get("default"))
        if isinstance(value, dict):
            return "as below"
        return "not given" if value is None else _code(value)
    return "not given"


def _kinds_with(key, schema):
    """Which kinds of data sets take the key, where not all do."""
    takes = {}
    for case in schema["$defs"]["dataset"]["allOf"]:
        takes |= dict.fromkeys(_kinds(case), "not" not in case["then"].get("properties", {}).get(key, {}))
    return "" if all(takes.values()) else f"Only for {', '.join(kind for kind in takes if takes[kind])}. "


def _kinds(case):
    return case["if"]["properties"]["kind"]["enum"]


def _values(rules):
    """What a key may hold, in words."""
    if "enum" in rules:
        return ", ".join(f"`{value}`" for value in rules["enum"])
    words = {
        "integer": "whole number", "number": "number", "string": "text", "object": "keys with values", "null": "null",
        "boolean": "`true`, `false`",
    }  # fmt: skip
    kinds = rules["type"] if isinstance(rules["type"], list) else [rules["type"]]
    described = " or ".join(_list(rules) if kind == "array" else words[kind] for kind in kinds)
    bounds = {
        "minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"
    }  # fmt: skip
    return ", ".join([described, *(f"{text} {rules[rule]}" for rule, text in bounds.items() if rule in rules)])


def _list(rules):
    inner = "names" if rules["items"].get("type") == ["string", "integer"] else _values(rules["items"])
    if "minItems" in rules and rules["minItems"] == rules.get("maxItems"):
        return f"list of {rules['minItems']}: {inner}"
    if inner.startswith("number, "):
        return f"list of numbers ({inner.removeprefix('number, ')})"
    return f"list of {inner}"


def _code(value):
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`[{', '.join(map(str, value))}]`" if isinstance(value, list) else f"`{value}`"


def _resolved(rules, schema):
    return {**schema["$defs"][rules["$ref"].rpartition("/")[2]], **rules} if "$ref" in rules else rules
