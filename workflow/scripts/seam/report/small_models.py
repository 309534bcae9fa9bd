"""What the terminal says of models without their removed channels: file, time and accuracy, before and after."""

from __future__ import annotations

from collections.abc import Iterator

from seam.cost.engines import ENGINES
from seam.report.tables import PROBLEMS, Table, engine_name, engines

MOST = 5  # models


def small_models(problems: Table) -> Iterator[str]:
    """Yield a line on each of the problems whose channels were searched, after a headline; nothing without any.

    problems: the rows of both tables of target problems. The time is that in ONNX Runtime, or in the first engine of
    the table that gains nothing from zeros.
    """
    if "search_granularity" not in problems:
        return
    rows = problems[problems["search_granularity"] == "channel"]
    known = engines(problems)
    dense = [name for name in known if not ENGINES[name].gains_from_zeros]
    dense.sort(key=lambda name: name != "onnxruntime")
    if not len(rows):
        return
    yield "Channels removed: models that are smaller and faster in every engine"
    for row in rows.head(MOST).to_dict("records"):
        parts = []
        if dense:
            name = dense[0]
            before, after = (row[f"bytes_{model}_{name}"] for model in ("source", "reengineered"))
            slow, fast = (row[f"latency_{model}_ms_{name}"] for model in ("source", "reengineered"))
            parts = [
                f"file {before / 1000:,.0f} -> {after / 1000:,.0f} kB ({before / after:.1f} x smaller)",
                f"{row['timing_batch_size']:.0f} images in {engine_name(name)} {slow:.2f} -> {fast:.2f} ms "
                f"({slow / fast:.1f} x as fast)",
            ]
        measure = row["decided_by"].replace("_", " ") if isinstance(row.get("decided_by"), str) else "accuracy"
        key = measure.replace(" ", "_") or "accuracy"
        parts.append(f"{measure} {100 * row[f'{key}_source']:.1f} -> {100 * row[f'{key}_reengineered']:.1f} %")
        kind = PROBLEMS.get(row["problem"], row["problem"])
        yield f"  {row['model']}, {kind}: {row['target']}: {'; '.join(parts)}"
    if len(rows) > MOST:
        yield f"  and {len(rows) - MOST} more"
