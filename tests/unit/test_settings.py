"""The defaults of the hyper-parameters are those of the config's schema."""

from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import yaml

from seam import settings as ranges
from seam.settings import (
    BUDGET_SEARCH,
    AttackSettings,
    FinetuningSettings,
    LastLayerSettings,
    RecoverySettings,
    RemosSettings,
    SearchSettings,
    ThresholdSearchSettings,
    TrainingSettings,
    TransferSettings,
    search_settings,
)

SCHEMA = Path(__file__).parents[2] / "workflow/schemas/config.schema.yaml"
PLACES = {  # of each class's defaults: the keys of the schema's own default
    TrainingSettings: ("training",),
    SearchSettings: ("search",),
    RecoverySettings: ("recovery",),
    LastLayerSettings: ("transfer", "head"),
    ThresholdSearchSettings: ("transfer", "search"),
    FinetuningSettings: ("transfer", "finetune"),
    RemosSettings: ("transfer", "remos"),
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
    if settings is AttackSettings:  # the attack on the source model does not depend on it
        values = {name: value for name, value in values.items() if name != "adaptive"}
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


def test_a_budget_brings_its_own_schedule_and_rates():
    search = {"epochs": 300, "lr_mask": 0.12, "alpha": 1.5, "batch_size": 32, "schedule": "fast", "penalty": None}
    assert search_settings({**search, "budget": None}) == {k: v for k, v in search.items() if k != "penalty"}
    settings = search_settings({**search, "budget": {"weights": 0.1, "epochs": 60}})
    assert settings["schedule"] == "budget" and settings["budget"] == {
        "distillation": 0.7,
        "lr_bias": 0.01,
        "weights": 0.1,
    }
    assert settings["epochs"] == 60 and settings["lr_mask"] == BUDGET_SEARCH["lr_mask"]
    assert settings["alpha"] == settings["batch_size"] == 0
    assert SearchSettings(**settings).recorded()["budget"] == settings["budget"]
    assert "budget" not in SearchSettings().recorded() and "penalty" not in SearchSettings().recorded()


def test_what_a_weight_costs_follows_the_budget():
    assert SearchSettings().price == "weights" and SearchSettings(penalty="macs").price == "macs"
    assert SearchSettings(schedule="budget", budget={"latency_ms": 2.0}).price == "latency"
    assert SearchSettings(schedule="budget", budget={"latency": 0.5}).price == "latency"
    assert SearchSettings(schedule="budget", budget={"macs": 0.1}, penalty="weights").price == "weights"


@pytest.mark.parametrize("budget", [{}, {"weights": 0.1, "macs": 0.1}, {"engine": "seam"}])
def test_a_budget_has_one_unit(budget):
    with pytest.raises(ValueError, match="gives one of weights, macs, latency, latency_ms"):
        SearchSettings(schedule="budget", budget=budget)


def test_an_unknown_order_of_masks_is_refused():
    with pytest.raises(ValueError, match="initial_masks is 'size': choose one of equal, magnitude."):
        ThresholdSearchSettings(initial_masks="size")


def test_ranges_of_settings_are_those_of_the_config():
    rules = yaml.safe_load(SCHEMA.read_text())["$defs"]
    search = rules["search"]["properties"]
    for properties in (search, search["budget"]["properties"], search["channels"]["properties"],
                       rules["recovery"]["properties"]):  # fmt: skip
        for name, rule in properties.items():
            if rule.get("type") not in ("integer", "number") or (properties is not search and name == "distillation"):
                continue
            assert ("exclusiveMinimum" in rule) == (name in ranges.POSITIVE), name
            assert ranges.MOST.get(name, ...) == rule.get("maximum", ...), name
            least = rule.get("minimum", 0)
            # A recovery of no epochs is `none`, and batches of a single image, which only a search takes, are too few.
            assert ranges.LEAST.get(name, 0) == least or name in ("epochs", "batch_size", "batch"), name


def test_keys_of_a_budget_are_those_of_the_config():
    assert set(ranges.BUDGET_KEYS) == set(
        yaml.safe_load(SCHEMA.read_text())["$defs"]["search"]["properties"]["budget"]["properties"]
    )


@pytest.mark.parametrize(
    ("search", "words"),
    [
        ({"epochs": 0}, "epochs is 0: it must be a number of at least 1"),
        ({"head_every": 0}, "head_every is 0"),
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"holdout": 1.0}, "holdout is 1.0: it must be a number above 0 and at most 0.5"),
        ({"budget": 0.25}, "A budget is a mapping"),
        ({"budget": {"weights": 0}}, "weights of the budget is 0"),
        ({"budget": {"weights": float("nan")}}, "weights of the budget is nan"),
        ({"budget": {"weights": 25}}, "above 0 and at most 1"),
        ({"budget": {"weights": 0.25, "epoch": 2}}, "A budget has no key epoch"),
        ({"budget": {"macs": 0.25, "distillation": 2.0}}, "distillation of the budget is 2.0"),
    ],
)
def test_numbers_out_of_range_are_refused(search, words):
    with pytest.raises(ValueError, match=words):
        SearchSettings(**search_settings(search))
