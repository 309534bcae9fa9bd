"""The defaults of the hyper-parameters are those of the config's schema."""

from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml

from seam.settings import (
    AttackSettings,
    FinetuningSettings,
    LastLayerSettings,
    RecoverySettings,
    SearchSettings,
    ThresholdSearchSettings,
    TrainingSettings,
    TransferSettings,
)

SCHEMA = Path(__file__).parents[2] / "workflow/schemas/config.schema.yaml"
PLACES = {  # of each class's defaults: the keys of the schema's own default
    TrainingSettings: ("training",),
    SearchSettings: ("search",),
    RecoverySettings: ("recovery",),
    LastLayerSettings: ("transfer", "head"),
    ThresholdSearchSettings: ("transfer", "search"),
    FinetuningSettings: ("transfer", "finetune"),
    AttackSettings: ("attack",),
}


@pytest.fixture(scope="module")
def schema():
    return yaml.safe_load(SCHEMA.read_text())


def defaults(settings):
    """Return {name: default} of a dataclass, as YAML has them."""
    values = {field.name: field.default for field in fields(settings)}
    assert MISSING not in values.values(), settings
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@pytest.mark.parametrize("settings", PLACES)
def test_defaults_are_those_of_the_schema(settings, schema):
    first, *rest = PLACES[settings]
    values = schema["properties"][first]["default"]
    for key in rest:
        values = values[key]
    assert defaults(settings) == values


def test_defaults_of_indirect_reuse_are_those_of_the_schema(schema):
    values = schema["properties"]["transfer"]["default"]
    shared = {name: value for name, value in values.items() if not isinstance(value, dict)}
    assert defaults(TransferSettings) == shared | {"last_layer": None}  # an entry of `models` has the last layer


@pytest.mark.parametrize("student", ["standard", "retrain"])
def test_every_student_is_finetuned_with_known_settings(student, schema):
    FinetuningSettings(**schema["properties"]["transfer"]["default"][student])


def test_the_schema_and_the_search_know_the_same_schedules(schema):
    for name in ("schedule", "selection"):
        for choice in schema["$defs"]["search"]["properties"][name]["enum"]:
            SearchSettings(**{name: choice})
