"""A change of the code that shifts a bit of any result fails here: see golden.py for how to record new digests."""

import json

import golden
import pytest


def test_a_small_whole_run_gives_the_recorded_digests(tmp_path):
    recorded = json.loads(golden.RECORDED.read_text()).get(golden.platform())
    if recorded is None:
        pytest.skip(f"golden.json has no digests for {golden.platform()}: run `make golden` on unchanged code first")
    found = golden.run(tmp_path)
    assert {path for path in recorded.keys() | found.keys() if recorded.get(path) != found.get(path)} == set()
