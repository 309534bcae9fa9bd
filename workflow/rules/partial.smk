# After a run that failed: tables and figures of what is there, in a folder of their own until all is there.

import atexit
import contextlib
import json
import shutil
import subprocess

PARTIAL = Path("results/partial").absolute()
RESULTS = {"collect_direct", "collect_indirect", "summarise", "plot_direct", "plot_indirect"}


def unmade():
    """The jobs that this run had to do and did not finish, those that failed marked."""
    failed = [
        job for one in workflow.scheduler.failed for job in (one if one.is_group() else [one])
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


def about_model(name):
    model = config["models"][name]
    origin = weights_origin(model["weights"])
    return {"model": name, "architecture": model["architecture"], "weights_origin": origin}


def collect_partial():
    """Tables and figures of the problems and students that are there, where this run was to make them of all."""
    jobs, asked = unmade(), {job.rule.name for job in workflow.dag.jobs}
    if RESULTS.isdisjoint(job["rule"] for job in jobs):
        return
    problems = [
        {
            **about_model(p.model),
            "dataset": p.dataset,
            "problem": p.problem,
            "target": p.target,
            "classes": 2 if p.problem == "binary" else len(p.classes),
            "folder": f"results/direct/{p.model}/{p.problem}/{p.target}",
        }
        for p in PROBLEMS
        if "collect_direct" in asked
    ]
    students = [
        {
            **about_model(s.model),
            "dataset": s.dataset,
            "student": s.student,
            "threshold": s.threshold,
            "folder": f"results/indirect/{s.model}/{s.dataset}/{s.method}",
        }
        for s in STUDENTS
        if "collect_indirect" in asked
    ]
    run = {
        "problems": problems,
        "students": students,
        "engines": ENGINES,
        "jobs": jobs,
        "published": own("workflow/scripts/seam/resources/published.csv"),
        "folder": "results/partial",
    }
    script = WORKFLOW / "scripts" / "collect_partial.py"
    command = [sys.executable, script, "results/logs/collect_partial.log"]
    subprocess.run(command, input=json.dumps(run), text=True, check=False)


def forget_partial():
    """Remove what an earlier run made of a part, once all of it is there."""
    with contextlib.suppress(Exception):  # nothing that is worth a traceback at the very end
        if workflow.dryrun or not workflow.scheduler or not PARTIAL.is_dir():
            return
        if "all" in {job.rule.name for job in workflow.dag.jobs} and not any(
            workflow.dag.needrun_jobs()
        ):
            shutil.rmtree(PARTIAL)


if workflow.exec_mode == ExecMode.DEFAULT:
    # Not by onsuccess, which is left out where there is nothing to be done: after a target is taken out again, say.
    atexit.register(forget_partial)


onerror:
    try:
        collect_partial()
    except Exception as error:  # the failure that led here is what is to be seen
        logger.warning(
            f"No tables and figures of what is there ({type(error).__name__}: {error})."
        )
