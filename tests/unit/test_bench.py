"""`make bench` on a tiny network: that its numbers are what they are called. No test depends on how fast it is."""

import json
import re
import statistics
from concurrent.futures import Future, ProcessPoolExecutor

import pytest
import torch
from colours import ARCHITECTURE
from torch.nn.functional import cross_entropy

from seam.bench import command, job_start, jobs, memory
from seam.bench.jobs import run_job, search_arguments, targets, write_noise
from seam.bench.memory import peak_of_tensors
from seam.bench.network import BATCH, Bench, as_graph
from seam.bench.step import STEP_GOALS
from seam.bench.timing import Options, in_turn, medians, ratios
from seam.bench.timing import row as make_row
from seam.bench.yardstick import operations, products
from seam.cost.macs import count_macs
from seam.device import select_device
from seam.masks.layers import maskable
from seam.models.architectures import ARCHITECTURES, build_model
from seam.precision import forward
from seam.training.checkpoint import Checkpoint

CPU = torch.device("cpu")
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]


class FewProcesses(ProcessPoolExecutor):
    """A pool that starts a process for the first of the searches of `memory` alone, to save time."""

    def submit(self, function, *arguments, **options):
        if not options:
            return super().submit(function, *arguments)
        future = Future()
        future.set_result(function(*arguments, **options))
        return future


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Return (bench.json, bench.txt) of a run of all items, one repeat each."""
    path = tmp_path_factory.mktemp("bench") / "results" / "bench.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "ProcessPoolExecutor", FewProcesses)
        command.main(["--device", "cpu", "--architectures", ARCHITECTURE, "--repeats", "1", "--output", str(path)])
    return json.loads(path.read_text()), path.with_suffix(".txt").read_text()


def rows(result, item):
    return [row for row in result[0]["rows"] if row["item"] == item]


def test_all_items_are_measured_and_compared_with_their_goals(result):
    goals = {item: {row["goal"] for row in rows(result, item)} for item in command.ITEMS}
    assert goals == {
        "step": {None},  # its goals are those of ResNet20 and VGG16
        "yardstick": {None},
        "input": {0.03},
        "epoch": {0.05},
        "start": {1.0},
        "targets": set(),  # only a GPU searches stacks
        "stack": set(),  # the network has dropout
        "memory": {1.5, None},
    }
    for row in result[0]["rows"]:
        # Memory that the process of the tests has already is no peak: these rows can be 0 here.
        assert 0 < row["low"] <= row["value"] <= row["high"] or row["of"].endswith("without checkpoints"), row
    assert STEP_GOALS.keys() == set(ARCHITECTURES)


def test_a_ratio_is_that_of_the_times_beside_it(result):
    step, folded = rows(result, "step")[::2], rows(result, "step")[1::2]
    cases = [(step, "step", "bare"), (folded, "step", "bare, folded"), (rows(result, "input"), "batches", "step")]
    for some, over, under in cases:
        for row in some:
            assert row["value"] == pytest.approx(row["seconds"][over] / row["seconds"][under])


def test_the_result_describes_the_machine(result):
    machine = result[0]["machine"]
    assert machine["device"] == "cpu" and machine["torch"] == torch.__version__ and machine["cores"] >= 1
    assert machine["name"] in result[1] and f"torch {torch.__version__}" in result[1]


def test_the_parts_of_a_start_are_those_of_the_job(result):
    (table,) = (entry["table"] for entry in result[0]["tables"] if entry["item"] == "start")
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
    (row,) = rows(result, "start")
    own = sum(line["s"] for line in table if line["part"] not in ("import torch", "first step"))
    assert row["value"] == pytest.approx(own)
    spent = {line["part"]: line["s"] for line in table}
    assert spent["data and source model"] > 0 and spent["the source model's accuracy"] > 0


def test_memory_is_compared_with_what_must_be_held(result):
    weights = 4 * (8 * 27 + 16 * 72 + 16 + 64 * 10 + 10)
    head = 4 * (10 * 2 + 2)
    for row in rows(result, "memory"):
        held = dict(row["megabytes"])
        peak = held.pop("peak")
        assert held["masks"] == pytest.approx(weights / 1e6)
        assert held["adam"] == pytest.approx(2 * (weights + head) / 1e6)
        assert held["network"] == pytest.approx((weights + head + 4 * 8) / 1e6)  # and what batch norm adds
        assert held["activations"] > 4 * 64 * 8 * 32 * 32 / 1e6  # at 32 px the input of the second convolution at least
        assert row["value"] == pytest.approx(peak / sum(held.values()))
    process, _, tensors = rows(result, "memory")
    assert tensors["of"].endswith("tensors alone") and tensors["goal"] == process["goal"] == 1.5
    assert 1 < tensors["value"] < process["value"]


def test_each_epoch_that_is_timed_writes_its_checkpoint(tmp_path, monkeypatch):
    written, write = [], Checkpoint.write
    monkeypatch.setattr(Checkpoint, "write", lambda self, state: written.append(self.path) or write(self, state))
    arguments = ["--items", "epoch", "--architectures", ARCHITECTURE, "--repeats", "3"]
    command.main(["--device", "cpu", "--output", str(tmp_path / "bench.json"), *arguments])
    assert len(written) == 4  # the first round does not count


def test_the_peak_of_tensors_counts_those_that_live_at_once():
    def call():
        a = torch.zeros(1000)
        b = a + 1  # 8,000 bytes
        del a
        c = b * 2  # 8,000
        del b, c
        torch.zeros(1500)

    assert peak_of_tensors(call) == pytest.approx(8000, abs=256)


def test_a_step_of_a_stack_is_compared_with_steps_of_each(tmp_path, capsys):
    arguments = ["--items", "stack", "--architectures", "resnet20", ARCHITECTURE, "--repeats", "1"]
    command.main(["--device", "cpu", "--output", str(tmp_path / "bench.json"), *arguments])
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert row["of"] == "resnet20" and row["goal"] is None
    assert row["value"] == pytest.approx(row["seconds"]["stack"] / row["seconds"]["each"])
    assert "left out: vmap: called random operation" in capsys.readouterr().err


def test_noise_has_as_many_images_of_each_class(tmp_path):
    write_noise(tmp_path, classes=2, train=3, test=1)
    assert len(list(tmp_path.glob("train/*/*.png"))) == 6 and len(list(tmp_path.glob("test/1/*.png"))) == 1


def test_a_job_searches_all_problems_of_a_stack(tmp_path):
    searches = search_arguments(tmp_path, ARCHITECTURE, range(2))
    for search in searches:
        search["settings"] = {"epochs": 8}  # enough for a result that tells classes apart
    run_job(searches, tmp_path, "cpu")
    assert all((tmp_path / f"direct/{target}/metrics.json").exists() for target in range(2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.usefixtures("restored_device")
def test_a_stack_is_compared_with_a_job_for_each_problem(monkeypatch):
    # The machine of the check on a GPU has no Snakemake, whose part of a job is the same on both sides.
    monkeypatch.setattr(jobs, "JOB", jobs.JOB.replace("import snakemake.script\n", ""))
    (row,) = targets(Options(select_device("cuda"), "cuda", ["resnet20"], repeats=1), count=2)
    stack, each = (row["searches"][f"an hour, {name}"] for name in ("stack", "each"))
    assert row["value"] == pytest.approx(each / stack)


def test_the_text_has_each_number_and_marks_the_goals_that_are_missed(result):
    data, text = result
    for row in data["rows"]:
        assert f"{row['value']:.3f}" in text and f"{row['item']}: {row['what']}" in text
    missed = sum(row["goal"] is not None and row["value"] > row["goal"] for row in data["rows"])
    assert len(re.findall(r": NO\b", text)) == missed
    for entry in data["tables"]:
        assert entry["title"] in text


def test_functions_are_timed_in_turn():
    called = []
    times = in_turn({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, CPU, 4)
    assert called == ["a", "b"] * 5  # the first round is a warm-up
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4}


def test_slow_comparisons_end_after_three_rounds():
    assert len(in_turn({"a": lambda: None}, CPU, 50, limit=0.0)["a"]) == 3


def test_a_row_has_the_median_and_the_quartiles():
    made = make_row("step", "this / that", "a model", [5.0, 1.0, 2.0, 4.0, 3.0], 2.5)
    assert (made["low"], made["value"], made["high"], made["goal"]) == (2.0, 3.0, 4.0, 2.5)
    assert ratios({"a": [2.0, 9.0], "b": [1.0, 3.0]}, "a", "b") == [2.0, 3.0]


@pytest.mark.usefixtures("restored_device")  # a GPU has one job at a time
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda/float32", marks=GPU)])
def test_the_bare_pass_has_the_same_gradients_as_the_step_and_no_others(device):
    made = Bench(ARCHITECTURE, select_device(device))
    for module in (*made.model.modules(), *made.twin.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if made.device.type == "cuda":
        made.bare = as_graph(made.bare_eager)  # the graph has what the dropout was when it was made
    made.bare()
    bare = {name: p.grad for name, p in made.twin.named_parameters() if p.grad is not None}
    wanted = {f"source.{name}" for name in maskable(made.model.source)} | {"head.weight", "head.bias"}
    assert bare.keys() == wanted
    cross_entropy(forward(made.model, made.images), made.labels).backward()
    for name, parameter in made.model.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, bare[name], rtol=1e-3, atol=1e-4)
    before = {name: value.clone() for name, value in made.masks.values.items()}
    made.step()
    assert all(not torch.equal(before[name], value) for name, value in made.masks.values.items())


def test_multiply_adds_are_those_of_three_passes():
    made = Bench("resnet20", CPU)
    layers = products(made)
    assert sum(len(layer["names"]) for layer in layers) == 22  # convolutions and the last layer
    dense = count_macs(build_model("resnet20", 10), (3, 32, 32))["dense"]
    first = 16 * 27 * 32 * 32  # the images need no gradient
    once = dense["convolution"] + dense["linear"]
    assert sum(layer["multiply_adds"] for layer in layers) == BATCH * (3 * once - first)


def test_the_profile_takes_all_of_the_pass():
    table = operations(Bench(ARCHITECTURE, CPU))
    names = [line["operation"] for line in table]
    assert {"convolution", "convolution, backward", "batch norm", "batch norm, backward"} <= set(names)
    assert sum(line["%"] for line in table) == pytest.approx(100)
    assert names == [line["operation"] for line in sorted(table, key=lambda line: -line["ms"])]


def test_the_clock_of_a_start_gives_each_second_to_one_part(monkeypatch):
    now = iter([10.0, 11.0, 14.0, 20.0])
    monkeypatch.setattr(job_start.time, "time", lambda: next(now))

    class Module:
        @staticmethod
        def slow():
            return "given"

    clock = job_start.Clock(8.0)
    clock.lap("Python")
    clock.timed(Module, "slow", "slow")
    assert Module.slow() == "given"
    clock.lap("the rest")
    assert clock.spent == {"Python": 2.0, "slow": 3.0, "the rest": 7.0}


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--architectures", "resnet21"], "resnet21 is no known architecture"),
        (["--device", "cuda"], "The device cuda is asked for"),
    ],
)
def test_a_mistake_ends_in_one_sentence(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        command.main([*arguments, "--items", "step", "--output", str(tmp_path / "bench.json")])
    assert sentence in str(error.value.code) and "\n" not in str(error.value.code)
    assert not list(tmp_path.iterdir())


def test_medians_are_those_of_each_side():
    assert medians({"a": [1.0, 9.0, 2.0]}) == {"seconds": {"a": statistics.median([1.0, 9.0, 2.0])}}
