"""KEDA's external scaler messages, built at import from a description.

Called by `server.py` and its tests. Generated code would be tied to one release of protobuf, and the engine's
packages choose that release; a description works with all of them. `externalscaler.proto` in this folder is the
same in protobuf's language.
"""

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE: Final = "externalscaler"
SERVICE: Final = f"{PACKAGE}.ExternalScaler"

_Field = descriptor_pb2.FieldDescriptorProto
# message -> (field, number, type); a type with a capital is a message, "*" means repeated.
_MESSAGES: Final = {
    "ScaledObjectRef": [("name", 1, "string"), ("namespace", 2, "string")],
    "IsActiveResponse": [("result", 1, "bool")],
    "GetMetricSpecResponse": [("metricSpecs", 1, "*MetricSpec")],
    "MetricSpec": [
        ("metricName", 1, "string"),
        ("targetSize", 2, "int64"),
        ("targetSizeFloat", 3, "double"),
    ],
    "GetMetricsRequest": [("scaledObjectRef", 1, "ScaledObjectRef"), ("metricName", 2, "string")],
    "GetMetricsResponse": [("metricValues", 1, "*MetricValue")],
    "MetricValue": [
        ("metricName", 1, "string"),
        ("metricValue", 2, "int64"),
        ("metricValueFloat", 3, "double"),
    ],
}
_TYPES: Final = {
    "string": _Field.TYPE_STRING,
    "bool": _Field.TYPE_BOOL,
    "int64": _Field.TYPE_INT64,
    "double": _Field.TYPE_DOUBLE,
}


def file_description() -> descriptor_pb2.FileDescriptorProto:
    """The protocol's messages as a protobuf file descriptor."""
    file = descriptor_pb2.FileDescriptorProto(
        name="externalscaler.proto", package=PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            _add_field(message, field_name, number, kind)
    _add_map(file.message_type[0], "scalerMetadata", 3)
    return file


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str) -> None:
    label = _Field.LABEL_REPEATED if kind.startswith("*") else _Field.LABEL_OPTIONAL
    kind = kind.removeprefix("*")
    field = message.field.add(name=name, number=number, label=label)
    field.json_name = name
    if kind in _TYPES:
        field.type = _TYPES[kind]
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"


def _add_map(message: descriptor_pb2.DescriptorProto, name: str, number: int) -> None:
    """A map field is a repeated entry of key and value, with the map option."""
    entry_name = name[0].upper() + name[1:] + "Entry"
    entry = message.nested_type.add(name=entry_name)
    entry.options.map_entry = True
    _add_field(entry, "key", 1, "string")
    _add_field(entry, "value", 2, "string")
    _add_field(message, name, number, f"*{message.name}.{entry_name}")


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(file_description())


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{PACKAGE}.{name}"))


ScaledObjectRef = _message("ScaledObjectRef")
IsActiveResponse = _message("IsActiveResponse")
GetMetricSpecResponse = _message("GetMetricSpecResponse")
MetricSpec = _message("MetricSpec")
GetMetricsRequest = _message("GetMetricsRequest")
GetMetricsResponse = _message("GetMetricsResponse")
MetricValue = _message("MetricValue")
