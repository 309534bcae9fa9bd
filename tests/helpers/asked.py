"""What the jobs of a workflow ask for in their first three attempts, as JSON: [{rule: [resources and wildcards]}].

python asked.py SNAKEFILE CONFIG, in the working directory of the workflow.
"""

import json
import sys
from pathlib import Path

from snakemake.api import ConfigSettings, OutputSettings, ResourceSettings, SnakemakeApi
from snakemake.settings.types import Quietness

snakefile, config = map(Path, sys.argv[1:])
with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
    workflow = api.workflow(ResourceSettings(cores=8), ConfigSettings(configfiles=[config]), snakefile=snakefile)
    workflow.dag().execute_workflow(executor="dryrun")
    found = []
    for attempt in (1, 2, 3):
        found.append({})
        for job in workflow._workflow.dag.jobs:
            job.attempt = attempt
            numbers = {name: value for name, value in job.resources.items() if isinstance(value, int)}
            found[-1].setdefault(job.rule.name, []).append(numbers | job.wildcards_dict)
print(json.dumps(found))
