# For the estimate: the jobs that a run would do, as a dry run finds them.

import atexit
import json

# The environment variable that names the file to which a dry run writes its jobs.
PLAN = "SEAM_PLAN"


def planned_jobs():
    """Return all jobs that make something, as dictionaries, in the order of the rules."""
    order = [rule.name for rule in workflow.rules]
    # A dry run pretends to finish its jobs.
    todo = set(workflow.dag.needrun_jobs(exclude_finished=False))
    return [
        {
            "todo": job in todo,
            "rule": job.rule.name,
            "wildcards": dict(job.wildcards.items()),
            "params": dict(job.params.items()),
            "search": (
                problem_of(job.wildcards).settings if "target" in job.wildcards.keys() else None
            ),
            "threads": job.threads,
            "benchmark": job.benchmark,
            "output": list(job.output),
        }
        for job in sorted(workflow.dag.jobs, key=lambda job: order.index(job.rule.name))
        if job.output
    ]


def write_plan():
    if workflow.dag is not None:  # else the dry run has failed and said why
        Path(os.environ[PLAN]).write_text(json.dumps(planned_jobs(), default=str))


def dry_run(wildcards):
    """Return the command that plans all of this run's workflow and does nothing."""
    if IS_MODULE:  # its dry run would plan the other workflow
        raise WorkflowError("estimate is for SeaM's own Snakefile, not for a module: run it there.")
    triggers = [str(trigger) for trigger in workflow.rerun_triggers]
    values, files = workflow.config_settings.config_args, workflow.overwrite_configfiles
    command = [sys.executable, "-m", "snakemake", "all", "--dry-run", "--nolock"]
    command += ["--quiet", "rules", "progress", "--rerun-incomplete", "--rerun-triggers", *triggers]
    command += ["--snakefile", workflow.main_snakefile, "--directory", os.getcwd()]
    command += ["--cores", all_cores(wildcards), *(["--sdm", "conda"] if CONDA else [])]
    command += ["--config", *values] if values else []
    command += ["--configfile", *files] if files else []
    return list(map(str, command))


if PLAN in os.environ:
    atexit.register(write_plan)
