# What the terminal shows: of a failed job its sentence and its log, and at the end of a run the answer.
# The functions are here and not in common.smk, because they serve no rule.

from snakemake.logging import DefaultFormatter

CLOSING = {"summarise", "report"}  # rules after which a run has new results to show


def short_job_error(self, msg):
    """Return the lines on a failed job: not all its inputs and outputs, which the log file of the run has."""
    lines = [f"Error in rule {msg['rule_name']}: {msg['rule_msg'] or ''}".rstrip(": ")]
    if msg["log"]:
        lines.append(f"    log: {', '.join(msg['log'])} (check log file(s) for error details)")
    lines += [f"    {name}: {value}" for name, value in msg["aux"].items()]
    return lines


def show_results():
    """Show the summary, results that lost accuracy, and where everything is, if this run made the summary."""
    if CLOSING.isdisjoint(job.rule.name for job in workflow.dag.finished_jobs):
        return
    from seam.report.closing import closing_lines

    page = "results/report.html"
    for line in closing_lines("results/tables", page if Path(page).exists() else None):
        logger.info(line)


if workflow.exec_mode == ExecMode.DEFAULT and not workflow.output_settings.verbose:
    DefaultFormatter._format_job_error = short_job_error


onsuccess:
    try:
        show_results()
    except (
        Exception
    ) as error:  # the results are there: this must not make a run that succeeded look as if it had failed
        logger.warning(f"No summary on the terminal ({type(error).__name__}: {error}).")
