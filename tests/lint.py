"""`snakemake --lint`, without the advice that does not fit here. Exits with 1 if it says anything else."""

import re
import subprocess
import sys
from pathlib import Path

STAYS = {  # advice by its title, and why it is not followed
    "Absolute path": "paths of the workflow's own files come from workflow.basedir, wherever it was cloned",
    "Mixed rules and functions in same snakefile": "the helper functions are in common.smk, which has no rules",
}

snakemake = Path(sys.executable).with_name("snakemake")
result = subprocess.run([snakemake, "--lint"], capture_output=True, text=True, check=False)
text = result.stdout + result.stderr
advice = re.findall(r"^ +\* (.+?):\n", text, re.MULTILINE)
others = [title for title in advice if not any(title.startswith(stays) for stays in STAYS)]
if others or (not advice and result.returncode):
    sys.exit(text)
print(f"snakemake --lint: {len(advice)} remarks, all of them known and explained in {sys.argv[0]}")
