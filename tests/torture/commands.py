"""Run the workflow and functions of the package in processes of their own, with deadlines, and judge how they end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml
from workflows import ROOT

from .outcomes import HELD, RUN, SILENT, UNCLEAR, Ending

LAST_LINE = re.compile(r"\s*[\w.]*(Error|Exception|Interrupt)")
DEADLINE = 600  # seconds for a run of the workflow
PATIENCE = 60  # seconds for a call of a function, on a busy machine
MOST_MEMORY = 6 << 30  # bytes that a call may allocate
TRACEBACK = re.compile(r'Traceback \(most recent call last\)|^\s*File "[^"]+\.py", line \d+', re.MULTILINE)


@dataclass(frozen=True)
class Said:
    """How a run of the workflow ended: its exit status (None: it hung and was killed), and what it printed."""

    status: int | None
    text: str

    @property
    def problem(self) -> str | None:
        """What is wrong with the way it ended, other than its status; None if nothing is."""
        if self.status is None:
            return "it hung"
        if found := TRACEBACK.search(self.text):
            last = [line.strip() for line in self.text[found.end() :].splitlines() if LAST_LINE.match(line)]
            return f"a traceback ({last[0][:120]})" if last else f"a traceback ({found[0].strip()[:80]})"
        if self.status != 0 and "Error" not in self.text and "error" not in self.text:
            return f"status {self.status} without a sentence"
        return None

    @property
    def sentence(self) -> str:
        """The sentence in which it ended, as far as it can be told from what Snakemake prints."""
        lines = [line.strip() for line in self.text.splitlines()]
        for number, line in enumerate(lines):
            if line.startswith("Error: "):
                return line.removeprefix("Error: ")[:160]
            if line.startswith(("WorkflowError", "snakemake: error")):
                return " ".join(lines[number : number + 2])[:160]
        return lines[-1][:160] if lines else ""


def command(folder: Path, *arguments: str, config: Path | None = None, cores: int = 2) -> list[str]:
    """Return the command line that runs the workflow in `folder`; `config` is its folder's config.yaml by default."""
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    return [*words, "--cores", str(cores), *arguments, "--configfile", str(config or folder / "config.yaml")]


Variables = dict[str, str] | None  # of the environment, beside those that are there


def start(words: list[str], output: Path, variables: Variables = None) -> subprocess.Popen:
    """Start a command in a session (and process group) of its own; what it prints goes to the file `output`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})}
    with output.open("wb") as file:
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
        )


def run(
    folder: Path,
    *arguments: str,
    config: Path | None = None,
    deadline: float = DEADLINE,
    variables: Variables = None,
    whole: bool = False,
) -> Said:
    """Run the workflow in `folder` to its end, and return how it ended; kill its process group at the deadline.

    whole: whether in a Python of its own, as from a terminal, and not in a fork of this one.
    """
    output = folder / "said.txt"
    begin = start if whole else fork
    return finish(begin(command(folder, *arguments, config=config), output, variables), output, deadline)


class Forked:
    """A process that this one has forked, with the methods of `subprocess.Popen` that are needed here."""

    def __init__(self, pid: int) -> None:
        self.pid, self.status = pid, None

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        if self.status is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.status = os.waitstatus_to_exitcode(found[1])
        return self.status

    def kill(self) -> None:
        """Kill it, without a chance to clean up."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, once it has ended. Raises subprocess.TimeoutExpired."""
        end = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("snakemake", timeout or 0)
            time.sleep(0.02)
        return status


def fork(words: list[str], output: Path, variables: Variables = None) -> Forked:
    """Run Snakemake's command in a child of this process, where it is imported already: that saves seconds.

    words: as `command` returns them. The rest is as in `start`.
    """
    import snakemake.cli

    sys.stdout.flush()
    child = os.fork()
    if child:
        return Forked(child)
    status = 1
    try:
        os.setsid()
        file, null = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), os.open(os.devnull, os.O_RDONLY)
        for number, place in ((null, 0), (file, 1), (file, 2)):
            os.dup2(number, place)
        os.environ.update(variables or {})
        sys.stdout = open(1, "w", encoding="utf-8", errors="replace")  # noqa: SIM115 (to the end of this process)
        sys.stderr = open(2, "w", encoding="utf-8", errors="replace")  # noqa: SIM115
        sys.argv = words[words.index("snakemake") :]
        try:
            snakemake.cli.main(sys.argv[1:])
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())  # the workflow has its own
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def finish(process: subprocess.Popen | Forked, output: Path, deadline: float = DEADLINE) -> Said:
    """Wait for a started command, or kill its process group at the deadline."""
    try:
        status: int | None = process.wait(deadline)
    except subprocess.TimeoutExpired:
        status = None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return Said(status, output.read_text(encoding="utf-8", errors="replace"))


def run_until_done(folder: Path, *targets: str, most: int = 6) -> Said:
    """Run the workflow again and again, as a person would, until it succeeds; unlock the folder if it asks for it.

    A run that hangs is not repeated: it is returned.
    """
    said = Said(1, "")
    for _ in range(most):
        said = run(folder, *targets, "--rerun-incomplete")
        if said.status in (0, None):
            break
        if "LockException" in said.text or "--unlock" in said.text:
            run(folder, "--unlock")
    return said


