"""A small certificate authority for one cluster: `nokv certs`.

One folder holds `ca.crt` and `ca.key`, and what they signed: `node-1.crt`, `node-1.key`,
`client-NAME.crt`, `client-NAME.key`. Keys are P-256, readable by their owner only, and nothing is
ever overwritten. The authority may name nodes and clients of its own cluster only: its name
constraint (RFC 5280, 4.2.1.10) permits no other URI, so a trusted authority of one cluster can't
speak for another.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nokv.errors import ConfigError
from nokv.wire.identity import NAME, Identity

CA_DAYS: Final = 3650
LEAF_DAYS: Final = 365
DAYS_MAX: Final = 36_500
HOSTS: Final = ("localhost", "127.0.0.1", "::1")

_EARLIER: Final = dt.timedelta(hours=1)
"""Certificates are valid this long before they are made, for machines whose clock is behind."""


class Minted(NamedTuple):
    """A certificate and its key, as files."""

    ca: Path
    cert: Path
    key: Path
    identity: Identity | None
    """None for the authority."""
    expires: dt.datetime


def make_authority(folder: Path, cluster: str, days: int = CA_DAYS) -> Minted:
    """Make the authority of a cluster.

    Raises:
        ConfigError: there is one already, or the cluster's id or `days` can't be.
    """
    _check_name(cluster, "cluster")
    not_before, not_after = _validity(days)
    key = ec.generate_private_key(ec.SECP256R1())
    name = _common_name(f"NoKV {cluster}")
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(
            x509.NameConstraints([x509.UniformResourceIdentifier(cluster)], None), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    _write_pair(folder, "ca", key, certificate)
    cert = folder / "ca.crt"
    return Minted(cert, cert, folder / "ca.key", None, not_after)


def make_node(
    folder: Path, node: int, hosts: Sequence[str] = HOSTS, days: int = LEAF_DAYS
) -> Minted:
    """Make a node's certificate, good for both of its ports and for what it dials.

    `hosts` are its DNS names and IP addresses, for programs that compare them. Raises ConfigError
    if there is no authority in the folder, there is one for that node already, or an argument
    can't be.
    """
    if not 1 <= node <= 65_535:
        raise ConfigError(f"node number {node}", hint="1 to 65535")
    names = [_host(host) for host in hosts]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return _sign(folder, "node", str(node), names, usages, days)


def make_client(folder: Path, name: str, days: int = LEAF_DAYS) -> Minted:
    """Make a client's certificate. Raises ConfigError as `make_node`."""
    _check_name(name, "client")
    return _sign(folder, "client", name, [], [ExtendedKeyUsageOID.CLIENT_AUTH], days)


def _sign(
    folder: Path,
    kind: str,
    name: str,
    names: list[x509.GeneralName],
    usages: list[x509.ObjectIdentifier],
    days: int,
) -> Minted:
    ca, ca_key, cluster = _authority(folder)
    not_before, not_after = _validity(days)
    if not_after > ca.not_valid_after_utc:
        left = (ca.not_valid_after_utc - not_before - _EARLIER).days
        raise ConfigError(f"{days} days", hint=f"the authority itself is valid for {left} more")
    identity = Identity(cluster, "node" if kind == "node" else "client", name)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_common_name(f"{kind} {name}"))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri), *names]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    stem = f"{kind}-{name}"
    _write_pair(folder, stem, key, certificate)
    paths = folder / "ca.crt", folder / f"{stem}.crt", folder / f"{stem}.key"
    return Minted(*paths, identity, not_after)


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, str]:
    """Return the folder's authority: its certificate, its key and its cluster."""
    cert_path, key_path = folder / "ca.crt", folder / "ca.key"
    try:
        certificate = x509.load_pem_x509_certificate(cert_path.read_bytes())
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except OSError as error:
        message = f"{error.filename}: {error.strerror}"
        raise ConfigError(message, hint="make the authority first: nokv certs init") from None
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        message = f"{folder}: ca.crt and ca.key are no authority of nokv certs: {error}"
        raise ConfigError(message) from None
    clusters = [name.value for name in constraints.permitted_subtrees or ()]
    if not isinstance(key, ec.EllipticCurvePrivateKey) or len(clusters) != 1:
        message = f"{folder}: ca.crt and ca.key are no authority of nokv certs"
        raise ConfigError(message)
    if key.public_key() != certificate.public_key():
        message = f"{key_path} is not the key of {cert_path}"
        raise ConfigError(message)
    return certificate, key, str(clusters[0])


def _validity(days: int) -> tuple[dt.datetime, dt.datetime]:
    if not 1 <= days <= DAYS_MAX:
        raise ConfigError(f"{days} days", hint=f"1 to {DAYS_MAX}")
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    return now - _EARLIER, now + dt.timedelta(days=days)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _check_name(name: str, what: str) -> None:
    if not NAME.fullmatch(name):
        message = f"{name!r} is no name of a {what}"
        raise ConfigError(message, hint="1 to 64 letters, digits, '.', '_' or '-'")


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        if not text or ":" in text or "/" in text or any(c.isspace() for c in text):
            raise ValueError(text)
        return x509.DNSName(text)
    except ValueError:
        message = f"{text!r} is no host name and no IP address"
        raise ConfigError(message, hint="write it without a port: node1.example.org") from None


def _write_pair(
    folder: Path, stem: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> None:
    """Write both files; the certificate gets its name last, so that one with a name has its key."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    cert_path, key_path = folder / f"{stem}.crt", folder / f"{stem}.key"
    for path in (cert_path, key_path):
        if path.exists():
            message = f"{path} exists already"
            raise ConfigError(message, hint="nothing is overwritten: move it away first")
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write(key_path, secret, 0o600)
    _write(cert_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Make a file whole or not at all, and only if there is none (link(2))."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(made, path)
    except FileExistsError:
        message = f"{path} exists already"
        raise ConfigError(message, hint="nothing is overwritten: move it away first") from None
    finally:
        made.unlink()
