"""Whether a model meets its budget of time: what the search expected, and what is measured."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from seam.cost.latency import OpenEngine, time_models
from seam.log import log

MISSED = 1.05  # a budget is missed if the median is more than so many times the budget


def time_budget(
    budget: Mapping[str, Any],
    metrics: Mapping[str, Any],
    models: Mapping[str, str | os.PathLike[str]],
    open_engine: OpenEngine,
) -> dict[str, Any]:
    """Time the source model and the re-engineered one in turn, on one thread; return the content of the result file.

    budget: `latency_ms`, or `latency`, a share of what the source model takes; `engine` and `batch`. metrics: of the
    search. models: {"source": path, "reengineered": path}. `missed` says whether the median of the passes is above the
    budget by more than 5 %. Raises UserError as
    `time_models` does.
    """
    engine = budget["engine"]
    times = time_models(
        engine, open_engine, models, cores=1, batch_size=(budget["batch"],), threads=(1,), statistic="median"
    )
    (measured,) = times["measurements"]
    source, timing = (measured[name] for name in ("source", "reengineered"))
    cost = metrics["budget"]
    limit = float(budget["latency_ms"]) if "latency_ms" in budget else budget["latency"] * source["median_ms"]
    result = {
        **{name: metrics[name] for name in ("model", "dataset", "problem", "target")},
        "engine": engine,
        "batch": budget["batch"],
        "threads": 1,
        "budget_ms": limit,
        "predicted_ms": cost["cost"] * cost["whole"],
        "measured_ms": timing["median_ms"],
        "quartiles_ms": timing["quartiles_ms"],
        "minimum_ms": timing["minimum_ms"],
        "source_predicted_ms": cost["whole"],
        "source_measured_ms": source["median_ms"],
        "missed": timing["median_ms"] > MISSED * limit,
        "cpu": times["cpu"],
        "version": times["version"],
    }
    log.info(
        "budget %.4g ms in %s: predicted %.3f ms, measured %.3f ms%s; the source model takes %.3f ms",
        limit, engine, result["predicted_ms"], timing["median_ms"], ", MISSED" * result["missed"], source["median_ms"],
    )  # fmt: skip
    return result
