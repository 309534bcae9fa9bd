import ast
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from seam.cost import engines, latency, processor
from seam.cost.engines import ENGINES, choose_engines, find_python, why_no_engine
from seam.cost.latency import time_models
from seam.cost.processor import describe_cpu, physical_cores, widest_instructions
from seam.cost.runners.registry import MODULES, find_engine
from seam.errors import UserError
from seam.files import read_json, sha256
from seam.imports import dependencies

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "workflow" / "scripts"
BUILT = ROOT / "envs" / ".built" / "deepsparse" / "bin" / "python"
KEYS = {"engine", "version", "instruction_set", "gains_from_zeros", "fallback", "cpu"} | {
    *("warmup", "iterations", "runs", "statistic", "bytes", "model_digests", "measurements")
}
TIMES = {"mean_ms", "median_ms", "quartiles_ms", "minimum_ms", "run_means_ms"}


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small and a larger network as ONNX files."""
    from torch import nn

    from seam.cost.export import export

    folder = tmp_path_factory.mktemp("onnx")
    for name, width in (("source", 64), ("reengineered", 2)):
        layers = nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten(), nn.Linear(width * 144, 2)
        export(nn.Sequential(*layers), folder / f"{name}.onnx", (3, 16, 16))
    return {name: folder / f"{name}.onnx" for name in ("source", "reengineered")}


@pytest.fixture(scope="module")
def quantized(exported):
    """The same networks, quantized."""
    from seam.cost.quantization import quantize

    images = np.random.default_rng(0).standard_normal((8, 3, 16, 16), np.float32)
    for path in exported.values():
        quantize(path, path.with_name(f"{path.stem}-int8.onnx"), [images])
    return {name: path.with_name(f"{path.stem}-int8.onnx") for name, path in exported.items()}


def test_quantizing_logs_no_advice_of_onnxruntime(exported, tmp_path, caplog):
    from seam.cost.quantization import quantize

    quantize(exported["source"], tmp_path / "int8.onnx", [np.zeros((1, 3, 16, 16), np.float32)])
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


# ------------------------------------------------------------------------------------------ measuring


@pytest.fixture
def engine(monkeypatch, tmp_path):
    """An engine whose passes take as many seconds as its clock is told; it lists the models it runs."""
    clock, calls, opened = {"now": 0.0}, [], []
    outputs = {"a": 1.0, "b": 1.0}

    def open_engine(threads, batch_size):
        opened.append((threads, batch_size))

        def load(path):
            def run(images):
                calls.append(path.name)
                clock["now"] += {"a": 0.25, "b": 0.5}[path.name] * (3 if len(calls) > 12 else 1)
                return np.array([outputs[path.name]])

            return run, ""

        return {"version": "1", "instruction_set": "none"}, load

    def reference(models, batch_size, exact):
        return dict.fromkeys(models, None), dict.fromkeys(models, np.array([1.0]))

    monkeypatch.setattr(latency, "_reference", reference)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock["now"])
    paths = {name: tmp_path / name for name in ("a", "b")}
    for path in paths.values():
        path.write_text("a model")
    return SimpleNamespace(open=open_engine, calls=calls, opened=opened, outputs=outputs, **paths)


def test_models_take_turns_and_warm_up_in_each_run(engine):
    models = {"source": engine.a, "reengineered": engine.b}
    result = time_models("fake", engine.open, models, cores=1, warmup=2, iterations=3, runs=2)
    assert engine.calls == ["a", "b"] + 5 * ["a"] + 5 * ["b"] + 5 * ["a"] + 5 * ["b"]  # first each is compared
    (measured,) = result["measurements"]
    assert (measured["batch_size"], measured["threads"]) == (16, 1)
    assert measured["source"]["run_means_ms"] == [250, 750]  # the machine is slower in the second run
    assert measured["reengineered"]["run_means_ms"] == [500, 1500]
    assert (measured["source"]["mean_ms"], measured["reengineered"]["mean_ms"]) == (500, 1000)
    assert set(result) == KEYS and set(measured["source"]) > TIMES
    assert (result["engine"], result["warmup"], result["iterations"], result["runs"]) == ("fake", 2, 3, 2)
    assert result["bytes"] == {"source": 7, "reengineered": 7}


def test_medians_and_quartiles_leave_a_disturbance_out_that_the_log_mentions(engine, caplog):
    engine.calls.extend(8 * ["earlier"])  # the slow passes begin with the fourth of the only run
    result = time_models("fake", engine.open, {"source": engine.a}, cores=1, warmup=0, iterations=5, runs=1)
    measured = result["measurements"][0]["source"]
    assert (measured["median_ms"], measured["minimum_ms"]) == (250, 250)
    assert measured["quartiles_ms"] == [250, 750]
    assert measured["mean_ms"] == pytest.approx(2250 / 5)
    assert "The passes of source vary much" in caplog.text


def test_every_batch_size_is_timed_with_every_number_of_threads(engine, monkeypatch):
    monkeypatch.setattr(latency, "physical_cores", lambda: 4)
    settings = {"batch_size": [16, 1], "threads": ["all", 1, 9], "iterations": 1, "runs": 1}
    result = time_models("fake", engine.open, {"source": engine.a}, cores=8, **settings)
    measured = [(each["batch_size"], each["threads"]) for each in result["measurements"]]
    assert measured == [(16, 4), (16, 1), (1, 4), (1, 1)]  # all and 9 are both the four physical cores
    assert engine.opened == [(4, 16), (1, 16), (4, 1), (1, 1)]


def test_threads_are_at_most_the_physical_cores(engine, monkeypatch):
    monkeypatch.setattr(latency, "physical_cores", lambda: 4)

    def threads(cores):
        result = time_models("fake", engine.open, {"source": engine.a}, cores=cores, iterations=1)
        return result["measurements"][0]["threads"]

    assert (threads(3), threads(8)) == (3, 4)


@pytest.mark.parametrize("wrong", [1.0002, float("nan")])
def test_an_engine_that_computes_something_else_is_refused(engine, wrong):
    engine.outputs["b"] = wrong
    models = {"source": engine.a, "reengineered": engine.b}
    with pytest.raises(UserError, match=r"fake does not compute what ONNX Runtime does from .*b \(its outputs differ"):
        time_models("fake", engine.open, models, cores=1)
    engine.outputs["b"] = 1.00005
    result = time_models("fake", engine.open, models, cores=1, iterations=1)
    assert result["measurements"][0]["reengineered"]["difference"] == pytest.approx(5e-5)
    engine.outputs["b"] = 1.5
    result = time_models("fake", engine.open, models, cores=1, iterations=1, exact=False)
    assert "difference" not in result["measurements"][0]["reengineered"]  # int8 rounds; its accuracy is measured


MISSING = {name: why_no_engine(name) for name in ENGINES}


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "deepsparse"])
def test_engines_time_what_was_exported(name, exported, quantized):
    if MISSING[name]:
        pytest.skip(MISSING[name])
    models = quantized if ENGINES[name].int8 else exported
    facts = {"exact": not ENGINES[name].int8, "gains_from_zeros": ENGINES[name].gains_from_zeros}
    result = time_models(name, find_engine(name), models, cores=1, batch_size=[4, 1], warmup=2, iterations=5, **facts)
    assert set(result) == KEYS and result == json.loads(json.dumps(result))
    assert result["version"].startswith(tuple("0123456789")) and "-" not in result["version"]
    assert result["fallback"] == {} and result["gains_from_zeros"] == (name == "seam")
    assert result["bytes"] == {model: path.stat().st_size for model, path in models.items()}
    assert result["model_digests"] == {model: sha256(path) for model, path in models.items()}
    assert [measured["batch_size"] for measured in result["measurements"]] == [4, 1]
    for measured in result["measurements"]:
        for times in (measured["source"], measured["reengineered"]):
            assert len(times["run_means_ms"]) == 2
            low, high = times["quartiles_ms"]
            assert 0 < times["minimum_ms"] <= low <= times["median_ms"] <= high
            assert ("difference" in times) == facts["exact"] and times.get("difference", 0) <= 1e-4
        assert measured["source"]["minimum_ms"] > measured["reengineered"]["minimum_ms"]


def test_a_model_that_the_engine_for_zeros_lacks_runs_elsewhere_and_the_result_says_so(tmp_path, caplog):
    import torch

    class Odd(torch.nn.Module):
        def forward(self, images):
            return torch.cumsum(images, 1).flatten(1)

    from seam.cost.export import export

    export(Odd(), tmp_path / "odd.onnx", (3, 4, 4))
    result = time_models(
        "seam", find_engine("seam"), {"source": tmp_path / "odd.onnx"}, cores=1, iterations=2, gains_from_zeros=True
    )
    assert result["gains_from_zeros"] is False
    assert "CumSum" in result["fallback"]["source"] and "CumSum" in caplog.text


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "model.onnx").write_text("no model")
    with pytest.raises(UserError, match=r"onnxruntime cannot run .*model.onnx \(.+\): delete it"):
        time_models("onnxruntime", find_engine("onnxruntime"), {"source": tmp_path / "model.onnx"}, cores=1)


def test_what_native_code_prints_goes_to_the_log(capfd, caplog):
    with caplog.at_level("INFO"), latency._output_to_log():
        os.write(1, b"a banner\n")
        os.write(2, b"a warning\n")
    print("afterwards")
    assert capfd.readouterr() == ("afterwards\n", "")
    assert {"a banner", "a warning"} <= {record.getMessage() for record in caplog.records}


# ------------------------------------------------------------------------------------------ the other environment


def test_what_runs_in_deepsparses_environment_is_written_for_its_python():
    script = SCRIPTS / "time_deepsparse.py"
    files = [script, *dependencies(script)]
    assert {path.name for path in files} >= {"latency.py", "processor.py", "files.py", "log.py", "errors.py"}
    assert "seam_engine.py" not in {path.name for path in files}
    for path in files:
        ast.parse(path.read_text(), feature_version=(3, 9))
        assert "from __future__ import annotations" in path.read_text() or path.name == "__init__.py"


def test_the_module_needs_the_standard_library_alone_until_it_measures():
    check = "import sys, time_deepsparse; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-S", "-c", check],
        env={"PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    foreign = set(done.stdout.split()) - sys.stdlib_module_names
    assert foreign == {"seam", "time_deepsparse", "__main__"} - sys.stdlib_module_names


@pytest.fixture
def imitation(tmp_path, exported):
    """A package that looks like DeepSparse: it says on import whether its telemetry is off, and prints a banner."""
    executable(
        tmp_path / "site" / "deepsparse" / "__init__.py",
        """
        import os
        __version__ = "1.8.0"
        os.write(2, b"DeepSparse, Copyright\\n")
        os.write(2, b"telemetry off: %r\\n" % bool(os.getenv("NM_DISABLE_ANALYTICS")))

        class Engine:
            def __init__(self, model, batch_size, num_cores):
                if "broken" in model:
                    raise RuntimeError("NM: error: no model\\nmore of it")
                import onnxruntime
                self.batch_size, self.fraction_of_supported_ops = batch_size, 0.5
                self.session = onnxruntime.InferenceSession(model)

            def run(self, inputs, val_inp=True):
                assert not val_inp and len(inputs[0]) == self.batch_size and str(inputs[0].dtype) == "float32"
                return self.session.run(None, {"images": inputs[0]})
        """,
    )
    (tmp_path / "site" / "deepsparse" / "cpu.py").write_text(
        "class architecture:\n    isa = 'avx2'\n\n\ndef cpu_architecture():\n    return architecture\n"
    )

    def time_deepsparse(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        environment.pop("NM_DISABLE_ANALYTICS", None)
        command = [sys.executable, SCRIPTS / "time_deepsparse.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    for name in ("a", "b", "broken"):
        shutil.copy(exported["reengineered"], tmp_path / f"{name}.onnx")
    return time_deepsparse


def test_the_script_writes_latency_and_log_and_keeps_the_terminal_quiet(imitation, tmp_path):
    options = "--source a.onnx --reengineered b.onnx --cores 1 --threads all 1 --warmup 1 --iterations 4 --runs 3"
    options += " --batch-size 2 1 --statistic median"
    done = imitation(*options.split(), "--output", "out.json", "--log", "out.log")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    result = read_json(tmp_path / "out.json", sealed=True)
    assert set(result) == KEYS
    assert (result["engine"], result["version"], result["instruction_set"]) == ("deepsparse", "1.8.0", "avx2")
    assert (result["warmup"], result["iterations"], result["runs"], result["statistic"]) == (1, 4, 3, "median")
    assert [(each["batch_size"], each["threads"]) for each in result["measurements"]] == [(2, 1), (1, 1)]
    assert len(result["measurements"][0]["source"]["run_means_ms"]) == 3 and result["gains_from_zeros"] is True
    log = (tmp_path / "out.log").read_text()
    assert "DeepSparse, Copyright" in log
    assert "telemetry off: True" in log
    assert "DeepSparse optimises only 50 % of the operations of a.onnx" in log


def test_a_failure_is_one_sentence_and_leaves_no_file(imitation, tmp_path):
    done = imitation("--source", "a.onnx", "--reengineered", "broken.onnx", "--output", "out.json", "--log", "out.log")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "Error: deepsparse cannot run broken.onnx (NM: error: no model): delete it, and the workflow exports it again."
    )
    assert not (tmp_path / "out.json").exists()
    assert "Traceback" in (tmp_path / "out.log").read_text()


def test_the_script_explains_itself(imitation):
    done = imitation("--help")
    assert done.returncode == 0
    assert "--reengineered B.onnx" in done.stdout
    assert imitation("--source", "a.onnx").returncode == 2


@pytest.mark.skipif(not BUILT.exists(), reason="DeepSparse's environment is made by the workflow")
def test_deepsparse_itself_agrees_with_onnxruntime_and_times(exported, tmp_path):
    check = """
    import os, sys
    os.environ["NM_DISABLE_ANALYTICS"] = "True"
    asked = []
    sys.addaudithook(lambda event, _: asked.append(event) if event.startswith("socket.") else None)
    import deepsparse, numpy, onnxruntime
    images = numpy.random.default_rng(0).standard_normal((16, 3, 16, 16), numpy.float32)
    found = deepsparse.Engine(sys.argv[1], batch_size=16, num_cores=1).run([images])[0]
    expected = onnxruntime.InferenceSession(sys.argv[1]).run(None, {"images": images})[0]
    assert abs(found - expected).max() < 1e-4 * abs(expected).max()
    assert not [event for event in asked if event in ("socket.connect", "socket.getaddrinfo")], asked
    """
    subprocess.run([BUILT, "-c", textwrap.dedent(check), exported["source"]], check=True)
    files = [
        "--source",
        exported["source"],
        "--reengineered",
        exported["reengineered"],
        "--output",
        tmp_path / "o.json",
    ]
    done = subprocess.run(
        [BUILT, SCRIPTS / "time_deepsparse.py", *files, "--iterations", "5", "--batch-size", "16", "1"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads((tmp_path / "o.json").read_text())["version"] == "1.8.0"


# ------------------------------------------------------------------------------------------ the machine


CPUINFO = "processor\t: 0\nmodel name\t: A {name} CPU\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\nmodel name\t: other\n"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A Linux machine with this processor, this Python and these other Pythons on the PATH."""

    def make(flags="sse4_1 avx avx2", python=(3, 11), others=(), system="Linux"):
        (tmp_path / "cpuinfo").write_text(CPUINFO.format(name="fast", flags=flags))
        monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(engines.platform, "system", lambda: system)
        monkeypatch.setattr(engines.platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(engines.sys, "version_info", (*python, 0))
        for name, script in others:
            executable(tmp_path / name, f"#!/bin/sh\n{script}\n")
        folders = dict.fromkeys(str((tmp_path / name).parent) for name, _ in others)
        monkeypatch.setenv("PATH", os.pathsep.join(folders))
        find_python.cache_clear()

    yield make
    find_python.cache_clear()


def test_this_python_is_taken_where_it_fits(machine):
    machine(python=(3, 11), others=[("bin/python3.10", "exit 0")])
    assert find_python("deepsparse") == os.path.realpath(sys.executable)
    assert why_no_engine("deepsparse") is None


def test_a_shim_that_does_not_run_is_passed_over(machine, tmp_path):
    shim = "echo 'pyenv: python3.11: command not found' >&2; exit 127"
    machine(python=(3, 13), others=[("shims/python3.11", shim), ("shims/python3.9", shim), ("bin/python3.9", "exit 0")])
    assert find_python("deepsparse") == str(tmp_path / "bin" / "python3.9")
    assert why_no_engine("deepsparse") is None


def test_a_python_that_cannot_make_environments_is_passed_over(machine, monkeypatch, tmp_path):
    machine(python=(3, 11), others=[("bin/python3.10", "exit 0")])
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert find_python("deepsparse") == str(tmp_path / "bin" / "python3.10")


WAY_OUT = "; to continue without it, set engines: [seam, onnxruntime] in the config."


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"system": "Darwin"}, "it needs Linux on x86_64, and this is Darwin on x86_64"),
        ({"flags": "sse4_1 avx"}, "it needs a processor with AVX2 instructions, and this one has none"),
        (
            {"python": (3, 13), "others": [("bin/python3.11", "exit 1"), ("bin/python3.12", "exit 0")]},
            "it needs Python 3.9, 3.10 or 3.11 with the module venv, and no python3.9, python3.10 or python3.11 on the "
            "PATH is one",
        ),
    ],
)
def test_one_sentence_says_why_deepsparse_cannot_run(machine, given, reason):
    machine(**given)
    assert why_no_engine("deepsparse") == f"DeepSparse cannot run here: {reason}{WAY_OUT}"
    assert why_no_engine("onnxruntime") is None


