#!/usr/bin/env bash
# Runs the check of docs/gpu.md on this machine, from what `make gpu-check` has prepared. --help lists the options.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" tests/gpu/check.py "$@"
