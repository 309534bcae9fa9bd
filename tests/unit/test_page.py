"""The report: what is on it, that nothing on it runs or is loaded, and what the terminal shows at the end of a run."""

import html.parser
import os
import shutil
import subprocess

import pandas as pd
import pytest
import synthetic
from made_tables import ENGINES, PUBLISHED

from seam.files import write_csv
from seam.progress import TerminalLines, describe, duration, job_name
from seam.report import direct, indirect
from seam.report.closing import closing_lines
from seam.report.html import Number, chart, table
from seam.report.intervals import wilson
from seam.report.losses import lost
from seam.report.page import (
    problem_times,
    problems_table,
    run_times,
    warnings,
    whole_table,
    without_empty,
    write_report,
)
from seam.report.summary import write_summary
from seam.report.tables import read_table

HOSTILE = "<script>alert(1)</script>"


class Page(html.parser.HTMLParser):
    """The elements of a page that load or run something, and whether all are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.scripts, self.loads, self.ids = [], 0, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.scripts += tag == "script"
        self.loads += [attrs[name] for name in ("src", "href") if name in attrs]
        self.ids += [attrs["id"]] if "id" in attrs else []
        assert not any(name.startswith("on") for name in attrs), attrs
        if tag not in ("meta", "link", "img", "input", "br", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("line", "circle", "polyline"):
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with made-up results, and its report."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = synthetic.make(".", synthetic.DEMO)
        tables = direct.tables(made["metrics.json"], made["macs.json"], made["latency"], made["models"], ENGINES)
        for kind in ("binary", "multiclass"):
            write_csv(f"results/tables/direct_{kind}.csv", tables[kind])
        write_csv("results/tables/indirect.csv", indirect.students([], [], read_table(PUBLISHED)))
        names = ("direct_binary", "direct_multiclass", "indirect")
        write_summary("results/tables/summary.csv", *(f"results/tables/{name}.csv" for name in names), PUBLISHED)
        files = {name.removeprefix("direct_"): f"results/tables/{name}.csv" for name in (*names, "summary")}
        run = {"benchmarks": "results/benchmarks", "config": {"name": HOSTILE}, "left_out": [f"{HOSTILE} is missing."]}
        write_report("results/report.html", files, {}, run)
    return folder


@pytest.fixture
def page(results):
    return (results / "results/report.html").read_text(encoding="utf-8")


def test_the_page_is_whole_and_loads_nothing(page):
    parsed = Page(page)
    assert parsed.open == []
    assert parsed.scripts == 1
    assert all(place.startswith(("#", "data:")) for place in parsed.loads)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {place[1:] for place in parsed.loads if place.startswith("#")} <= set(parsed.ids)


def test_text_from_outside_is_escaped(page):
    assert HOSTILE not in page and "&lt;script&gt;alert(1)&lt;/script&gt; is missing." in page
    assert HOSTILE not in table([HOSTILE], [[HOSTILE, Number(1.0)]])
    assert HOSTILE not in chart({HOSTILE: ("red", [(1, 50)])}, 1, HOSTILE)


def test_the_page_has_the_answer_and_every_problem(results, page):
    binary, multiclass = (
        read_table(results / f"results/tables/direct_{kind}.csv") for kind in ("binary", "multiclass")
    )
    for _, row in pd.concat([binary, multiclass]).iterrows():
        assert f": {row['target']}</b>" in page
        assert f"{100 * row['accuracy_reengineered']:.2f} %" in page
    assert page.index("weights kept") < page.index("<h2>Each problem")
    assert "published: 10.11 %" in page
    assert page.count("Answers of the re-engineered model") == 5


def test_the_means_have_names_and_no_empty_columns(page):
    means = page[page.index('<section id="means">') :]
    means = means[: means.index("</section>")]
    assert "weights kept" in means and "weights_kept" not in means and "time saved, DeepSparse" in means
    assert "digest" not in means and "10.11" in means
    students = without_empty(["a", "b", "c"], [["x", Number(None), None], ["y", Number(0.0), ""]])
    assert students[0] == ["a", "b"] and [len(row) for row in students[1]] == [2, 2]


def test_a_whole_table_has_shares_in_per_cent_and_small_times():
    table = pd.DataFrame([["head", "cat", 0.0042, 0.9532, 0.9478, 0.00412, 3.2, 1, 16]], columns=[
        "baseline", "target", "retention_search", "accuracy_search", "accuracy_baseline", "budget_ms", "limit_ms",
        "threads", "batch"])  # fmt: skip
    shown = whole_table(table)
    for text in ("retention search %", "0.42", "95.32", "94.78", "0.00412", "3.20", ">1<", ">16<"):
        assert text in shown
    assert "1.00" not in shown and "head" in shown


def test_the_jobs_of_a_problem_are_found(tmp_path):
    for place in ("search/net/binary/cat", "time_engine/seam/net/binary/cat", "train_baseline/net/binary/cat/head",
                  "search/net/binary/cats", "search/net/multiclass/cat"):  # fmt: skip
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{place}.tsv").write_text("s\tmax_rss\n2.5\t100\n")
    rows = problem_times(run_times(tmp_path), "net/binary/cat")
    assert [row[0] for row in rows] == ["search", "time_engine (seam)", "train_baseline (head)"]


def test_intervals_by_hand():
    low, high = wilson(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    assert wilson(1.0, 10)[1] == pytest.approx(1) and wilson(0.0, 10)[0] == 0


def test_results_that_lost_accuracy_are_said(results):
    tables = results / "results/tables"
    report = tables.parent / "report.html"
    report.touch()
    said = "\n".join(closing_lines(tables, report))
    assert "weights kept" in said and str(report) in said and "lost more than" not in said
    os.utime(report, (0, 0))  # of an earlier run
    assert str(report) not in "\n".join(closing_lines(tables, report))
    os.utime(report)
    binary = read_table(tables / "direct_binary.csv")
    binary.loc[0, "accuracy_reengineered"] = binary.loc[0, "accuracy_source_restricted"] - 0.031
    assert list(lost(binary)["lost_points"].round(3)) == [3.1]
    assert len(lost(binary.head(0))) == 0
    shutil.copytree(tables, results / "worse")
    write_csv(results / "worse/direct_binary.csv", binary)
    said = "\n".join(closing_lines(results / "worse", None))
    assert "1 of 5 results lost more than 2 points" in said and "3.1 points" in said
    link = warnings(binary)
    assert link.count("<li><a href=") == 1 and "Markup" not in link


def test_budgets_of_an_earlier_config_are_not_told(results):
    tables = shutil.copytree(results / "results/tables", results / "earlier")
    (tables / "latency_budgets.csv").write_text("not of this run\n")
    assert "weights kept" in "\n".join(closing_lines(tables, None, budgets=False))
    with pytest.raises(KeyError):
        list(closing_lines(tables, None))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 s"), (20, "20 s"), (200, "3 min"), (5000, "83 min"), (7300, "2.0 h"), (2e5, "2.3 days")],
)
def test_times_have_units_that_fit(seconds, text):
    assert duration(seconds) == text


def test_gains_are_judged_like_for_like(results):
    problems = read_table(results / "results/tables/direct_binary.csv")
    alike = problems_table(problems)
    assert "like for like, points" not in alike and " to " in alike.replace("\u00a0", " ")
    problems["accuracy_source_restricted"] = problems["accuracy_reengineered"] + 0.05
    problems["decided_by"] = "balanced_accuracy"
    for name in ("source", "source_restricted", "reengineered"):
        problems[f"balanced_accuracy_{name}"] = problems[f"accuracy_{name}"]
    page = problems_table(problems)
    assert page.count('class="number worse"') == len(problems) and "better" not in page
    assert "<th" in page and "95 % interval" not in page  # of a balanced accuracy there is none


def test_progress_is_a_line_a_minute(capsys):
    now = [0.0]
    lines = TerminalLines(lambda: now[0])
    for second in range(0, 200, 5):
        now[0] = float(second)
        lines("reengineer net/cat", second // 5 + 1, 300, {"accuracy": 0.931, "retention": 0.41}, 240.0)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert said[0] == (
        "reengineer net/cat: epoch 3 of at most 300, accuracy 93.1 %, 41.0 % of the weights kept, at most 4 min left"
    )
    assert describe("train", 2, None, {"train_accuracy": 0.5}, None) == "train: epoch 2, accuracy 50.0 %"
    assert job_name("results/logs/reengineer/net/binary/cat.log") == "reengineer net/binary/cat"


BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_without_an_error(results, tmp_path, width):
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += ["--enable-logging=stderr", "--v=0", f"--window-size={width},900", "--dump-dom"]
    done = subprocess.run(
        [*command, (results / "results/report.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count('<details class="problem"') == 5
