"""A certification authority of a test, which nobody trusts who is not told to."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

HOST, ADDRESS = "receiver.example", "127.0.0.2"
"""Whom its certificate is for."""


class Authority:
    """An authority and one certificate of it.

    Parameters:
      folder: Where the files are written.

    Attributes:
      file: The certificate of the authority.
      server: The context of a server that has the certificate.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("there is no openssl")
        self.file = folder / "ca.pem"
        own = folder / "own.pem"
        _make(self.file, "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign")
        names = f"subjectAltName=DNS:{HOST},IP:{ADDRESS}"
        _make(own, "basicConstraints=CA:FALSE", names, by=self.file)
        self.server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.server.load_cert_chain(own, _key(own))


def _key(file: Path) -> Path:
    return file.with_suffix(".key")


def _make(file: Path, *extensions: str, by: Path | None = None) -> None:
    """Write a certificate and its key; it is signed with its own unless another one signs it."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={file.stem} of a test", "-keyout", str(_key(file)), "-out", str(file)]
    command += [part for extension in extensions for part in ("-addext", extension)]
    if by is not None:
        command += ["-CA", str(by), "-CAkey", str(_key(by))]
    subprocess.run(command, check=True, capture_output=True)
