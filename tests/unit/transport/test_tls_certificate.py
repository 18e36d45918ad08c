"""A node's certificate and the contexts around it."""

from __future__ import annotations

import contextlib
import datetime
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import IdentityError
from shoal.transport import tls_certificate
from shoal.transport.tls_certificate import certified_peer, client_context, server_context
from tests.unit.transport.nodes import node_id


def test_certificate_holds_the_key() -> None:
    """What a node shows names the node."""
    key = Ed25519PrivateKey.generate()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client = context.wrap_bio(incoming, outgoing, server_hostname="shoal")
    server = server_context(key).wrap_bio(outgoing, incoming, server_side=True)
    for side in (client, server, client):
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert certified_peer(client.getpeercert(binary_form=True)) == node_id(key)


@pytest.mark.parametrize("der", [None, b"", b"not a certificate", bytes(1000)])
def test_no_certificate(der: bytes | None) -> None:
    """Nothing, or nonsense, names nobody."""
    with pytest.raises(IdentityError, match="certificate"):
        certified_peer(der)


def shown_certificate() -> bytes:
    """A sound certificate as DER."""
    return tls_certificate._certificate(Ed25519PrivateKey.generate()).public_bytes(serialization.Encoding.DER)


CERTIFICATE = shown_certificate()


def test_a_certificate_of_a_version_that_does_not_exist() -> None:
    """What cryptography cannot read is the peer's mistake, whichever error it raises."""
    der = shown_certificate().replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020105"))
    with pytest.raises(IdentityError, match="certificate"):
        certified_peer(der)


@given(st.data())
def test_damaged_certificates(data: st.DataObject) -> None:
    """A certificate with some bytes changed names a node or is refused, and raises nothing else."""
    der = bytearray(CERTIFICATE)
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(IdentityError):
        assert len(certified_peer(bytes(der))) == 64


def test_nothing_older_than_tls_1_3() -> None:
    """On neither side; and no session is ever taken up again without a proof."""
    server, client = server_context(Ed25519PrivateKey.generate()), client_context()
    assert server.minimum_version == client.minimum_version == ssl.TLSVersion.TLSv1_3
    assert server.num_tickets == 0


def test_a_certificate_for_a_key_that_no_node_has() -> None:
    """A sound certificate of another kind of key names nobody."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "shoal node")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(IdentityError, match="not for a node key"):
        certified_peer(certificate.public_bytes(serialization.Encoding.DER))
