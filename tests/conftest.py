"""Options of the test run."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # no test looks at a clock: machines are busy
settings.load_profile("untimed")


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew instead of comparing")
