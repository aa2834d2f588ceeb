"""KEDA's external scaler messages, from `externalscaler.proto` as protoc compiles it.

Called by `server.py` and its tests. protoc's Python code would be tied to one release of protobuf, and the engine's
packages choose that release; its descriptor set is read by all of them. The comment in the file says how it is made.
"""

from importlib.resources import files
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_SET: Final = files(__package__).joinpath("externalscaler.binpb").read_bytes()
_FILE: Final = descriptor_pb2.FileDescriptorSet.FromString(_SET).file[0]
SERVICE: Final = f"{_FILE.package}.{_FILE.service[0].name}"

_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_FILE)


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_FILE.package}.{name}"))


ScaledObjectRef = _message("ScaledObjectRef")
IsActiveResponse = _message("IsActiveResponse")
GetMetricSpecResponse = _message("GetMetricSpecResponse")
MetricSpec = _message("MetricSpec")
GetMetricsRequest = _message("GetMetricsRequest")
GetMetricsResponse = _message("GetMetricsResponse")
MetricValue = _message("MetricValue")
