"""Keys and certificates of a federation: an authority made for this one purpose, the SuperLink's certificate, a key pair for each node.

The authority's private key signs one certificate and is never written: nobody can steal it to make a second SuperLink that nodes believe.
Private files are for their owner only (0600, in a folder of 0700) from the moment they exist.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kronos.errors import InputError, MissingFileError

_VALID_DAYS = 365
_HOST_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")


@dataclass(frozen=True)
class ServerFiles:
    """Where the SuperLink's files lie. authority: the CA certificate, which other hosts need. certificate, key: the SuperLink's own."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def of(cls, folder: Path) -> ServerFiles:
        return cls(folder / "ca.crt", folder / "superlink.crt", folder / "superlink.key")


def make_server_files(folder: Path, hosts: Sequence[str] = ()) -> ServerFiles:
    """A new authority and a SuperLink certificate signed by it, valid for a year, for localhost, 127.0.0.1, ::1 and `hosts`.

    hosts: names or addresses under which nodes reach the SuperLink. Raises InputError for one that is neither.
    """
    files = ServerFiles.of(private_folder(folder))
    authority_key, server_key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Kronos federation authority")])
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Kronos SuperLink")])
    names = x509.SubjectAlternativeName([_subject(host) for host in dict.fromkeys(["localhost", "127.0.0.1", "::1", *hosts])])
    authority = (
        _builder(authority_name, authority_name, authority_key, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA384())
    )
    server = (
        _builder(server_name, authority_name, server_key, authority_key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .sign(authority_key, hashes.SHA384())
    )
    files.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    files.certificate.write_bytes(server.public_bytes(serialization.Encoding.PEM))
    pem = server_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(files.key, pem)
    return files


def days_left(certificate: Path) -> float:
    """Days until a PEM certificate expires; negative once it has. Raises MissingFileError, InputError."""
    if not certificate.is_file():
        raise MissingFileError(f"certificate {certificate} is not there")
    try:
        end = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except ValueError:
        raise InputError(f"{certificate} is not a PEM certificate") from None
    return (end - datetime.datetime.now(datetime.UTC)).total_seconds() / 86400


def make_node_key(path: Path) -> Path:
    """A new key pair for a SuperNode (P-384, OpenSSH format): the private key at `path`; returns the path of the public one, `path`.pub.

    Raises InputError if there is a key already: it may be registered somewhere.
    """
    public = path.with_name(path.name + ".pub")
    if path.exists() or public.exists():
        raise InputError(f"{path}: there is a key already; remove it and its .pub to make a new one, or choose another name")
    private_folder(path.parent)
    key = ec.generate_private_key(ec.SECP384R1())
    write_private(path, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n")
    return public


def private_folder(folder: Path) -> Path:
    """The folder, made if need be, for its owner only."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder


def write_private(path: Path, content: bytes) -> None:
    """Writes a new file that nobody else could read at any moment. Raises FileExistsError if it is there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def check_private(path: Path) -> Path:
    """The path of a private key, if nobody but its owner can read it. Raises MissingFileError, InputError."""
    if not path.is_file():
        raise MissingFileError(f"key {path} is not there; make one with: python federated/deploy.py key {path}")
    if path.stat().st_mode & 0o077:
        raise InputError(f"{path} can be read by others (mode {path.stat().st_mode & 0o777:o}); run: chmod 600 {path}")
    return path


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks of other hosts
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass  # not an address, so a name
    if not _HOST_NAME.fullmatch(host):
        raise InputError(f"host {host!r} is neither an address nor a host name")
    return x509.DNSName(host)
