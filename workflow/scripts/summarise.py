"""Summarise results beside the published values; with a path, print a summary that is there.

In the terminal: python workflow/scripts/summarise.py results/tables/summary.csv
"""

import sys

from seam.report.summary import print_summary, write_summary

if "snakemake" in globals():
    from seam.log import job_log

    with job_log(snakemake.log[0]):
        found = snakemake.input
        write_summary(snakemake.output.summary, found.binary, found.multiclass, found.indirect, found.published)
elif __name__ == "__main__":
    sys.exit(print_summary(sys.argv[1]))
