"""Typed configuration: frozen dataclasses, YAML files and command-line overrides.

A key that the dataclasses do not have, a value of another type and a value out of range are
InputErrors that name the file, the line and the key. YAML 1.1 reads ``2e-5`` as text; here it is a
number, in files and on the command line.
"""

import argparse
import dataclasses
import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jaxllm.config import help, yaml_text
from jaxllm.config import renamed as old_keys
from jaxllm.config.checks import check, nearest
from jaxllm.config.fields import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from jaxllm.config.help import SECTIONS
from jaxllm.config.renamed import RENAMED
from jaxllm.config.typed import describe, plain, show, typed
from jaxllm.errors import InputError
from jaxllm.files import reading
from jaxllm.runtime import streams

__all__ = [
    "Config",
    "DataConfig",
    "MeshConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "TrainConfig",
    "changed",
    "check",
    "from_yaml",
    "load",
    "to_yaml",
]

_TYPES = {
    f"{name}.{field.name}": field.type
    for name, section in SECTIONS.items()
    for field in dataclasses.fields(section)
}

_KEYS = list(_TYPES)
_PATHS = ("run.dir", "data.train", "data.dev")  # the others are expanded where they are used


def from_yaml(path: str | os.PathLike[str]) -> Config:
    """The configuration of a YAML file, checked; keys that are not in the file have their defaults.

    Raises:
        InputError: the file is not there or is not YAML, has an unknown or repeated key, or a value
            is of another type or out of range.
    """
    renamed: dict[str, str] = {}
    config = _build(_read(Path(path), renamed))
    old_keys.tell(renamed)
    _check(config, [str(path)])
    return config


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """`config` with other values, checked, as all that `config` holds is.

    Args:
        config: the values of all other fields.
        changes: {"section": {"field": value}} or {"section.field": value}.

    Raises:
        InputError: as `from_yaml`, and for a field that `changes` holds in both forms.
    """
    values: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        section = getattr(config, name)
        if not isinstance(section, kind):
            raise InputError(f"{name}: found {show(section)}, expected a {kind.__name__}")
        names = [field.name for field in dataclasses.fields(kind)]
        values |= {f"{name}.{one}": getattr(section, one) for one in names}
    values |= _by_key(changes)
    for key, value in values.items():
        if key not in _TYPES:
            raise InputError(f"unknown key {nearest(key, _KEYS)}")
        values[key] = _of_python(key, value)
    config = _build(values)
    check(config)
    return config


