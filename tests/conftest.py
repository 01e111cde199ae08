"""Options of the test run."""

import gc
import sys

from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # no test looks at a clock: machines are busy
settings.load_profile("untimed")


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew instead of comparing")


def pytest_collection_finish():
    """Spares all exports of this process what each of them would look up anew."""
    gc.set_threshold(100_000, 20, 100)  # with all frameworks loaded a full collection takes as long as a test
    if "graphprune.hosts.torch.host" in sys.modules:
        from exporter_once import install

        install()
