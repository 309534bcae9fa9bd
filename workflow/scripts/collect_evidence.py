"""Collect the evidence of several runs, such as those of several seeds.

python workflow/scripts/collect_evidence.py evidence.csv RUN... writes the table of target problems, and the table of
students to evidence_indirect.csv, and prints them as Markdown. A RUN is a folder that holds results/.
"""

import sys

from seam.errors import UserError
from seam.report.evidence import collect

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("Usage: python workflow/scripts/collect_evidence.py evidence.csv RUN...")
    try:
        print(collect(sys.argv[1], sys.argv[2:]))
    except UserError as error:
        sys.exit(f"Error: {error}")
