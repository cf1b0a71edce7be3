"""Reading an input file: JSON, or YAML where PyYAML is installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from dpserver.errors import ConfigError

_YAML: Final = (".yaml", ".yml")


def read_input(path: Path) -> Mapping[str, Any]:
    """Read the sections of a training input as plain values.

    Args:
        path: a JSON file, or a YAML file with the suffix .yaml or .yml.

    Raises:
        ConfigError: the file cannot be read, is neither, or a section has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the training input {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the training input {path} is not a text file") from None
    is_yaml = path.suffix.lower() in _YAML
    data = _parse_yaml(path, text) if is_yaml else _parse_json(path, text)
    if not isinstance(data, dict):
        kind = "mapping of sections" if is_yaml else "JSON object"
        raise ConfigError(f"the training input {path} must be one {kind}, got {type(data).__name__}")
    return data


def _parse_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"the training input {path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise ConfigError(f"the training input {path} is not JSON: its brackets are nested too deeply") from None


def _parse_yaml(path: Path, text: str) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError(f"the training input {path} needs PyYAML: pip install pyyaml, or write it as JSON") from None

    def refuse_twice(loader: Any, node: Any, deep: bool = False) -> Any:
        _unique([(key.value, None) for key, _ in node.value if key.id == "scalar" and not key.tag.endswith(":merge")])
        return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)

    loader = type("_Loader", (yaml.SafeLoader,), {"construct_mapping": refuse_twice})
    try:
        return _numbers(yaml.load(text, loader))
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}, column {mark.column + 1}"
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ConfigError(f"the training input {path} is not YAML: {problem}{where}") from None


def _numbers(value: Any) -> Any:
    """The same with text such as 1e-3, which YAML 1.1 does not take for a number, as numbers."""
    if isinstance(value, dict):
        return _unique([(key, _numbers(item)) for key, item in value.items()])
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and value[:1] in "+-.0123456789" and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    """An object whose keys are all different."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise ConfigError(f"the keys of the training input must be text, got {key!r}")
        if key in found and not key.startswith("_"):
            raise ConfigError(f'the key "{key}" appears twice in one section of the training input; keep one of them')
        found[key] = value
    return found
