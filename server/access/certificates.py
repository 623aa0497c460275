"""X.509 certificates with ECDSA P-256 keys: of authorities, servers and clients."""

from __future__ import annotations

import datetime
import ipaddress
import secrets
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from featherfed.server.errors import ServerError

_BACKDATED = datetime.timedelta(days=1)  # a device's clock may be a little slow

Key = ec.EllipticCurvePrivateKey


def new_authority(days: float) -> tuple[Key, x509.Certificate]:
    """Return the key and the self-signed certificate of an authority, valid for `days`."""
    key = ec.generate_private_key(ec.SECP256R1())
    # A name that no other authority has: chains are built by names.
    name = _name(f"featherfed CA {secrets.token_hex(4)}")
    return key, _ca_certificate(name, key, name, key, _days_from_now(days))


def cross_certify(
    new: x509.Certificate, key: Key, old: x509.Certificate, old_key: Key
) -> x509.Certificate:
    """Return the `new` authority's certificate, for its `key`, as issued by the `old` one."""
    until = min(new.not_valid_after_utc, old.not_valid_after_utc)
    return _ca_certificate(new.subject, key, old.subject, old_key, until)


def _ca_certificate(
    name: x509.Name, key: Key, issuer: x509.Name, issuer_key: Key, until: datetime.datetime
) -> x509.Certificate:
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        _builder(name, key, issuer, issuer_key, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


def issue(
    ca_key: Key,
    ca: x509.Certificate,
    name: str,
    usage: x509.ObjectIdentifier,
    names: Sequence[str],
    days: float,
) -> tuple[Key, x509.Certificate]:
    """Return a new key and its certificate, which does not outlive its authority.

    `name`: the common name. `usage`: client or server authentication. `names`: host names and IP
    addresses, for a server; raises ServerError for one that is neither.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(_days_from_now(days), ca.not_valid_after_utc)
    builder = (
        _builder(_name(name), key, ca.subject, ca_key, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([_general_name(n) for n in names])
        builder = builder.add_extension(alternatives, critical=False)
    return key, builder.sign(ca_key, hashes.SHA256())


def _builder(
    name: x509.Name, key: Key, issuer: x509.Name, issuer_key: Key, until: datetime.datetime
) -> x509.CertificateBuilder:
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    theirs = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(_days_from_now(0), until) - _BACKDATED)
        .not_valid_after(until)
        .add_extension(own, critical=False)
        .add_extension(theirs, critical=False)
    )


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text.encode("idna").decode())
    except ValueError as error:
        raise ServerError(f"--host {text!r} is neither a host's name nor an IP address") from error


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def common_name(certificate: x509.Certificate) -> str:
    """Return the common name of a certificate's subject."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _days_from_now(days: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)


def host_names(certificate: x509.Certificate) -> list[str]:
    """Return the host names and IP addresses that a server's certificate is for."""
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    ips = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return found.get_values_for_type(x509.DNSName) + ips


def pem(*items: x509.Certificate | Key) -> bytes:
    """Return certificates and keys as PEM, keys not encrypted."""
    return b"".join(_pem_of(item) for item in items)


def _pem_of(item: x509.Certificate | Key) -> bytes:
    if isinstance(item, x509.Certificate):
        return item.public_bytes(serialization.Encoding.PEM)
    return item.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
