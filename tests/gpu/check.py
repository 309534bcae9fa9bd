"""Run the stages of the check one after the other, each in a process of its own with a time limit.

It needs only Python. It installs the prepared wheels, without a network, into a folder that it removes at the end. Each
stage writes a JSON file. The stages' output goes into check.log. A second call runs the missing and unfinished stages.
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PREPARED = ROOT / "gpu-check"
LOG = "check.log"
MOST_LOG = 8 << 20  # bytes of check.log: the beginning of a longer log is cut off
GRACE = 15.0  # seconds from a stage's time limit until it is killed, in which it writes what it has reached
FILES = {  # stage: its file, the most valuable stage first
    "tests": "tests.json",
    "steps": "steps.json",
    "stacked": "stacked.json",
    "cifar10": "problems.json",
    "cifar100": "problems.json",
    "vgg16": "vgg16.json",
    "indirect": "indirect.json",
    "large": "large.json",
}
SHARES = {  # of the time that is left: time that a stage does not use goes to the next stages
    "tests": 70, "steps": 50, "stacked": 95, "cifar10": 50, "cifar100": 100, "vgg16": 50, "indirect": 50, "large": 15,
}  # fmt: skip
EPOCHS, PUBLISHED = 100, (  # (problems, steps of an epoch of 64 images, stage that measured such a search)
    ("ResNet20, CIFAR-10", 10, 125, "cifar10"),
    ("ResNet20, CIFAR-100", 100, 13, "stacked"),
    ("ResNet20, CIFAR-100's superclasses", 20, 32, "stacked"),
    ("VGG16-BN, CIFAR-10", 10, 125, "vgg16"),
    ("VGG16-BN, CIFAR-100", 100, 13, "vgg16"),
)  # fmt: skip
GOAL_MINUTES, GOAL_STACKED = 30, 6


def say(sentence: str, log: Path | None = None) -> None:
    """Print a sentence at once, and add it to the log."""
    print(sentence, flush=True)
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(sentence + "\n")


def read(file: Path) -> dict:
    """Return the content of a JSON file; an empty dictionary if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content.pop("digest", None)  # of the content as the package wrote it: `write` changes it
            return content
    return {}


def write(file: Path, content: dict) -> None:
    """Write a JSON file atomically."""
    temporary = file.with_name(f".{file.name}.part")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, file)


# Before the stages


def damaged(prepared: Path) -> list[str]:
    """Return a sentence for each prepared file that is missing or differs from its checksum in the manifest."""
    problems = []
    for name, digest in read(prepared / "manifest.json").get("sha256", {}).items():
        file = prepared / name
        if not file.is_file():
            problems.append(f"{file} is missing: copy the prepared folder again.")
        elif hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            problems.append(f"{file} differs from the prepared file (other SHA-256): copy it again.")
    return problems


def install(prepared: Path, target: Path) -> list[str]:
    """Install the prepared wheels into `target` without a network; return a sentence for each that does not fit."""
    wheels = [str(path) for path in sorted((prepared / "wheels").glob("*.whl"))]
    if importlib.util.find_spec("pip") is None:  # a wheel is an archive of what is installed
        for wheel in wheels:
            shutil.unpack_archive(wheel, target, "zip")
        return []
    if not wheels or _pip(target, wheels):
        return []
    return [f"{Path(wheel).name} does not fit this Python." for wheel in wheels if not _pip(target, [wheel])]


def _pip(target: Path, wheels: list[str]) -> bool:
    flags = [
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--target",
        str(target),
    ]
    command = [sys.executable, "-m", "pip", "install", *flags, *wheels]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def missing(modules: list[str], environment: dict) -> list[str]:
    """Return the modules that the stages' Python does not find."""
    code = "import importlib.util, sys; print(*(n for n in sys.argv[1:] if importlib.util.find_spec(n) is None))"
    command = [sys.executable, "-c", code, *modules]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def carried(prepared: Path, out: Path) -> None:
    """Copy earlier results from the prepared folder into the output folder, but overwrite nothing there."""
    for name in {*FILES.values(), LOG}:
        before = prepared / "results" / name
        if before.is_file() and not (out / name).exists():
            shutil.copyfile(before, out / name)


# The stages


def has_ended(record: dict, requested: dict) -> bool:
    """Return whether a stage has ended well with the same device and scale, and so need not run again."""
    return record.get("status") == "ok" and record.get("requested") == requested


