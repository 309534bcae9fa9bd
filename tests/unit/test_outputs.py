"""Outputs of a job: they replace earlier ones at the end only, and not those of a newer job."""

import pytest

from seam.errors import UserError
from seam.outputs import staged


@pytest.fixture
def outputs(tmp_path):
    """Paths of two outputs, with the results of an earlier job."""
    paths = [tmp_path / "red" / name for name in ("a.csv", "b.csv")]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_text("old")
    return paths


def texts(paths):
    return [path.read_text() for path in paths]


def write(staging, paths, text):
    for path in paths:
        staging(path).write_text(text)


def rests(paths):
    return [path.name for path in paths[0].parent.parent.iterdir() if path != paths[0].parent]


def test_outputs_are_replaced_at_the_end(outputs):
    with staged(outputs) as staging:
        write(staging, outputs, "new")
        assert texts(outputs) == ["old", "old"]
        assert staging(outputs[0]).parent.parent == outputs[0].parent.parent  # as deep: relative paths hold
    assert texts(outputs) == ["new", "new"] and not rests(outputs)


def test_an_error_leaves_them_as_they_were(outputs):
    with pytest.raises(ValueError), staged(outputs) as staging:
        write(staging, outputs, "new")
        raise ValueError
    assert texts(outputs) == ["old", "old"] and not rests(outputs)


def test_a_newer_job_takes_over(outputs):
    with pytest.raises(UserError, match="newer job"), staged(outputs) as old:
        with staged(outputs) as new:
            old(outputs[0]).parent.mkdir(exist_ok=True)  # as an atomic write does
            write(old, outputs, "orphan")
            write(new, outputs, "new")
        assert texts(outputs) == ["new", "new"]
    assert texts(outputs) == ["new", "new"] and not rests(outputs)


def test_jobs_of_other_outputs_of_a_folder_do_not_disturb_each_other(outputs):
    with staged(outputs[:1]) as one, staged(outputs[1:]) as other:
        write(one, outputs[:1], "1")
        write(other, outputs[1:], "2")
    assert texts(outputs) == ["1", "2"]


def test_a_job_whose_name_begins_with_that_of_another_is_left_alone(tmp_path):
    one, other = tmp_path / "a.masks" / "masks.csv", tmp_path / "a" / "masks.csv"
    with staged([one]) as long:
        with staged([other]) as short:  # in .a.masks.TOKEN.new, the other in .a.masks.masks.TOKEN.new
            short(other).write_text("2")
        long(one).write_text("1")
    assert texts([one, other]) == ["1", "2"]
