"""The evidence of several runs: methods side by side, with seeds and intervals."""

import pandas as pd
import pytest

from seam.errors import UserError
from seam.files import write_csv
from seam.report.baselines import COLUMNS as BASELINES
from seam.report.direct import SETTINGS, columns
from seam.report.evidence import collect, evidence, read_runs


def write_run(root, seed, gains, selection="holdout", model="net", ahead=2.0):
    """Write the tables of a run with a problem for each gain, in points over a source model of 80 %."""
    names = columns([], SETTINGS)
    rows = [
        dict.fromkeys(names)
        | {
            **{"model": model, "dataset": "pets", "architecture": "resnet20", "weights_origin": "hub", "seed": seed},
            **{
                "problem": "binary",
                "target": f"t{number}",
                "accuracy_source": 0.8,
                "accuracy_reengineered": 0.8 + gain / 100,
            },
            **{"retention": 0.1, "images_test": 200, "search_selection": selection},
        }
        for number, gain in enumerate(gains)
    ]
    tables = root / "results/tables"
    write_csv(tables / "direct_binary.csv", pd.DataFrame(rows, columns=names))
    write_csv(tables / "direct_multiclass.csv", pd.DataFrame(columns=names))
    if selection == "holdout":
        own = [
            dict.fromkeys(BASELINES)
            | {
                **{"model": model, "dataset": "pets", "problem": "binary", "target": row["target"], "seed": seed},
                **{"baseline": "head", "images_test": 200, "accuracy_source": 0.8, "difference_points": ahead},
                **{"accuracy_baseline": row["accuracy_reengineered"] - ahead / 100, "retention_baseline": 1.0},
                "right_baseline": round(200 * (row["accuracy_reengineered"] - ahead / 100)),
            }
            for row in rows
        ]
        write_csv(tables / "baselines.csv", pd.DataFrame(own, columns=BASELINES))
    return root


def test_methods_are_side_by_side_and_seeds_are_averaged_by_problem(tmp_path):
    runs = [write_run(tmp_path / str(seed), seed, [2 + seed, 4 + seed]) for seed in (0, 1)]
    runs.append(write_run(tmp_path / "test", 0, [6, 6], "test", model="net-on-test"))
    table = evidence(*read_runs(runs)).set_index("method")
    assert list(table.index) == ["search, published selection", "search, held out", "head"]
    search = table.loc["search, held out"]
    assert (search["problems"], search["seeds"], search["images_test"]) == (2, 2, 800)
    assert search["gain_points"] == pytest.approx(3.5)
    assert search["gain_low"] == pytest.approx(2.5) and search["gain_high"] == pytest.approx(4.5)
    assert search["right"] == 164 + 168 + 166 + 170
    head = table.loc["head"]
    assert head["gain_points"] == pytest.approx(1.5) and head["retention"] == 1
    assert head[["search_over_points", "search_over_low", "search_over_high"]].tolist() == pytest.approx([2, 2, 2])
    assert pd.isna(search["search_over_points"])


def test_the_table_is_written_and_printed(tmp_path):
    text = collect(tmp_path / "e.csv", [write_run(tmp_path / "a", 0, [2, 4])])
    lines = text.splitlines()
    assert "+5.85" in lines[2] and "10.11 %" in lines[2]
    assert (
        "| head alone | 2 x 1 | 100.0 % | 81.00 % | 324 of 400 | +1.00 (+0.00 to +2.00) | +2.00 (+2.00 to +2.00) |"
        in (lines[4])
    )
    assert len(pd.read_csv(tmp_path / "e.csv")) == 2


def test_what_cannot_be_collected_is_one_sentence(tmp_path):
    runs = [write_run(tmp_path / name, 0, [1, 2]) for name in "ab"]
    with pytest.raises(UserError, match="Two of the runs have seed 0 of net, binary t0: leave one out"):
        read_runs(runs)
    with pytest.raises(UserError, match="Name the folders of the runs"):
        read_runs([])
    with pytest.raises(UserError, match="direct_binary.csv is missing"):
        read_runs([tmp_path / "none"])
