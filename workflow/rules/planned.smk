# For the estimate: the jobs that a run would do, as a dry run finds them.

import atexit
import json

# The environment variable that names the file to which a dry run writes its jobs.
PLAN = "SEAM_PLAN"


def plain(settings):
    """The whole numbers among a job's resources, or those that the workflow may use."""
    values = {name: getattr(value, "value", value) for name, value in settings.items()}
    return {name: value for name, value in values.items() if isinstance(value, int)}


def limits():
    """{resource: how much of it all jobs together may use}; a cluster's jobs have what is for one queue entry each."""
    found = plain(workflow.global_resources)
    if "_nodes" not in found:  # the number of --jobs, without which all run on this machine
        return found
    local = [name for name in found if workflow.resource_scopes.is_local(name)]
    return {name: most for name, most in found.items() if name not in ("_cores", *local)}


def planned_jobs():
    """All jobs that make something, as dictionaries, in the order of the rules."""
    rules_in_order = [rule.name for rule in workflow.rules]
    jobs = sorted(workflow.dag.jobs, key=lambda job: rules_in_order.index(job.rule.name))
    todo = set(workflow.dag.needrun_jobs(exclude_finished=False))  # which a dry run pretends
    number = {job: place for place, job in enumerate(jobs)}
    return [
        {
            "number": number[job],
            "after": [number[other] for other in workflow.dag.dependencies[job]],
            "todo": job in todo,
            "rule": job.rule.name,
            "wildcards": dict(job.wildcards.items()),
            "params": dict(job.params.items()),
            "threads": job.threads,
            "resources": plain(dict(job.resources.items())),
            "priority": job.rule.priority,
            "benchmark": job.benchmark,
            "output": list(job.output),
        }
        for job in jobs
        if job.output
    ]


def write_plan():
    if workflow.dag is not None:  # else the dry run has failed and said why
        Path(os.environ[PLAN]).write_text(json.dumps(planned_jobs(), default=str))


def dry_run(wildcards):
    """The command that plans all of this run's workflow and does nothing."""
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
