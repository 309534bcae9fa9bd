# What the terminal shows: of a failed job its sentence and its log, and at the end of a run the answer.

from snakemake.logging import DefaultFormatter

# Another version of Snakemake may lack the method, which is not public. Errors are then as long as Snakemake writes them.
if (
    hasattr(DefaultFormatter, "_format_job_error")
    and workflow.exec_mode == ExecMode.DEFAULT
    and not workflow.output_settings.verbose
):
    DefaultFormatter._format_job_error = short_job_error


onsuccess:
    try:
        show_results()
    except (
        Exception
    ) as error:  # the results are there: this must not make the run look as if it had failed
        logger.warning(f"No summary on the terminal ({type(error).__name__}: {error}).")
