"""Snakemake runs at most as many GPU jobs at a time as this machine has GPUs."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

LIMIT = """
import json, os, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import OutputSettings, Quietness, ResourceSettings

limits = []
for visible, settings in json.loads(sys.argv[2]):
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        workflow = api.workflow(ResourceSettings(**settings), snakefile=Path(sys.argv[1]))._workflow
        limits.append(workflow.global_resources["gpu"].value if "gpu" in workflow.global_resources else None)
print(json.dumps(limits))
"""


def test_locally_there_are_as_many_gpu_jobs_as_gpus(tmp_path):
    limits = [
        (("0,1", {"cores": 4}), 2),
        (("0,1", {"cores": 4, "resources": {"gpu": 3}}), 3),
        (("0,1", {"nodes": 10}), None),  # --jobs of a cluster
        (("", {"cores": 4}), None),
    ]
    command = [sys.executable, "-c", LIMIT, ROOT / "Snakefile", json.dumps([run for run, _ in limits])]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout.splitlines()[-1]) == [limit for _, limit in limits]
