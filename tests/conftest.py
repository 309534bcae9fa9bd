"""A small world for the tests: images of four colours as files, a small network trained on them."""

import signal

import pytest
from colours import ARCHITECTURE, PLAIN_ARCHITECTURE, paint, trained_model
from devices import pretend_gpus, restored_device  # noqa: F401 (fixtures)

# What takes minutes begins first, so that the processes of `make test` end at about the same time.
LONG = ("test_slurm", "test_workflow", "test_interrupted", "test_check", "test_torture", "test_wheel", "test_golden")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell; programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """The folder of the images."""
    return paint(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def dataset_folder(colours, tmp_path_factory):
    """The data set as the workflow keeps it."""
    from seam.data.kinds.registry import prepare_dataset

    folder = tmp_path_factory.mktemp("datasets") / "colours"
    prepare_dataset({"kind": "imagefolder", "root": str(colours), "size": 16}, folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(dataset_folder, tmp_path_factory):
    """A small source model trained on it, as the workflow keeps it."""
    return trained_model(tmp_path_factory.mktemp("models") / "small", ARCHITECTURE, dataset_folder)


@pytest.fixture(scope="session")
def plain_model_folder(dataset_folder, tmp_path_factory):
    """A small source model without dropout, so that searches can be stacked."""
    return trained_model(tmp_path_factory.mktemp("models") / "plain", PLAIN_ARCHITECTURE, dataset_folder)


def pytest_collection_modifyitems(items):
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """What a test logged is sent to the process that reports it: a name that is no text must not break that either."""
    report = yield
    report.sections = [(name, said.encode("utf-8", "backslashreplace").decode()) for name, said in report.sections]
    return report
