"""Catching what a library prints, logs and warns, so that a tool can say it in its own words."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def caught() -> Iterator[io.StringIO]:
    """All that goes to standard output, standard error and handlers on it; warnings are dropped."""
    said = io.StringIO()
    loggers = [x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger)]
    handlers = {
        h for x in (logging.root, *loggers) for h in x.handlers if isinstance(h, logging.StreamHandler)
    }
    ours = [h for h in handlers if h.stream in (sys.stderr, sys.__stderr__)]
    with ExitStack() as stack:
        for handler in ours:  # each holds the stream that it was made with
            stack.callback(handler.setStream, handler.stream)
            handler.setStream(said)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(redirect_stdout(said))
        stack.enter_context(redirect_stderr(said))
        yield said
