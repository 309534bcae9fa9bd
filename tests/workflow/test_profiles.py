"""The profiles: how they read configs, which jobs they give a node of their own, and the diagram of the demo."""

import re

import pytest
import yaml
from workflows import ROOT, snakemake

TIMING = re.compile(r"^rule (\w+):.*?(?=^rule |^use rule |\Z)", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("profile", ["default", "slurm"])
def test_a_config_that_is_not_there_is_one_sentence(tmp_path, profile):
    arguments = ["--workflow-profile", ROOT / "profiles" / profile, "--configfile", "nothere.yaml", "--dry-run"]
    status, said = snakemake(tmp_path, *arguments, check=False)
    assert status != 0 and "Traceback" not in said and "nothere.yaml" in said, said


def test_the_profiles_read_config_files_alike():
    own = [yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text()) for name in ("default", "slurm")]
    assert own[0]["__definitions__"] == own[1]["__definitions__"] and all(each["__use_yte__"] for each in own)


def test_all_jobs_that_measure_time_have_a_node_of_their_own():
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    rules = "\n".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    timed = {match[1] for match in TIMING.finditer(rules) if re.search(r"^ +timing=1,", match[0], re.MULTILINE)}
    assert {"time_engine", "measure_layer_costs", "time_baselines"} <= timed
    assert set(profile["set-resources"]) == set(profile["set-threads"]) == timed


def test_a_job_that_fails_leaves_all_results_of_earlier_ones():
    """A rule's outputs are restored only if they are marked with update(): workflow/rules/keeping.smk."""
    rules = "\n".join(path.read_text() for path in sorted((ROOT / "workflow/rules").glob("*.smk")))
    blocks = re.findall(r"^ +output:\n(.*?)^ +(?:log|benchmark|params|threads|conda):", rules, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 30
    for block in blocks:
        assert len(re.findall(r'"results/', block)) == block.count("update("), block


def test_the_diagram_in_the_readme_shows_the_rules_of_the_demo(tmp_path):
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"<!-- snakemake (.*) -->\n```mermaid", readme)[1]
    command = command.replace("profiles/", f"{ROOT}/profiles/").split()
    _, said = snakemake(tmp_path, *command)
    assert edges(readme) == edges(said)


def edges(text: str) -> set[tuple[str, str]]:
    """Return the edges of a Mermaid diagram as pairs of labels."""
    names = dict(re.findall(r"(id\d+)\[(\w+)\]", text))
    return {(names[one], names[other]) for one, other in re.findall(r"(id\d+) --> (id\d+)", text)}
