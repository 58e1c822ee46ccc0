"""Mutual TLS: the three files and the contexts made of them.

Both sides show a certificate of the cluster's own authority; `nokv.wire.identity` says whom it
names. TLS 1.3 alone is spoken (RFC 8446).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from nokv.errors import ConfigError

CA_ENV: Final = "NOKV_TLS_CA"
CERT_ENV: Final = "NOKV_TLS_CERT"
KEY_ENV: Final = "NOKV_TLS_KEY"

CLIENT_HINT: Final = (
    f"check the certificates: {CA_ENV} must be the authority of the node's, {CERT_ENV} and"
    f" {KEY_ENV} one that the cluster's authority signed and that is valid (nokv certs client)"
)
PLAIN_HINT: Final = (
    f"if the cluster uses TLS, name your certificate: {CA_ENV}, {CERT_ENV} and {KEY_ENV}"
    " (nokv certs client); else look at that node's log"
)


class TlsFiles(NamedTuple):
    """PEM files: whom to trust, and who one is."""

    ca: str
    cert: str
    key: str


def files_from_environment(environ: Mapping[str, str] | None = None) -> TlsFiles | None:
    """Return the files that NOKV_TLS_CA, NOKV_TLS_CERT and NOKV_TLS_KEY name; None: no TLS.

    Raises:
        ConfigError: some of the three are set and some are not.
    """
    environ = os.environ if environ is None else environ
    files = TlsFiles(*(environ.get(name, "") for name in (CA_ENV, CERT_ENV, KEY_ENV)))
    return check_files(files, f"{CA_ENV}, {CERT_ENV} and {KEY_ENV}")


def connect_context(files: TlsFiles | None = None) -> ssl.SSLContext | None:
    """Return the context of a client: of these files, else of the environment's, else no TLS.

    Raises:
        ConfigError: a file is missing, or not what it should be.
    """
    files = files or files_from_environment()
    return None if files is None else client_context(files)


def check_files(files: TlsFiles, what: str) -> TlsFiles | None:
    """Return the files if all three are named, None if none is; else raise ConfigError."""
    if not any(files):
        return None
    if not all(files):
        message = f"{what} belong together: one is missing"
        raise ConfigError(message, hint="name all three files, or none")
    return files


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the context of a side that connects.

    The name that was dialed is not compared: a certificate says which node it is, not where.

    Raises:
        ConfigError: a file is missing, or not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return _loaded(context, files)


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return the context of a side that is connected to. Raises ConfigError as `client_context`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # connections live long: nobody resumes one
    return _loaded(context, files)


def _loaded(context: ssl.SSLContext, files: TlsFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    for path in files:
        try:
            Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", hint="nokv certs makes them") from None
    try:
        context.load_verify_locations(files.ca)
    except ssl.SSLError as error:
        message = f"{files.ca} holds no certificate of an authority: {reason_of(error)}"
        raise ConfigError(message) from None
    try:
        # An empty password, so that an encrypted key is refused and nothing is asked for.
        context.load_cert_chain(files.cert, files.key, password="")
    except ssl.SSLError as error:
        message = f"{files.cert} and {files.key} are no certificate with its key"
        raise ConfigError(f"{message}: {reason_of(error)}") from None
    return context


def reason_of(error: ssl.SSLError) -> str:
    """Return why, as short as OpenSSL says it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (error.reason or str(error)).lower().replace("_", " ")
