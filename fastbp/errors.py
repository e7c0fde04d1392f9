"""The exceptions that fastbp raises, and helpers that word them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FastbpError(Exception):
    """Base class of every error that fastbp raises on purpose."""


class InputError(FastbpError, ValueError):
    """An argument has a wrong value, shape or type; the message names it, what came and what is needed."""


class GraphError(FastbpError):
    """A graph cannot be built, differentiated or planned."""


class TraceError(GraphError):
    """A Python function does with a traced value what only a value could do; the message says what to do instead."""


class DivergedError(FastbpError):
    """Training stopped because the loss is no longer finite; the last good parameters are kept."""


class DataError(FastbpError, ValueError):
    """A data file is missing, truncated, empty or does not hold what its name promises."""


class UnavailableError(FastbpError, RuntimeError):
    """A backend cannot run on this machine; the message says what is missing and how to get it."""


class DeviceMemoryError(FastbpError, MemoryError):
    """The GPU's memory does not suffice; the message says for what, and which batch would fit. Nothing is lost."""


class MissingExtraError(FastbpError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


def unknown(what: str, got: object, valid: Iterable[str]) -> InputError:
    """The error for a name that is not one of ``valid``, with the nearest valid one suggested."""
    names = list(valid)
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(got).lower(), lower, n=1, cutoff=0.5)
    hint = f"; did you mean {lower[near[0]]!r}?" if near else "."
    return InputError(f"{what}={got!r} is unknown{hint} Valid: {', '.join(map(repr, names))}.")


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """The error for an optional package that is not installed."""
    return MissingExtraError(f"{purpose} needs the package {package!r}: pip install 'fastbp[{extra}]'.")