def write_config(folder: Path, config: dict) -> Path:
    """Write the config of a folder."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def processes_of(folder: Path) -> Iterator[psutil.Process]:
    """Yield all processes that work in `folder`, orphans included; not this one."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            inside = str(folder) in " ".join(process.cmdline()) or Path(process.cwd()).is_relative_to(folder)
            if inside and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                yield process


def jobs_of(folder: Path) -> list[psutil.Process]:
    """Return the processes that run the script of a job in `folder`."""
    found = []
    for process in processes_of(folder):
        with contextlib.suppress(psutil.Error):
            if any("/.snakemake/scripts/" in word for word in process.cmdline()[:3]) and "python" in process.name():
                found.append(process)
    return found


def job_numbers(process: subprocess.Popen | Forked) -> set[int]:
    """Return the numbers of the processes that run the scripts of jobs below a run; cheaper than `jobs_of`."""
    found, waiting = set(), [process.pid]
    while waiting:
        pid = waiting.pop()
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                waiting += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
            words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            if any("/.snakemake/scripts/" in word for word in words[:3]) and "python" in words[0]:
                found.add(pid)
    return found


def end_all(folder: Path) -> int:
    """Kill every process that works in `folder`; return their number."""
    number = 0
    for process in list(processes_of(folder)):
        with contextlib.suppress(psutil.Error):
            process.kill()
            number += 1
    return number


# ------------------------------------------------------------------ calls of functions


@dataclass(frozen=True)
class Answer:
    """How a call ended: with a value, a sentence (UserError), another error, a hang or a crash; and what it logged."""

    how: str  # value, sentence, error, hang or crash
    text: str = ""
    logged: str = ""


def preload() -> None:
    """Import what the functions under attack need, once: else each child of `call` does, which takes seconds."""
    import onnxruntime  # noqa: F401
    import snakemake.cli  # noqa: F401
    import torch

    import seam.data.kinds.registry
    import seam.models.published
    import seam.report.direct
    import seam.report.indirect
    import seam.reuse.defects
    import seam.reuse.load
    import seam.training.checkpoint  # noqa: F401

    torch.set_num_threads(1)  # a child that is forked has none of the threads of its parent
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a script: children would ignore it
        signal.signal(signal.SIGINT, signal.default_int_handler)


def call(function: Callable[[], str], cwd: Path, variables: Variables = None) -> Answer:
    """Call `function` in a child process that works in `cwd`; its value is a text.

    The child has PATIENCE seconds and a limit on its memory, and cannot change this process.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        os.setsid()
        _answer(function, writer, cwd, variables or {})
    os.close(writer)
    try:
        text = _read(reader, time.monotonic() + PATIENCE)
    finally:
        os.close(reader)
    if text is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if text is None:
        return Answer("hang", f"no answer in {PATIENCE} s")
    if not text:
        return Answer("crash", f"signal {status & 127}" if status & 127 else f"exit status {status >> 8}")
    return Answer(**json.loads(text))


def _answer(function: Callable[[], str], writer: int, cwd: Path, variables: dict[str, str]) -> None:
    """Write the answer of `function` to a pipe and end this process, whatever happens."""
    from seam.errors import UserError

    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    warnings.simplefilter("ignore")
    status = 1
    try:
        os.chdir(cwd)
        os.environ.update(variables)
        quiet = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(quiet, number)
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
        logging.getLogger("seam").addHandler(handler)
        logging.getLogger("seam").setLevel(logging.INFO)
        try:
            answer = {"how": "value", "text": function()}
        except UserError as error:
            answer = {"how": "sentence", "text": str(error)}
        except BaseException as error:
            answer = {"how": "error", "text": f"{type(error).__name__}: {error}"}
        content = json.dumps({**answer, "logged": "\n".join(logged)}).encode()
        while content:
            content = content[os.write(writer, content) :]
        status = 0
    finally:
        os._exit(status)


def _read(reader: int, deadline: float) -> bytes | None:
    """Return all that comes from a pipe, None if it is still open at the deadline."""
    content = b""
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        part = os.read(reader, 1 << 16)
        if not part:
            return content
        content += part


def judge(answer: Answer, expected: str | None, marker: Path | None = None, word: str | None = None) -> Ending:
    """Return the verdict about a call.

    expected: the right value, None if only a sentence is right. marker: a file that exists if foreign code ran.
    word: what a log line about a doubtful value contains; with it, the value is right.
    """
    if marker is not None and marker.exists():
        return Ending(RUN, f"{marker.name} was written", True)
    if answer.how == "sentence":
        good = "\n" not in answer.text.strip() and len(answer.text) < 1000
        return Ending(HELD if good else UNCLEAR, answer.text[:160].replace("\n", " "), True)
    if answer.how != "value":
        return Ending(UNCLEAR, f"{answer.how}: {answer.text}"[:160].replace("\n", " "), True)
    if expected is not None and answer.text == expected:
        return Ending(HELD, "equal", False)
    if word is not None and word in answer.logged:
        return Ending(HELD, answer.logged[:160], True)
    return Ending(SILENT, "another value, without a word" if expected is not None else "taken without a word", True)