def test_conda_brings_its_own_python_but_no_processor(machine):
    machine(python=(3, 13))
    assert why_no_engine("deepsparse", conda=True) is None
    machine(flags="", python=(3, 13))
    assert "AVX2" in why_no_engine("deepsparse", conda=True)


def test_auto_leaves_deepsparse_out_where_it_cannot_run(machine):
    machine()
    assert choose_engines("auto") == (["deepsparse", "seam", "onnxruntime"], [])
    machine(system="Darwin")
    engines, reasons = choose_engines("auto")
    assert engines == ["seam", "onnxruntime"] and len(reasons) == 1 and reasons[0].startswith("DeepSparse cannot run")
    assert choose_engines(["deepsparse", "seam"]) == (["deepsparse", "seam"], reasons)


def test_one_sentence_says_that_openvino_is_not_installed(monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    _, reasons = choose_engines(["openvino", "openvino-int8", "onnxruntime"])
    assert len(reasons) == 1 and reasons[0].startswith(
        "OpenVINO cannot run here: the package openvino is not installed"
    )
    assert choose_engines(["openvino-int8"], conda=True) == (["openvino-int8"], [])


def test_each_engine_has_a_module_and_a_name_for_people():
    from seam.report import tables

    assert {engine.runner for engine in ENGINES.values()} == MODULES.keys()
    assert tables.ENGINES.keys() == ENGINES.keys()
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
    assert set(schema["properties"]["engines"]["items"]["enum"]) == ENGINES.keys()


def test_the_processor_is_described(machine):
    machine(flags="sse4_1 avx avx2 avx512f")
    name, flags = describe_cpu()
    assert name == "A fast CPU"
    assert widest_instructions(flags) == "avx512"
    assert widest_instructions({"avx", "avx2"}) == "avx2"
    assert widest_instructions({"asimd", "fp"}) == "neon"
    assert widest_instructions(set()) == "x86_64"


def test_a_machine_without_proc_has_a_processor_too(monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "absent")
    name, flags = describe_cpu()
    assert name and not flags
    assert 1 <= physical_cores() <= os.cpu_count()


def test_what_native_code_prints_is_in_the_log_file_if_it_crashes(tmp_path):
    code = (
        "import os\nfrom seam.cost import latency\nfrom seam.log import job_log, log\n"
        "with job_log('job.log'), latency._output_to_log():\n"
        "    log.info('begins')\n    os.write(2, b'a banner\\n')\n    log.info('goes on')\n    os.abort()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    lines = (tmp_path / "job.log").read_text().splitlines()
    assert ended.returncode < 0 and [line.rpartition(" INFO ")[2] for line in lines] == [
        "begins",
        "a banner",
        "goes on",
    ]


def test_a_damaged_model_is_not_timed(imitation, tmp_path):
    content = (tmp_path / "b.onnx").read_bytes()
    (tmp_path / "b.onnx").write_bytes(bytes([content[0] ^ 1]) + content[1:])
    done = imitation("--source", "a.onnx", "--reengineered", "b.onnx", "--output", "out.json", "--log", "out.log")
    assert done.returncode == 1
    assert done.stderr.strip().startswith("Error: b.onnx is damaged, its content does not have its digest: delete it")
