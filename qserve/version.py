"""The version, in one place: the distribution and `qserve --version` read it."""

__version__ = "0.1.0"
