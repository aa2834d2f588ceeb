"""The api trusts a Knative Broker's own authority where it is told to, and no other."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from eventing.errors import BrokerUnavailable
from eventing.event import Event
from eventing.publisher import HttpPublisher

EVENT = Event(id="job_1", source="/torpor/api", type="dev.torpor.inference.requested.v1")


def certificate(folder: Path, name: str) -> Path:
    """A certificate for 127.0.0.1 that signs itself; its key lies beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / f"{name}.key").write_bytes(key.private_bytes(pem, pkcs8, plain))
    (folder / f"{name}.crt").write_bytes(made.public_bytes(pem))
    return folder / f"{name}.crt"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[str]:
    """The address of an https ingress whose certificate is `broker.crt`."""

    async def take(_: web.Request) -> web.Response:
        return web.Response(status=202)

    app = web.Application()
    app.router.add_post("/", take)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate(tmp_path, "broker"), tmp_path / "broker.key")
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=context)
    yield str(server.make_url("/"))
    await server.close()


async def sent(broker: str, authority: Path | None) -> None:
    """Publish one event."""
    publisher = HttpPublisher(broker, ca_file=authority)
    try:
        await publisher.publish(EVENT)
    finally:
        await publisher.close()


async def test_the_brokers_own_authority_is_trusted(broker: str, tmp_path: Path) -> None:
    await sent(broker, tmp_path / "broker.crt")


async def test_another_authority_is_not(broker: str, tmp_path: Path) -> None:
    other = certificate(tmp_path, "other")

    with pytest.raises(BrokerUnavailable):
        await sent(broker, other)


async def test_without_one_a_cluster_certificate_is_not_trusted(broker: str) -> None:
    with pytest.raises(BrokerUnavailable):
        await sent(broker, None)


async def test_an_authority_that_is_not_there_fails_closed(broker: str, tmp_path: Path) -> None:
    with pytest.raises(BrokerUnavailable):
        await sent(broker, tmp_path / "none.crt")
