"""After a run that failed: make the tables and figures of what is there.

partial.smk runs this. Its argument is the log; standard input has, as JSON, what `seam.report.partial.collect` takes.
"""

import json
import sys

from seam.log import job_log, log
from seam.report.partial import collect

if __name__ == "__main__":
    with job_log(sys.argv[1]):
        lines = list(collect(json.load(sys.stdin)))
        for line in lines:
            log.info("%s", line)
        if lines:
            print("\n" + "\n".join(lines) + "\n", file=sys.stderr)
