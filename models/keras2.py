"""Keras 2 model configurations from old formats (.h5, SavedModel), with the module of each object.

Those formats name classes without modules. `serialization.from_json` allows objects by module and
class, so each gets the module that its name has in Keras 2; an unknown name gets none and is
refused there.
"""

from __future__ import annotations

from typing import Any

from featherfed.models.serialization import MAX_DEPTH, module_of

_POLICIES = frozenset({"Policy", "DTypePolicy"})


def with_modules(config: Any) -> Any:
    """Return a model's configuration in which every object of Keras has its module."""
    return _walk(config, "", 0)


def _walk(node: Any, key: str, depth: int) -> Any:
    if depth > 2 * MAX_DEPTH:
        return None  # what is nested so deeply is refused for it
    if isinstance(node, list):
        return [_walk(item, key, depth + 1) for item in node]
    if not isinstance(node, dict):
        return node
    kind = node.get("class_name")
    if kind in ("__tuple__", "TensorShape"):
        return _walk(node.get("items"), key, depth + 1)
    if kind in _POLICIES and isinstance(node.get("config"), dict):
        return node["config"].get("name")
    made = {name: _walk(value, name, depth + 1) for name, value in node.items()}
    made.pop("shared_object_id", None)
    if isinstance(kind, str) and "config" in node and "module" not in node:
        module = module_of(kind, key)
        if module:
            made |= {"module": module, "registered_name": None}
    return made
