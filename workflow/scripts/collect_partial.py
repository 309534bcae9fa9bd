"""After a run that failed: make the tables and figures of the finished results.

partial.smk runs this. The argument is the log; standard input has, as JSON, the run that `collect` takes.
"""

import json
import sys

from seam.log import job_log, log
from seam.report.partial import collect

if __name__ == "__main__":
    with job_log(sys.argv[1]):
        lines = collect(json.load(sys.stdin))
        for line in lines:
            log.info("%s", line)
        if lines:
            print("\n" + "\n".join(lines) + "\n", file=sys.stderr)