def _by_key(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `changes` by dotted key."""
    given: dict[str, Any] = {}
    for name, value in changes.items():
        if name in SECTIONS and not isinstance(value, Mapping):
            raise InputError(f"{name}: found {show(value)}, expected a dict of its fields")
        one = {f"{name}.{x}": y for x, y in value.items()} if name in SECTIONS else {name: value}
        for key in one.keys() & given.keys():
            raise InputError(f"{key} is there twice, once in its section; remove one")
        given |= one
    return given


def _of_python(key: str, value: Any) -> Any:
    """`value` as YAML would have it, of its field's type."""
    try:
        value = typed(key, plain(value), _TYPES[key])
        if isinstance(value, dict):  # of any values, all of which are written into config.yaml
            yaml_text.dump(value)
    except RecursionError:
        raise InputError(f"{key}: found values nested too deeply, or in themselves") from None
    except yaml.representer.RepresenterError as error:
        raise InputError(
            f"{key}: found {error.args[-1]!r:.80} in it, expected text, numbers, true or false, "
            "None, lists and dicts"
        ) from None
    return value


def to_yaml(config: Config, *, ascii: bool = False) -> str:
    """YAML with every field; `from_yaml` of it is equal to `config`."""
    return yaml_text.dump(dataclasses.asdict(config), ascii=ascii)


def load(
    argv: list[str],
    prog: str = "jaxllm train",
    about: str | None = None,
    parents: Sequence[argparse.ArgumentParser] = (),
) -> Config:
    """The configuration of a command line: ``--config FILE``, then ``--section.field value``.

    ``--help`` and ``--print_config`` print and leave with SystemExit(0). Where several files are
    given, a later one goes over an earlier one. `prog`, `about` and `parents` are for the help, see
    `help.command_parser`.

    Raises:
        InputError: as `from_yaml`, and for an unknown option, section or a value of another type.
    """
    command = help.command_parser(prog, about, parents)
    try:
        asked = command.parse_known_args(argv)[0]
    except argparse.ArgumentError as error:
        raise InputError(_explain(str(error))) from None
    if asked.help == []:
        command.print_help()
        raise SystemExit(0)
    shown = help.sections_of(asked.help or [])
    values: dict[str, Any] = {}
    renamed: dict[str, str] = {}
    for file in asked.config:
        values |= _read(Path(file), renamed)
    if shown:
        options = help.field_parser(prog, shown)
        options.set_defaults({k: x for k, x in values.items() if k.partition(".")[0] in shown})
        options.print_help()
        raise SystemExit(0)
    argv, old = old_keys.options(argv)
    old_keys.tell(old | renamed)
    given = _options(argv, prog, values)
    config = _build(values | given)
    if asked.print_config:
        text = to_yaml(config)
        print(text if streams.can_print(text) else to_yaml(config, ascii=True), end="")
        raise SystemExit(0)
    _check(config, asked.config, given)
    return config


def _options(argv: list[str], prog: str, values: dict[str, Any]) -> dict[str, Any]:
    """What the options of a command line change about `values`, by dotted key."""
    from jsonargparse import ArgumentError

    options = help.field_parser(prog)
    options.add_argument("--config")  # read before, as --print_config
    options.add_argument("--print_config", action="store_true")
    # Only where an option may add to a value: jsonargparse copies a list for each of its items,
    # half a minute for one of 2,000.
    options.set_defaults({k: x for k, x in values.items() if any(k in word for word in argv)})
    try:
        before, given = options.parse_args([]), options.parse_args(argv)
    except (ArgumentError, argparse.ArgumentError) as error:
        raise InputError(_explain(str(error))) from None
    # Values of a file are kept as they were read: in a dict of Any, jsonargparse would make the
    # text "2e-5" a number.
    return {
        key: typed(f"--{key}", given[key], kind)
        for key, kind in _TYPES.items()
        if given[key] != before[key]
    }


def _check(config: Config, paths: list[str], overridden: Iterable[str] = ()) -> None:
    """`check`, with where the value came from in front of the message."""
    try:
        check(config)
    except InputError as error:
        message = str(error)
        if message.partition(":")[0] in overridden:
            raise InputError(f"--{message}") from None
        raise InputError(": ".join([*paths[-1:], message])) from None


def _read(path: Path, renamed: dict[str, str]) -> dict[str, Any]:
    """The values of a YAML file by dotted key, each of its field's type.

    `renamed` gets each key that has another name now, and its first place.
    """
    with reading(path, "a configuration in YAML", "write it again, or restore it from a copy"):
        return _values(path, _compose(path), renamed)


def _compose(path: Path) -> yaml.Node:
    """The root of a YAML file's nodes."""
    try:
        root = yaml_text.compose(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the configuration: {error.strerror} (looked in {Path.cwd()}); "
            "--config names a YAML file"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}, line {line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if root is None:
        raise InputError(f"{path}: is empty, expected the sections {', '.join(SECTIONS)}")
    return root


def _values(path: Path, root: yaml.Node, renamed: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for section, section_node in _items(path, "", root):
        if section not in SECTIONS:
            raise InputError(
                f"{_at(path, section_node)}: unknown section {nearest(str(section), _KEYS)}"
            )
        for name, node in _items(path, section, section_node):
            key = f"{section}.{name}"
            where = f"{_at(path, node)}: {key}"
            now = RENAMED.get(key, key)
            if now not in _TYPES:
                raise InputError(f"{_at(path, node)}: unknown key {nearest(key, _KEYS)}")
            value = _value(path, key, node)
            if key != now:
                renamed.setdefault(key, where)
                value = old_keys.translated(where, key, value)
            if now in values:
                [old] = (old for old, new in RENAMED.items() if new == now)
                raise InputError(
                    f"{_at(path, node)}: {now} is there twice, once as {old}; remove one"
                )
            values[now] = typed(where, value, _TYPES[now])
    return values


def _at(path: Path, node: yaml.Node) -> str:
    return f"{path}, line {node.start_mark.line + 1}"


def _items(path: Path, key: str, node: yaml.Node) -> list[tuple[Any, yaml.Node]]:
    """The keys and nodes of a mapping; a repeated key is an error, as one of the two would go."""
    if not isinstance(node, yaml.MappingNode):
        wanted = f"keys of {key}" if key else f"the sections {', '.join(SECTIONS)}"
        found = _construct(path, node)
        raise InputError(
            f"{_at(path, node)}: {key or 'file'}: found {show(found)}, expected {wanted}"
        )
    items: dict[Any, yaml.Node] = {}
    for name_node, value_node in node.value:
        name = _construct(path, name_node)
        if not isinstance(name, Hashable):
            raise InputError(f"{_at(path, name_node)}: found {show(name)}, expected a name")
        if name in items:
            full = f"{key}.{name}" if key else name
            raise InputError(f"{_at(path, name_node)}: {full} is there twice; remove one")
        items[name] = value_node
    return list(items.items())


def _value(path: Path, key: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {name: _value(path, f"{key}.{name}", v) for name, v in _items(path, key, node)}
    return _construct(path, node)


def _construct(path: Path, node: yaml.Node) -> Any:
    try:
        return yaml_text.Loader("").construct_object(node, deep=True)
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{_at(path, node)}: not valid YAML: {error.problem}") from None
    except ValueError as error:  # such as the date 2020-99-99
        raise InputError(f"{_at(path, node)}: {error}; put text in quotes") from None


def _build(values: dict[str, Any]) -> Config:
    sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for key, value in values.items():
        if key in _PATHS:  # in a file, and behind = on a command line, no shell has expanded ~
            one = os.path.expanduser
            value = [one(x) for x in value] if isinstance(value, list) else one(value)
        section, _, name = key.partition(".")
        sections[section][name] = value
    return Config(**{name: SECTIONS[name](**given) for name, given in sections.items()})


def _explain(message: str) -> str:
    """The message for what jsonargparse did not understand."""
    unknown = re.match(r"unrecognized arguments: ([^\s=]*)", message)
    if unknown and not unknown[1].startswith("-"):
        return f"unexpected argument {unknown[1]}; options begin with --"
    if unknown:
        return f"unknown option {nearest(unknown[1], [f'--{key}' for key in _KEYS])}"
    key = re.match(r'Parser key "([\w.]+)"', message)
    match = re.search(r"Given value: (.*)", message) or re.search(r"Got value: (.*)", message)
    if key is None or key[1] not in _TYPES or match is None:
        return " ".join(message.split()).replace('Parser key "', "--").replace('":', ":", 1)
    nested = re.match(r"NestedArg\(key='([\w.]+)'", match[1])
    if nested:
        return f"unknown option --{key[1]}.{nested[1]}; {key[1]} has no parts"
    found = {"None": "null", "True": "true", "False": "false"}.get(match[1], match[1])
    kind = _TYPES[key[1]]
    hint = f"; write a list, [{found}]" if "list" in str(kind) and not found.startswith("[") else ""
    return f"--{key[1]}: found {found}, expected {describe(kind)}{hint if found != 'null' else ''}"
