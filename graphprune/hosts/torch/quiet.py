"""What exporters print stays off the terminal, and goes with the error that they raise."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

_LOGGERS = ("torch", "torch.export", "torch.onnx", "onnxscript", "onnx_ir")

LONGEST = 20_000
"""Characters of what was printed that an error keeps: the end says what went wrong."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporters' prints, warnings and logs from the user: what goes wrong is raised.

    An error that leaves this context has what was printed as a note, which its traceback shows.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    said = io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stdout(said), redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    except BaseException as error:
        if text := said.getvalue().strip():
            error.add_note(f"what was printed meanwhile:\n{text[-LONGEST:]}")
        raise
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
