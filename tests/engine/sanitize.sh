#!/bin/sh
# Runs the engine's tests with kernels that check addresses and undefined behaviour:  sh tests/engine/sanitize.sh [pytest's arguments]
set -e
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
export SEAM_ENGINE_CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"
export LD_PRELOAD="$(cc -print-file-name=libasan.so) $(cc -print-file-name=libubsan.so)"
# Python keeps memory until it ends; other libraries' leaks are theirs.
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1
exec "$python" -m pytest -p no:cacheprovider tests/engine/test_operations.py tests/engine/test_engine.py "$@"
