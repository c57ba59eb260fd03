"""The help of a command that takes a configuration: its sections, or the fields of some of them."""

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jaxllm.config.fields import Config
from jaxllm.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SECTIONS: dict[str, Any] = {section.name: section.type for section in dataclasses.fields(Config)}
ALL = "all"


def command_parser(
    prog: str, about: str | None = None, parents: Sequence[argparse.ArgumentParser] = ()
) -> argparse.ArgumentParser:
    """The options of a command but for the fields, which its help names by their sections.

    `about` says what the command does; `parents` have options that no other command has.
    """
    result = argparse.ArgumentParser(
        prog,
        usage(prog),
        about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=parents,
        add_help=False,
        allow_abbrev=False,
        exit_on_error=False,
    )
    result.add_argument(
        "-h",
        "--help",
        nargs="*",
        metavar="SECTION",
        help="show the fields of these sections, or of all; with no name, this page",
    )
    result.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="YAML file of the configuration; of several, a later one goes over an earlier one",
    )
    result.add_argument(
        "--print_config", action="store_true", help="print the resulting configuration and leave"
    )
    width = max(map(len, SECTIONS))
    result.epilog = "\n".join(
        [
            "sections:",
            *(f"  {name:<{width}}  {summary(name)}" for name in SECTIONS),
            "",
            f"`{prog} --help data` shows the fields of data,",
            f"`--help {ALL}` all fields; with --config FILE the defaults are that file's values.",
        ]
    )
    return result


def sections_of(names: Iterable[str]) -> list[str]:
    """The sections that ``--help NAME ...`` asks for; InputError for a name of none."""
    names = list(names)
    for name in names:
        if name not in SECTIONS and name != ALL:
            known = ", ".join(SECTIONS)
            raise InputError(f"--help: found {name}, expected a section: {known}; or {ALL}")
    return list(SECTIONS) if ALL in names else list(dict.fromkeys(names))


def field_parser(prog: str, sections: Iterable[str] = SECTIONS) -> "ArgumentParser":
    """An option for each field of `sections`."""
    from jsonargparse import ArgumentParser

    result = ArgumentParser(
        prog=prog, allow_abbrev=False, exit_on_error=False, print_config=None, add_help=False
    )
    result.usage = usage(prog)
    for name in sections:
        group = result.add_argument_group(name, summary(name))
        group.add_class_arguments(SECTIONS[name], name, as_group=False)
    return result


def usage(prog: str) -> str:
    return f"{prog} --config FILE [--section.field value ...]"


def summary(section: str) -> str:
    """What a section is for, in a line."""
    return (SECTIONS[section].__doc__ or "").partition("\n")[0]
