import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from seam.cost import engines, latency, processor
from seam.cost.engines import find_python, why_no_engine
from seam.cost.latency import ENGINES, time_models
from seam.cost.processor import describe_cpu, physical_cores, widest_instructions
from seam.errors import UserError
from seam.files import seal_onnx
from seam.imports import dependencies

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "workflow" / "scripts"
BUILT = ROOT / "envs" / ".built" / "deepsparse" / "bin" / "python"
KEYS = {"engine", "version", "instruction_set", "threads", "cpu", "batch_size", "warmup", "iterations", "runs"} | {
    f"{model}_ms{suffix}" for model in ("source", "reengineered") for suffix in ("", "_mean", "_medians", "_minima")
}


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


# ------------------------------------------------------------------------------------------ measuring


@pytest.fixture
def engine(monkeypatch):
    """An engine whose passes take as many seconds as its clock is told; it lists the models it runs."""
    clock, calls = {"now": 0.0}, []

    def fake(threads, batch_size):
        def load(path):
            def run():
                calls.append(path.name)
                clock["now"] += {"a": 0.25, "b": 0.5}[path.name] * (3 if len(calls) > 10 else 1)

            return run

        return {"version": "1", "instruction_set": "none"}, load

    monkeypatch.setitem(ENGINES, "fake", fake)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock["now"])
    return calls


def test_models_take_turns_and_warm_up_in_each_run(engine):
    models = {"source": "a", "reengineered": "b"}
    result = time_models("fake", models, threads=1, warmup=2, iterations=3, runs=2)
    assert engine == 5 * ["a"] + 5 * ["b"] + 5 * ["a"] + 5 * ["b"]
    assert result["source_ms"] == [250, 750]  # the machine is slower in the second run
    assert result["reengineered_ms"] == [500, 1500]
    assert (result["source_ms_mean"], result["reengineered_ms_mean"]) == (500, 1000)
    assert set(result) == KEYS
    assert (result["engine"], result["warmup"], result["iterations"], result["runs"]) == ("fake", 2, 3, 2)


def test_medians_and_minima_leave_a_disturbance_out_that_the_log_mentions(engine, caplog):
    engine.extend(8 * ["earlier"])  # the slow passes begin with the third of the only run
    result = time_models("fake", {"source": "a"}, threads=1, warmup=0, iterations=3, runs=1)
    assert result["source_ms_medians"] == [250]
    assert result["source_ms_minima"] == [250]
    assert result["source_ms"] == pytest.approx([1250 / 3])
    assert "The passes of source vary much" in caplog.text


def test_threads_are_at_most_the_physical_cores(engine, monkeypatch):
    monkeypatch.setattr(latency, "physical_cores", lambda: 4)
    assert time_models("fake", {"source": "a"}, threads=3, iterations=1)["threads"] == 3
    assert time_models("fake", {"source": "a"}, threads=8, iterations=1)["threads"] == 4


def test_onnxruntime_times_what_was_exported(exported):
    result = time_models("onnxruntime", exported, threads=1, batch_size=4, warmup=2, iterations=5)
    assert set(result) == KEYS
    assert result == json.loads(json.dumps(result))
    import onnxruntime

    assert result["version"] == onnxruntime.__version__
    assert len(result["source_ms"]) == len(result["reengineered_ms"]) == 2
    assert all(low <= high for low, high in zip(result["source_ms_minima"], result["source_ms_medians"], strict=True))
    assert min(result["source_ms_minima"]) > min(result["reengineered_ms_minima"]) > 0
    assert result["source_ms_mean"] == pytest.approx(sum(result["source_ms"]) / 2)


def test_a_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "model.onnx").write_text("no model")
    with pytest.raises(UserError, match=r"onnxruntime cannot run .*model.onnx \(.+\): delete it"):
        time_models("onnxruntime", {"source": tmp_path / "model.onnx"}, threads=1)


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
def imitation(tmp_path):
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
                if os.path.getsize(model) < 80:  # the digest alone
                    raise RuntimeError("NM: error: no model\\nmore of it")
                self.input_shapes, self.fraction_of_supported_ops = [(batch_size, 3, 4, 4)], 0.5

            def run(self, inputs, val_inp=True):
                assert not val_inp and inputs[0].shape == self.input_shapes[0] and str(inputs[0].dtype) == "float32"
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

    for name in ("a", "b"):
        (tmp_path / f"{name}.onnx").write_text("a model")
        seal_onnx(tmp_path / f"{name}.onnx")
    return time_deepsparse


def test_the_script_writes_latency_and_log_and_keeps_the_terminal_quiet(imitation, tmp_path):
    options = "--source a.onnx --reengineered b.onnx --threads 1 --warmup 1 --iterations 4 --runs 3 --batch-size 2"
    done = imitation(*options.split(), "--output", "out.json", "--log", "out.log")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    result = json.loads((tmp_path / "out.json").read_text())
    assert set(result) == KEYS
    assert (result["engine"], result["version"], result["instruction_set"]) == ("deepsparse", "1.8.0", "avx2")
    assert (result["batch_size"], result["warmup"], result["iterations"], result["runs"]) == (2, 1, 4, 3)
    assert len(result["source_ms"]) == 3
    log = (tmp_path / "out.log").read_text()
    assert "DeepSparse, Copyright" in log
    assert "telemetry off: True" in log
    assert "DeepSparse optimises only 50 % of the operations of a.onnx" in log


def test_a_failure_is_one_sentence_and_leaves_no_file(imitation, tmp_path):
    (tmp_path / "b.onnx").write_text("")
    seal_onnx(tmp_path / "b.onnx")
    done = imitation("--source", "a.onnx", "--reengineered", "b.onnx", "--output", "out.json", "--log", "out.log")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "Error: deepsparse cannot run b.onnx (NM: error: no model): delete it, and the workflow exports it again."
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
        [BUILT, SCRIPTS / "time_deepsparse.py", *files, "--iterations", "5"], capture_output=True, text=True
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


WAY_OUT = "; to continue without it, set engines: [onnxruntime] in the config."


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
