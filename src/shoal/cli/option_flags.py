"""Command-line flags made from the fields of options structs (`shoal.options`)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, get_origin, get_type_hints

import typer

from shoal.cli.output import DEBUG
from shoal.errors import UsageError
from shoal.options import Option, Options, options_of

Debug = Annotated[bool, typer.Option(DEBUG, help="Show the trace of an error.")]
"""`run_command` looks for it before anything is parsed, so that it counts for errors of parsing too."""

PLAIN = (int, float, bool, str, Path)
"""What typer reads by itself."""


def with_option_flags(*hidden: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A command whose parameters that are structs of options become a flag for each of their fields but the `hidden` ones.

    A parameter's default is a struct; its values are the flags' defaults. What the struct refuses is told with the flag's name.
    """

    def decorated(command: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        structs: dict[str, tuple[Options, list[Option]]] = {}
        for one in inspect.signature(command).parameters.values():
            if isinstance(one.default, Options):
                taken = [option for option in shown(type(one.default)) if option.name not in hidden]
                structs[one.name] = one.default, taken
                parameters += [_flag(option, getattr(one.default, option.name)) for option in taken]
            else:
                parameters.append(one.replace(annotation=hints[one.name], kind=inspect.Parameter.KEYWORD_ONLY))

        @functools.wraps(command)
        def run(**given: Any) -> Any:
            made = {name: _made(defaults, taken, given) for name, (defaults, taken) in structs.items()}
            return command(**given, **made)

        return _with_parameters(run, parameters)

    return decorated


def _with_parameters(run: Callable[..., Any], parameters: list[inspect.Parameter]) -> Callable[..., Any]:
    """A function that has these parameters in the eyes of typer."""
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def with_debug(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command that takes `--debug` too."""
    signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
    parameters = [one.replace(annotation=hints.get(one.name, one.annotation)) for one in signature.parameters.values()]
    parameters.append(inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug))

    @functools.wraps(command)
    def run(*, debug: bool, **given: Any) -> Any:
        return command(**given)

    return _with_parameters(run, parameters)


def shown(struct: type[Options]) -> list[Option]:
    """The options of a struct that the command line takes."""
    return [one for one in options_of(struct).values() if one.info.shown]


def _flag(one: Option, default: Any) -> inspect.Parameter:
    kind = _text_kind(one)
    settings: dict[str, Any] = {"help": one.info.help, "rich_help_panel": one.info.group}
    if kind in (int, float) and one.info.parse is None:
        settings |= {"min": one.info.least, "max": one.info.most}
    if one.info.envvar:
        settings["envvar"] = one.info.envvar
    if one.info.metavar:
        settings["metavar"] = one.info.metavar
    plain = default if type(default) in PLAIN and one.info.parse is None else None
    annotation: Any = Annotated[kind if plain is not None else Optional[kind], typer.Option(one.flag, **settings)]  # noqa: UP045 - a Literal has no |
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=plain, annotation=annotation)


def _text_kind(one: Option) -> Any:
    """The type in which the command line reads an option."""
    if one.info.repeated:
        return list[str]
    kind = next(kind for kind in one.kinds if kind is not None)
    if get_origin(kind) is Literal:
        return kind if isinstance(kind.__args__[0], str) else type(kind.__args__[0])
    return kind if kind in PLAIN and one.info.parse is None else str


def _made(defaults: Options, taken: list[Option], given: dict[str, Any]) -> Options:
    """A struct with the values of its flags, which are taken out of `given`."""
    fields = {name: getattr(defaults, name) for name in defaults.__struct_fields__}
    for one in taken:
        value = given.pop(one.name)
        if value is not None and value != []:
            fields[one.name] = _taken(one, value)
    try:
        return type(defaults)(**fields)
    except UsageError as error:
        raise UsageError(_by_flags(str(error), taken), error.field) from error


def _taken(one: Option, value: Any) -> Any:
    try:
        return one.taken(value)
    except UsageError as error:
        raise UsageError(_by_flags(str(error), [one]), one.name) from error


def _by_flags(text: str, taken: list[Option]) -> str:
    """An error in the words of the command line: options are called by their flags."""
    flags = {one.name: one.flag for one in taken}
    first, _, rest = text.partition(" ")
    words = [flags.get(word, word) if "_" in word else word for word in rest.split(" ")]
    return " ".join([flags.get(first, first), *words])
