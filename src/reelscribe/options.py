"""Build the command's options from the settings, and show them in panels in the help.

The settings are loaded when a command's options are needed, so that listing the commands stays fast.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any

import annotated_types
import click

from .errors import SettingsError

if TYPE_CHECKING:
    from .settings import Setting

LONGEST_NAME = 30
"""Columns for an option's name in the help; a longer name gets its own line."""
OTHER = "Other"
"""The panel of options without one."""


class PanelOption(click.Option):
    """An option that belongs to a help panel."""

    def __init__(self, *args: Any, panel: str = OTHER, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.panel = panel


class SettingsCommand(click.Command):
    """A command that accepts settings as options.

    Args:
        takes: selects from `settings.command_settings()`.
    """

    def __init__(self, *args: Any, takes: Callable[[Setting], bool], **kwargs: Any) -> None:
        self._takes = takes
        self._shown: dict[str, Setting] | None = None
        super().__init__(*args, **kwargs)

    @property
    def params(self) -> list[click.Parameter]:
        """Its own parameters, then one option per setting; the same objects as long as the settings are the same."""
        from .settings import command_settings

        settings = {name: one for name, one in command_settings().items() if self._takes(one)}
        if settings != self._shown:
            self._params = [*self._own, *(option_of(one) for one in settings.values())]
            self._shown = settings
        return self._params

    @params.setter
    def params(self, own: list[click.Parameter]) -> None:
        self._own = own

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List each panel's options under its heading, with the same column widths in all panels."""
        from .settings import Panel

        panels: dict[str, list[tuple[str, str]]] = {panel: [] for panel in Panel}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and not isinstance(param, click.Argument):
                panels[getattr(param, "panel", OTHER)].append(record)
        names = [name for records in panels.values() for name, _ in records if len(name) <= LONGEST_NAME]
        width = max(map(len, names))
        for panel, records in panels.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl([(f"{name:<{width}}", text) for name, text in records], col_max=width)


def option_of(setting: Setting) -> PanelOption:
    """A setting as an option whose default is None."""
    option = setting.option
    hint, least, most = _bounds(setting.hint)
    shape: dict[str, Any] = {"type": _type(setting, hint, least, most), "multiple": option.repeats, "default": None}
    if hint is bool:
        shape = {"is_flag": True, "flag_value": not setting.default, "default": None}
    elif option.bare is not None:
        shape |= {"is_flag": False, "flag_value": option.bare}
    return PanelOption(
        [option.flag, setting.name],
        panel=option.panel,
        help=_help(setting, is_flag=hint is bool),
        metavar=option.metavar or _metavar(shape.get("type"), hint),
        callback=_callback(setting, hint),
        **shape,
    )


def _bounds(hint: Any) -> tuple[Any, tuple[float, bool] | None, tuple[float, bool] | None]:
    """A type without None and bounds; its minimum and maximum, each with whether it is exclusive."""
    if typing.get_origin(hint) is Annotated:
        inner, *metadata = typing.get_args(hint)
        rules = [rule for one in metadata for rule in getattr(one, "metadata", [one])]
        least = most = None
        for rule in rules:
            if isinstance(rule, annotated_types.Ge | annotated_types.Gt):
                least = (getattr(rule, "ge", getattr(rule, "gt", 0)), isinstance(rule, annotated_types.Gt))
            if isinstance(rule, annotated_types.Le | annotated_types.Lt):
                most = (getattr(rule, "le", getattr(rule, "lt", 0)), isinstance(rule, annotated_types.Lt))
        return inner, least, most
    kinds = [kind for kind in typing.get_args(hint) if kind is not NoneType]
    if NoneType in typing.get_args(hint):
        return _bounds(kinds[0])
    return hint, None, None


def _type(setting: Setting, hint: Any, least: Any, most: Any) -> click.ParamType[Any] | None:
    from .settings import choices_of

    if choices := choices_of(setting):
        return click.Choice(choices)
    if setting.option.parse is not None or typing.get_origin(hint) is dict:
        return click.STRING
    if hint is Path:
        return click.Path(path_type=Path)
    if hint is int and least is not None:
        return click.IntRange(min=int(least[0]) + least[1])
    if hint is float:
        ends = {"min": least[0], "min_open": least[1]} if least else {}
        ends |= {"max": most[0], "max_open": most[1]} if most else {}
        return click.FloatRange(**ends)
    return click.INT if hint is int else click.STRING


def _metavar(kind: Any, hint: Any) -> str | None:
    if typing.get_origin(hint) is dict:
        return "KEY=VALUE"
    return {int: "N", float: "X"}.get(hint) if not isinstance(kind, click.Choice) else None


def _help(setting: Setting, *, is_flag: bool) -> str:
    """The description, with options in place of the names of settings, and the default."""
    from .settings import command_settings

    flags = {name: one.option.flag for name, one in command_settings().items()}
    text = re.sub(r"`([^`]*)`", lambda name: flags.get(name[1], name[1]), setting.option.help or setting.summary)
    default = setting.option.default or ("" if is_flag or setting.default is None else _shown(setting.default))
    return f"{text}  [default: {default}]" if default else text


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _callback(setting: Setting, hint: Any) -> Callable[..., Any] | None:
    """Converts the command-line text to the value."""
    if typing.get_origin(hint) is dict:
        return key_values
    if setting.option.parse is not None:
        return _parsed(setting.option.parse)
    return one_or_several if setting.option.repeats else None


def _parsed(parse: Callable[[str], Any]) -> Callable[..., Any]:
    def callback(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except SettingsError as exc:
            raise click.BadParameter(str(exc), ctx, param) from exc

    return callback


def one_or_several(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> str | list[str] | None:
    """A single value, or a list of several."""
    return (given[0] if len(given) == 1 else list(given)) if given else None


def key_values(ctx: click.Context, param: click.Parameter, pairs: tuple[str, ...]) -> dict[str, Any]:
    """`KEY=VALUE` pairs, with the values parsed as YAML: `8` is a number, `true` a boolean, `[a, b]` a list."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not key.strip() or not equals:
            raise click.BadParameter(f"{pair!r} must be KEY=VALUE", ctx, param)
        if key.strip() in values:
            raise click.BadParameter(f"{key.strip()} is given more than once", ctx, param)
        values[key.strip()] = _yaml(text, ctx, param)
    return values


def _yaml(text: str, ctx: click.Context, param: click.Parameter) -> Any:
    from .runners.settings import read_yaml
    from .settings import shown

    try:
        return read_yaml(text)
    except SettingsError as exc:
        raise click.BadParameter(f"{shown(text)} {exc}", ctx, param) from exc


def parameters_of(given: dict[str, Any]) -> dict[str, Any]:
    """The operator's parameters from options; omitted ones keep the operator's defaults."""
    from .settings import part_settings

    parameters = {name: value for name, value in given.items() if value is not None}
    groups: dict[str, dict[str, Any]] = {"model_params": {}, "sampling_params": {}}
    for name, one in part_settings().items():
        if name in parameters:
            groups[one.inside][name] = parameters.pop(name)
    for group, named in groups.items():
        twice = sorted(set(named) & set(parameters[group]))
        if twice:
            raise click.UsageError(f"{twice[0]} is given more than once")
        parameters[group] = {**named, **parameters[group]} or None
    return parameters


def taken_from(given: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Remove the options with these names from the others and return those that were given."""
    found = {name: given.pop(name) for name in names if name in given}
    return {name: value for name, value in found.items() if value is not None}
