# Partial results: after a failed run, tables and figures of the finished problems, in results/partial.
# The functions are here and not in common.smk, because they read the state of the run and serve no rule.

import atexit
import contextlib
import json
import shutil
import subprocess

PARTIAL = Path("results/partial").absolute()
RESULTS = {"collect_direct", "collect_indirect", "summarise", "plot_direct", "plot_indirect"}


def unfinished_jobs():
    """Return the jobs that this run planned and did not finish, and which of them failed."""
    failed = [
        job
        for entry in workflow.scheduler.failed
        for job in (entry if entry.is_group() else [entry])
    ]
    return [
        {
            "rule": job.rule.name,
            "input": list(map(str, job.input)),
            "output": list(map(str, job.output)),
            "log": next(map(str, job.log), None),
            "failed": job in failed,
        }
        for job in workflow.dag.needrun_jobs()
    ]


def model_columns(name):
    """Return the columns of a table that describe a source model."""
    model = config["models"][name]
    origin = weights_origin(model["weights"])
    return {"model": name, "architecture": model["architecture"], "weights_origin": origin}


def collect_partial():
    """Make tables and figures of the finished problems and students, if this run was to make those of all."""
    jobs, planned = unfinished_jobs(), {job.rule.name for job in workflow.dag.jobs}
    if RESULTS.isdisjoint(job["rule"] for job in jobs):
        return
    problems = [
        {
            **model_columns(p.model),
            "dataset": p.dataset,
            "problem": p.problem,
            "target": p.target,
            "classes": p.outputs,
            "folder": f"results/direct/{p.model}/{p.problem}/{p.target}",
            "recovery": bool(p.recovery),
        }
        for p in PROBLEMS
        if "collect_direct" in planned
    ]
    students = [
        {
            **model_columns(s.model),
            "dataset": s.dataset,
            "student": s.student,
            "threshold": s.threshold,
            "folder": f"results/indirect/{s.model}/{s.dataset}/{s.method}",
        }
        for s in STUDENTS
        if "collect_indirect" in planned
    ]
    run = {
        "problems": problems,
        "students": students,
        "engines": ENGINES,
        "jobs": jobs,
        "published": workflow_file("workflow/scripts/seam/resources/published.csv"),
        "folder": "results/partial",
    }
    script = WORKFLOW / "scripts" / "collect_partial.py"
    command = [sys.executable, script, "results/logs/collect_partial.log"]
    subprocess.run(command, input=json.dumps(run), text=True, check=False)


def remove_partial():
    """Remove the partial results of an earlier run once all results are there."""
    with contextlib.suppress(Exception):  # not worth a traceback at the end of a run
        if workflow.dryrun or not workflow.scheduler or not PARTIAL.is_dir():
            return
        if "all" in {job.rule.name for job in workflow.dag.jobs} and not any(
            workflow.dag.needrun_jobs()
        ):
            shutil.rmtree(PARTIAL)


# In a module, the folder may be the other workflow's.
if workflow.exec_mode == ExecMode.DEFAULT and not IS_MODULE:
    # Snakemake does not call onsuccess if nothing is to be done, for example after a target left the config.
    atexit.register(remove_partial)


onerror:
    try:
        collect_partial()
    except Exception as error:  # must not hide the failure that led here
        logger.warning(f"No partial tables and figures ({type(error).__name__}: {error}).")
