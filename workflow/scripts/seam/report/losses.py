"""Results that lost accuracy."""

from __future__ import annotations

from seam.report.tables import Table, deciding

LOST_POINTS = 2.0  # a loss of more points is said on the terminal and in the report


def lost(problems: Table, points: float = LOST_POINTS) -> Table:
    """Return the problems that lost more points of accuracy, the largest loss first, with the column `lost_points`.

    The loss is that against the source model with only the target's classes to choose from, in the accuracy that
    decides.
    """
    if not len(problems):
        return problems.assign(lost_points=[])
    loss = 100 * (deciding(problems, "accuracy_source_restricted") - deciding(problems, "accuracy_reengineered"))
    worse = problems.assign(lost_points=loss.round(9))
    return worse[worse["lost_points"] > points].sort_values("lost_points", ascending=False, kind="stable")
