"""`make bench` on a tiny network: that its numbers are what they are called. None of them is a matter of time here."""

import json
import re
import statistics

import bench
import bench_start
import pytest
import torch
from colours import ARCHITECTURE

from seam.cost.macs import count_macs
from seam.masks.layers import maskable
from seam.models.architectures import ARCHITECTURES, build_model
from seam.training.checkpoint import Checkpoint

CPU = torch.device("cpu")
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(bench.json, bench.txt) of a run of all items."""
    path = tmp_path_factory.mktemp("bench") / "results" / "bench.json"
    bench.main(["--device", "cpu", "--architectures", ARCHITECTURE, "--repeats", "2", "--output", str(path)])
    return json.loads(path.read_text()), path.with_suffix(".txt").read_text()


def rows(found, item):
    return [row for row in found[0]["rows"] if row["item"] == item]


def test_all_items_are_measured_and_compared_with_their_goals(found):
    goals = {item: {row["goal"] for row in rows(found, item)} for item in bench.ITEMS}
    assert goals == {
        "step": {None},  # it is of ResNet20 and VGG16
        "yardstick": {None},
        "input": {0.03},
        "epoch": {0.05},
        "start": {1.0},
        "targets": {1.0},
        "vectorised": set(),  # it has dropout
        "memory": {1.5, None},
    }
    for row in found[0]["rows"]:
        assert 0 < row["low"] <= row["value"] <= row["high"], row
    assert bench.STEP_GOALS.keys() == set(ARCHITECTURES)


def test_a_ratio_is_that_of_the_times_beside_it(found):
    """Of two pairs the ratio of the medians is within their ratios."""
    step, folded = rows(found, "step")[::2], rows(found, "step")[1::2]
    cases = [(step, "step", "bare"), (folded, "step", "bare, folded"), (rows(found, "input"), "batches", "step")]
    for some, over, under in cases:
        for row in some:
            ratio = row["seconds"][over] / row["seconds"][under]
            spread = row["high"] - row["low"]
            assert row["low"] - spread / 2 - 1e-9 <= ratio <= row["high"] + spread / 2 + 1e-9, row


def test_it_says_where_it_ran(found):
    machine = found[0]["machine"]
    assert machine["device"] == "cpu" and machine["torch"] == torch.__version__ and machine["cores"] >= 1
    assert machine["name"] in found[1] and f"torch {torch.__version__}" in found[1]


def test_the_parts_of_a_start_are_those_of_the_job(found):
    (table,) = (entry["table"] for entry in found[0]["tables"] if entry["item"] == "start")
    assert [line["part"] for line in table] == [
        "Python",
        "Snakemake's part of the script",
        "import torch",
        "import the library",
        "data and source model",
        "the source model's accuracy",
        "the rest",
        "first step",
    ]
    (row,) = rows(found, "start")
    own = sum(line["s"] for line in table if line["part"] not in ("import torch", "first step"))
    assert row["value"] == pytest.approx(own)  # of one repeat


def test_memory_is_compared_with_what_must_be_held(found):
    weights = 4 * (8 * 27 + 16 * 72 + 16 + 64 * 10 + 10)
    head = 4 * (10 * 2 + 2)
    for row in rows(found, "memory"):
        held = dict(row["megabytes"])
        peak = held.pop("peak")
        assert held["masks"] == pytest.approx(weights / 1e6)
        assert held["adam"] == pytest.approx(2 * (weights + head) / 1e6)
        assert held["network"] == pytest.approx((weights + head + 4 * 8) / 1e6)  # and what batch norm adds
        assert held["activations"] > 4 * 64 * 8 * 32 * 32 / 1e6  # at 32 px the input of the second convolution at least
        assert row["value"] == pytest.approx(peak / sum(held.values()))
    process, _, tensors = rows(found, "memory")
    assert tensors["of"].endswith("tensors alone") and tensors["goal"] == process["goal"] == 1.5
    assert 1 < tensors["value"] < process["value"]


def test_each_epoch_that_is_timed_writes_its_checkpoint(tmp_path, monkeypatch):
    written, write = [], Checkpoint.write
    monkeypatch.setattr(Checkpoint, "write", lambda self, state: written.append(self.path) or write(self, state))
    arguments = ["--items", "epoch", "--architectures", ARCHITECTURE, "--repeats", "3"]
    bench.main(["--device", "cpu", "--output", str(tmp_path / "bench.json"), *arguments])
    assert len(written) == 4  # the first round does not count


def test_the_most_that_tensors_take_is_what_lives_at_once():
    def call():
        a = torch.zeros(1000)
        b = a + 1  # 8,000 bytes
        del a
        c = b * 2  # 8,000
        del b, c
        torch.zeros(1500)

    assert bench.most_at_once(call) == pytest.approx(8000, abs=256)


def test_a_step_in_one_pass_is_compared_with_steps_of_each(tmp_path, capsys):
    arguments = ["--items", "vectorised", "--architectures", "resnet20", ARCHITECTURE, "--repeats", "1"]
    bench.main(["--device", "cpu", "--output", str(tmp_path / "bench.json"), *arguments])
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert row["of"] == "resnet20" and row["goal"] is None
    assert row["value"] == pytest.approx(row["seconds"]["in one pass"] / row["seconds"]["each"])
    assert "left out: vmap: called random operation" in capsys.readouterr().err


def test_noise_has_as_many_images_of_each_class(tmp_path):
    bench.noise(tmp_path, classes=2, train=3, test=1)
    assert len(list(tmp_path.glob("train/*/*.png"))) == 6 and len(list(tmp_path.glob("test/1/*.png"))) == 1


def test_searches_an_hour_are_those_of_the_seconds(found):
    (row,) = rows(found, "targets")
    together, alone = (row["searches"][f"an hour, {name}"] for name in ("together", "alone"))
    assert row["value"] == pytest.approx(alone / together)  # of one repeat


def test_of_searches_in_one_job_the_others_only_take_theirs(tmp_path):
    planned = bench.searches(tmp_path, ARCHITECTURE, range(2))
    for one in planned:
        one["settings"] = {"epochs": 2}
    (tmp_path / "planned.json").write_text(json.dumps(planned))
    bench.searched(tmp_path / "planned.json", 0, 2, "cpu")
    assert (tmp_path / "direct/.1.ahead/metrics.json").exists()
    bench.searched(tmp_path / "planned.json", 1, 2, "cpu")
    assert (tmp_path / "direct/1/metrics.json").exists()


def test_the_text_has_each_number_and_says_which_goals_are_missed(found):
    data, text = found
    for row in data["rows"]:
        assert f"{row['value']:.3f}" in text and f"{row['item']}: {row['what']}" in text
    missed = sum(row["goal"] is not None and row["value"] > row["goal"] for row in data["rows"])
    assert len(re.findall(r": NO\b", text)) == missed
    for entry in data["tables"]:
        assert entry["title"] in text


def test_functions_are_timed_in_turn():
    called = []
    times = bench.in_turn({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, CPU, 4)
    assert called == ["a", "b"] * 5  # the first round is a warm-up
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4}


def test_slow_comparisons_end_after_three_rounds():
    assert len(bench.in_turn({"a": lambda: None}, CPU, 50, most=0.0)["a"]) == 3


def test_a_row_has_the_median_and_the_quartiles():
    row = bench.row("step", "this / that", "a model", [5.0, 1.0, 2.0, 4.0, 3.0], 2.5)
    assert (row["low"], row["value"], row["high"], row["goal"]) == (2.0, 3.0, 4.0, 2.5)
    assert bench.ratios({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b") == [2.0, 3.0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda/float32", marks=GPU)])
def test_the_bare_pass_has_the_same_gradients_as_the_step_and_no_others(device):
    made = bench.Bench(ARCHITECTURE, bench.select(device))
    for module in (*made.model.modules(), *made.twin.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if made.device.type == "cuda":
        made.bare = bench.as_graph(made.bare_eager)  # the graph has what the dropout was when it was made
    made.bare()
    bare = {name: p.grad for name, p in made.twin.named_parameters() if p.grad is not None}
    wanted = {f"source.{name}" for name in maskable(made.model.source)} | {"head.weight", "head.bias"}
    assert bare.keys() == wanted
    bench.cross_entropy(bench.forward(made.model, made.images), made.labels).backward()
    for name, parameter in made.model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, bare[name], rtol=1e-3, atol=1e-4)
    before = {name: value.clone() for name, value in made.masks.values.items()}
    made.step()
    assert all(not torch.equal(before[name], value) for name, value in made.masks.values.items())


def test_multiply_adds_are_those_of_three_passes():
    made = bench.Bench("resnet20", CPU)
    layers = bench.products(made)
    assert sum(len(layer["names"]) for layer in layers) == 22  # convolutions and the last layer
    dense = count_macs(build_model("resnet20", 10), (3, 32, 32))["dense"]
    first = 16 * 27 * 32 * 32  # the images need no gradient
    once = dense["convolution"] + dense["linear"]
    assert sum(layer["multiply_adds"] for layer in layers) == bench.BATCH * (3 * once - first)


def test_the_profile_takes_all_of_the_pass():
    table = bench.kinds(bench.Bench(ARCHITECTURE, CPU))
    names = [line["operation"] for line in table]
    assert {"convolution", "convolution, backward", "batch norm", "batch norm, backward"} <= set(names)
    assert sum(line["%"] for line in table) == pytest.approx(100)
    assert names == [line["operation"] for line in sorted(table, key=lambda line: -line["ms"])]


def test_the_clock_of_a_start_gives_each_second_to_one_part(monkeypatch):
    now = iter([10.0, 11.0, 14.0, 20.0])
    monkeypatch.setattr(bench_start.time, "time", lambda: next(now))

    class Module:
        @staticmethod
        def slow():
            return "given"

    clock = bench_start.Clock(8.0)
    clock.lap("Python")
    clock.timed(Module, "slow", "slow")
    assert Module.slow() == "given"
    clock.lap("the rest")
    assert clock.spent == {"Python": 2.0, "slow": 3.0, "the rest": 7.0}


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--architectures", "resnet21"], "resnet21 is no known architecture"),
        (["--device", "cuda"], "device: cuda is asked for"),
    ],
)
def test_a_mistake_ends_in_one_sentence(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        bench.main([*arguments, "--items", "step", "--output", str(tmp_path / "bench.json")])
    assert sentence in str(error.value.code) and "\n" not in str(error.value.code)
    assert not list(tmp_path.iterdir())


def test_medians_are_of_each_side():
    assert bench.medians({"a": [1.0, 9.0, 2.0]}) == {"seconds": {"a": statistics.median([1.0, 9.0, 2.0])}}
