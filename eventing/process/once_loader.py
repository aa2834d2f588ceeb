"""A YAML loader for what a person writes: `pipelines.yaml` and the values of a cluster."""

from typing import Any

import yaml
import yaml.constructor


class OnceLoader(yaml.SafeLoader):
    """A YAML loader that refuses a repeated key, of which PyYAML would use the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} stands there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)
