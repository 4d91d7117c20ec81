"""The errors that `compat` raises itself; what HF or Lightning raise passes through unchanged."""

from __future__ import annotations


class CompatError(Exception):
    """Base of every error raised by `compat`."""


class ArgumentError(CompatError, ValueError):
    """An argument has a value that is not supported.

    The message reads ``field=value` …: why. Do X.``: it names the field, the value and the remedy.
    """


class CheckpointError(CompatError, OSError):
    """A checkpoint cannot be written, read or trusted.

    The message names the file, the reason and the remedy. An `OSError`, as a full disk would raise.
    """


class BrokenCheckpointError(ArgumentError, CheckpointError):
    """The checkpoint that an argument names, or every candidate, is broken."""


class UpstreamError(CompatError, RuntimeError):
    """A release of transformers, accelerate or lightning no longer has a name that `compat` relies on."""


class InstallError(CompatError, RuntimeError):
    """`compat.install()` found something that it cannot patch; nothing has changed."""


class RebaseError(CompatError, TypeError):
    """`compat.on_lightning()` received a class derived from neither HF's Trainer nor HF's arguments."""


class VerificationError(CompatError, RuntimeError):
    """A verification cannot be made, or cannot be written down; nothing is claimed about the two Trainers."""


class MissingLibraryError(CompatError, ImportError):
    """An optional library that is needed here is not installed."""


class DependencyError(CompatError, ImportError):
    """A library that `compat` needs is installed in a release that is too old.

    The message names the library, the installed release, the oldest supported one, and the command to run.
    """


class UnknownArgumentError(ArgumentError, TypeError):
    """An argument that does not exist; a `TypeError`, as Python itself raises for one."""
