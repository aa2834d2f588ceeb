"""The messages are those of the protocol file, and its text is KEDA's."""

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

import knative.external_scaler
from knative.external_scaler import protocol

PROTO = Path(knative.external_scaler.__file__).parent / "externalscaler.proto"


def test_the_descriptor_set_is_what_the_protocol_file_compiles_to(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    out = tmp_path / "set"
    arguments = ["", f"-I{PROTO.parent}", f"--descriptor_set_out={out}", str(PROTO)]
    assert protoc.main(arguments) == 0

    kept = PROTO.with_suffix(".binpb").read_bytes()
    parsed = descriptor_pb2.FileDescriptorSet.FromString
    assert parsed(kept) == parsed(out.read_bytes()), "compile it again, as its first lines say"


def test_a_reference_survives_the_wire() -> None:
    ref = protocol.ScaledObjectRef(name="a", namespace="b", scalerMetadata={"slots": "4"})
    back = protocol.ScaledObjectRef.FromString(ref.SerializeToString())
    assert (back.name, back.namespace, dict(back.scalerMetadata)) == ("a", "b", {"slots": "4"})
