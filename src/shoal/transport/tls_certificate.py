"""TLS contexts for node keys: self-signed on the accepting side, no authorities on the dialling side."""

from __future__ import annotations

import datetime
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from shoal.errors import IdentityError
from shoal.transport.node_key import node_peer
from shoal.types import PeerId

LIFETIME = datetime.timedelta(days=3650)


def server_context(key: Ed25519PrivateKey) -> ssl.SSLContext:
    """A TLS 1.3 context that shows a self-signed certificate for the node key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # every connection proves itself anew
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:  # mode 0700; ssl only reads files
        path = Path(folder) / "node.pem"
        path.write_bytes(_key_pem(key) + _certificate(key).public_bytes(serialization.Encoding.PEM))
        context.load_cert_chain(path)
    return context


def client_context() -> ssl.SSLContext:
    """A TLS 1.3 context that takes any certificate: the dialler checks the key itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def certified_peer(der: bytes | None) -> PeerId:
    """The node id in a certificate; raises IdentityError when it holds no ed25519 key that a node can have."""
    try:
        key = x509.load_der_x509_certificate(der or b"").public_key()
    except (
        Exception
    ) as error:  # a stranger's bytes: cryptography raises errors of many kinds, not all of them ValueErrors
        raise IdentityError("the peer showed no certificate that can be read") from error
    if not isinstance(key, Ed25519PublicKey):
        raise IdentityError("the peer's certificate is not for a node key")
    return node_peer(key.public_bytes_raw())


def _key_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate(key: Ed25519PrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shoal node")])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + LIFETIME)
        .sign(key, None)
    )
