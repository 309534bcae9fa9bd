"""Summarise results beside the published values; with a path, print an existing summary.

In the terminal: python workflow/scripts/summarise.py results/tables/summary.csv
"""

import sys

from seam.report.summary import print_summary, write_summary

if "snakemake" in globals():
    from seam.log import job_log
    from seam.process import start_job

    start_job()

    with job_log(snakemake.log[0]):
        files = snakemake.input
        tables = files.binary, files.multiclass, files.indirect, files.published, files.get("baselines") or None
        write_summary(snakemake.output.summary, *tables)
elif __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python workflow/scripts/summarise.py SUMMARY.csv")
    sys.exit(print_summary(sys.argv[1]))
