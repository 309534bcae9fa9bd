"""Damaged files end in a result or in a sentence: a few here, any number by tests/engine/mutate.py."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import needs_compiler

FILES = int(os.environ.get("SEAM_ENGINE_FILES", 300))


@needs_compiler
def test_damaged_files():
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("mutate.py"), str(FILES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + FILES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{FILES} damaged files" in done.stdout
