"""Flags from the settings of a config, and a config from the flags of its settings.

A setting is a field that `rap_jax.config.checks.setting` describes: default, help, name and syntax of its flag.
"""

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from absl import flags

from launch.parsers import SYNTAXES
from rap_jax.config.checks import Syntax

FLAGS = flags.FLAGS
Get = Callable[[str], Any]  # the value of the flag of that name
_Config = TypeVar("_Config")
_NO_WORDS: Mapping[str, str] = types.MappingProxyType({})
_DEFINE: Mapping[Any, Callable[..., Any]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def define_settings(
    config: type, *names: str, values: flags.FlagValues = FLAGS, words: Mapping[str, str] = _NO_WORDS
) -> None:
    """Defines the flags of some settings of a config.

    Args:
      config: a dataclass.
      names: of its fields; none for all its settings.
      values: where the flags are defined.
      words: what stands for the words in braces, in names and help.
    """
    settings, hints = {field.name: field for field in _settings(config)}, get_type_hints(config)
    for name in names or settings:
        field = settings[name]
        text = field.metadata["help"].format_map(words)
        _define(flag_name(field, words), field.default, text, values, hints[name], field.metadata)


def define_flag(syntax: Syntax, name: str, default: Any, text: str, values: flags.FlagValues = FLAGS) -> None:
    """Defines one flag of a syntax of its own, such as a path, which is no setting of a config."""
    parser, serializer = SYNTAXES[syntax]
    flags.DEFINE(parser, name, default, text, values, serializer=serializer)


def from_flags(config: type[_Config], get: Get, words: Mapping[str, str] = _NO_WORDS, **fields: Any) -> _Config:
    """The config that the flags of its settings describe.

    Args:
      config: a dataclass.
      get: the value of a flag.
      words: as in `define_settings`.
      fields: which come from elsewhere.

    Raises:
      ValueError: a value or a combination that cannot work.
    """
    own = (field for field in _settings(config) if field.name not in fields)
    return config(**fields, **{field.name: _value(field, get(flag_name(field, words))) for field in own})


def flag_name(field: "dataclasses.Field[Any]", words: Mapping[str, str] = _NO_WORDS) -> str:
    """Name of the flag of a setting."""
    return str(field.metadata["flag"] or field.name).format_map(words)


def _settings(config: Any) -> Iterator["dataclasses.Field[Any]"]:
    return (field for field in dataclasses.fields(config) if "help" in field.metadata)


def _define(
    name: str, default: Any, text: str, values: flags.FlagValues, kind: Any, spelling: Mapping[str, Any]
) -> None:
    if get_origin(kind) in (Union, types.UnionType):  # with None
        kind = get_args(kind)[0]
    choices = spelling["choices"] or (get_args(kind) if get_origin(kind) is Literal else ())
    if choices:
        flags.DEFINE_enum(name, default, choices, text, values)
    elif spelling["syntax"]:
        define_flag(spelling["syntax"], name, default, text, values)
    elif get_origin(kind) is tuple:
        flags.DEFINE_list(name, list(default), text, values)
    else:
        _DEFINE[kind](name, default, text, flag_values=values)


def _value(field: "dataclasses.Field[Any]", given: Any) -> Any:
    """As the field holds it; an empty flag takes back what a flagfile says."""
    if field.default is None and given in ("", ()):
        return None
    return tuple(given) if isinstance(given, list) else given