def forget(out: Path, stage: str, *keys: str) -> None:
    """Remove a stage's record, or these keys of it."""
    content = read(out / FILES[stage])
    if stage in content:
        others = {key: value for key, value in content.pop(stage).items() if key not in keys}
        write(out / FILES[stage], content | ({stage: others} if keys else {}))


def limited(command: list[str], log: Path, environment: dict, limit: float) -> tuple[str, int]:
    """Run a command for at most `limit` seconds, its output in the log; return (ok, failed or timeout, exit status).

    When the time is up it is told to end, then, `GRACE` seconds later, killed with all that it has started.
    """
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(limit)
            return ("failed" if status else "ok"), status
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            return "timeout", process.poll() or 0
        finally:  # also where this process is told to stop
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            trim(log)


def trim(log: Path) -> None:
    """Cut off the beginning of a log that is too long."""
    if log.stat().st_size > MOST_LOG:
        log.write_bytes(log.read_bytes()[-MOST_LOG // 2 :])


def run_stage(stage: str, out: Path, command: list[str], environment: dict, limit: float, requested: dict) -> dict:
    """Run a stage and complete its record, which it returns."""
    say(f"--- {stage}, at most {limit:.0f} s", out / LOG)
    began, begun = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), time.monotonic()
    forget(out, stage, "status", "message")  # of an earlier call
    ended, status = limited(command, out / LOG, environment, limit)
    content = read(out / FILES[stage])
    record = content.setdefault(stage, {"requested": requested, "parts": {}})
    if ended != "ok" or record.get("status") in (None, "running"):
        reached = f"reached: {', '.join(record['parts']) or 'nothing'}"
        record["status"] = "timeout" if ended == "timeout" else "failed"
        message = (
            f"its time was up, {reached}"
            if ended == "timeout"
            else record.get("message") or f"exit {status}, {reached}"
        )
        record["message"] = message[:500]
    record |= {"began": began, "seconds": round(time.monotonic() - begun, 1), "limit": round(limit, 1)}
    write(out / FILES[stage], content)
    say(line(stage, record), out / LOG)
    return record


def line(stage: str, record: dict) -> str:
    """Return a line about the result of a stage."""
    message = " ".join(str(record.get("message", "")).split())
    card = record.get("where", {}).get("name")
    where = f" on {card}" if card else ""
    return f"{stage}: {record['status']}, {record.get('seconds', 0):.0f} s{where}: {message}"


def share(stage: str, waiting: list[str], left: float) -> float:
    """Return the seconds that a stage may take, out of those that are left for all waiting stages."""
    return left * SHARES[stage] / sum(SHARES[name] for name in waiting)


# After the stages


def goals(records: dict[str, dict]) -> list[str]:
    """Return a sentence for each goal of docs/gpu.md, if the results suffice to check it."""
    sentences = []
    for name, part in ended(records, "steps", "step_to_bare_pass").items():
        verdict = "reached" if part["reached"] else "missed"
        sentences.append(
            f"step / bare pass, {name}: {part['step_to_bare_pass']:.2f}, at most {part['goal']}: {verdict}"
        )
        waits = [row["value"] for row in part["rows"] if row["what"].startswith("synchronisations")]
        if waits:
            sentences.append(
                f"synchronisations in a step, {name}: {max(waits):.0f}: {'missed' if any(waits) else 'reached'}"
            )
    rates = {name: part["an_hour"] for name, part in ended(records, "stacked", "an_hour").items()}
    if {"1", "20"} <= rates.keys():
        gain = rates["20"] / rates["1"]
        verdict = "reached" if gain >= GOAL_STACKED else "missed"
        sentences.append(
            f"throughput of a stack of 20 searches / of one search: {gain:.1f}, at least {GOAL_STACKED}: {verdict}"
        )
    return sentences + evaluation(records)


def ended(records: dict[str, dict], stage: str, key: str) -> dict[str, dict]:
    """Return the parts of a stage that have ended well and have this key."""
    parts = records.get(stage, {}).get("parts", {})
    return {name: part for name, part in parts.items() if key in part and not part.get("unfinished")}


def evaluation(records: dict[str, dict]) -> list[str]:
    """Return the arithmetic for the 240 problems of CIFAR, if each kind of search was measured."""
    try:
        key = "seconds_of_a_search_epoch"
        times = {name: ended(records, name, key)["all of them"] for name in ("cifar10", "vgg16")}
        counts = ended(records, "stacked", key)
        times["stacked"] = counts.get("20") or counts[max(counts, key=int, default="none")]
        a_step = {name: part["seconds_of_a_search_epoch"] / part["steps_of_an_epoch"] for name, part in times.items()}
    except KeyError:
        return []
    lines, total = [], 0.0
    for name, problems, number, kind in PUBLISHED:
        minutes = problems * EPOCHS * number * a_step[kind] / 60
        total += minutes
        product = f"{problems} problems x {EPOCHS} epochs x {number} steps x {1e3 * a_step[kind]:.3g} ms"
        lines.append(f"{name}: {product} = {minutes:.1f} min")
    verdict = "reached" if total <= GOAL_MINUTES else "missed"
    return [*lines, f"240 problems of CIFAR: {total:.1f} min, at most {GOAL_MINUTES}: {verdict}"]


def check(options: argparse.Namespace, work: Path, command_of: Callable[[str], list[str]]) -> int:
    """Run the missing and unfinished stages; return the exit status.

    command_of: the command of a stage, without its options.
    """
    begun, out, prepared = time.monotonic(), options.out, options.prepared
    requested = {"device": options.device, "tiny": options.tiny}
    out.mkdir(parents=True, exist_ok=True)
    carried(prepared, out)
    for stage in options.again:
        forget(out, stage)
    if problems := damaged(prepared):
        sys.exit("\n".join(f"Error: {problem}" for problem in problems))
    installed = work / "packages"
    for sentence in install(prepared, installed):
        say(sentence, out / LOG)
    path = [str(installed), str(ROOT / "workflow/scripts"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    if lacking := missing(read(prepared / "manifest.json").get("modules", []), environment):
        say(f"Neither installed nor prepared: {', '.join(lacking)}.", out / LOG)
    records = {stage: read(out / FILES[stage]).get(stage, {}) for stage in FILES}
    waiting = [stage for stage in options.stages if not has_ended(records[stage], requested)]
    for stage in options.stages:
        if stage not in waiting:
            say(f"{stage}: ended in an earlier call, see {FILES[stage]}; --again {stage} runs it again")
    for number, stage in enumerate(waiting):
        left = 60 * options.minutes - (time.monotonic() - begun) - GRACE
        limit = share(stage, waiting[number:], left)
        if left <= 1:
            say(f"{stage}: no time is left for it; a second call runs it", out / LOG)
            continue
        arguments = ["--device", options.device, "--prepared", prepared, "--work", work, "--file", out / FILES[stage]]
        command = [*command_of(stage), *map(str, arguments), *(["--tiny"] if options.tiny else [])]
        records[stage] = run_stage(stage, out, command, environment, limit, requested)
    if options.tiny:
        say("This is a rehearsal: its numbers say nothing about speed or accuracy.", out / LOG)
    for sentence in goals({name: record for name, record in records.items() if record.get("requested") == requested}):
        say(sentence, out / LOG)
    statuses = {stage: records[stage].get("status", "missing") for stage in options.stages}
    say("Summary: " + ", ".join(f"{stage} {status}" for stage, status in statuses.items()), out / LOG)
    return int(any(status not in ("ok", "skipped") for status in statuses.values()))


def stage_command(stage: str) -> list[str]:
    """Return the command that runs a stage."""
    return [sys.executable, str(ROOT / "tests/gpu/stages.py"), stage]


def stop(number: int, _: object) -> None:
    """End this process as if by `exit`, so that its stage and its folders are ended, too."""
    sys.exit(128 + number)


def main() -> None:
    """Read the arguments and run the check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    out = Path(os.environ.get("OUT") or PREPARED / "results")
    parser.add_argument("--device", default="cuda", help="cuda or cpu; of cuda a precision, as cuda/float32")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on the smallest amounts")
    parser.add_argument("--out", type=Path, default=out, help="folder of the results; $OUT by default, if it is set")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything")
    parser.add_argument("--stages", nargs="+", choices=FILES, default=list(FILES), metavar="STAGE")
    parser.add_argument("--again", nargs="+", choices=FILES, default=[], metavar="STAGE", help="run these anew")
    parser.add_argument("--prepared", type=Path, default=PREPARED, help="folder that make gpu-check has prepared")
    options = parser.parse_args()
    options.out, options.prepared = options.out.resolve(), options.prepared.resolve()
    if not (options.prepared / "manifest.json").is_file():
        sys.exit(
            f"Error: {options.prepared} has no manifest.json: run make gpu-check, and copy the folder to this machine."
        )
    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        sys.exit(check(options, Path(work), stage_command))


if __name__ == "__main__":
    main()
