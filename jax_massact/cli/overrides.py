"""`--config.NAME=VALUE`: which setting is meant, and its value as the setting's type reads it.

Not the flags of ml_collections: they read a value as the default's type does, which for a default
of None there is not, and what they raise names neither the setting nor what is expected.
"""

import collections
import dataclasses
import difflib
import functools
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jax_massact.errors import ConfigError
from jax_massact.settings import group_of, unknown_key

_BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def override(cls: type[Any], values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Puts each override into `values`, the settings of `cls` as nested dictionaries.

    Args:
      overrides: `--config.NAME=VALUE` or, one after the other, `--config.NAME` and `VALUE`; a
        setting that is true or false is true where the value is left out. Of several, the last.

    Raises:
      ConfigError: there is no such setting, or its type does not take the value.
    """
    left = collections.deque(overrides)
    while left:
        argument = left.popleft()
        flag, given, text = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not flag.startswith("config."):
            hint = meant(argument, cls)
            raise ConfigError(f"unexpected argument {argument!r}" + (hint and f".{hint}"))
        parts = flag.split(".")[1:]
        kind = _kind(cls, parts)
        if not given:
            if _follows(kind, left):
                text = left.popleft()
            elif kind is bool:
                text = "true"
            elif not _is_without_text(kind):
                raise ConfigError(
                    f"{flag} has no value; expected: {_expected(kind)}, as --{flag}=VALUE"
                )
        node = values
        for part in parts[:-1]:
            # A group that may be left out is made by its first setting.
            node[part] = node = {} if node[part] is None else node[part]
        node[parts[-1]] = _read(kind, text, flag)


def settings_in(
    cls: Callable[[], type[Any]], arguments: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The settings of a command line, as `override` takes them, in order; and what is not one.

    Args:
      cls: imports the command's settings; called only where one stands without `=`.

    Raises:
      ConfigError: there is no such setting.
    """
    left, settings, rest = collections.deque(arguments), [], []
    while left:
        argument = left.popleft()
        flag, given, _ = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not flag.startswith("config."):
            rest.append(argument)
            continue
        settings.append(argument)
        if not given and _follows(_kind(cls(), flag.split(".")[1:]), left):
            settings.append(left.popleft())
    return settings, rest


def _follows(kind: Any, left: Sequence[str]) -> bool:
    """Whether the next argument is the setting's value; after one that is true or false, if so."""
    if not left or left[0].startswith("--"):
        return False
    return kind is not bool or left[0].lower() in _BOOLS


def meant(argument: str, cls: type[Any] | None, options: Sequence[str] = ()) -> str:
    """` Did you mean --config.sequences=3?` for `--sequences=3`; empty where nothing is near.

    Args:
      cls: the command's settings; None: it has none.
      options: the command's own options, such as `--workdir`.
    """
    word, given, value = argument.lstrip("-").partition("=")
    word = word.replace("-", "_").removeprefix("config.")
    own = {name.lstrip("-").replace("-", "_"): name for name in options}
    settings = {name: f"--config.{name}" for name in (_names(cls) if cls is not None else ())}
    flags = [own[name] for name in _near(word, own)]
    if word in settings:
        flags.insert(0, settings[word])
    else:
        last = lambda name: name.rpartition(".")[2]
        alike = lambda name: difflib.SequenceMatcher(None, word, name).ratio()
        called = lambda words: [name for name in settings if last(name) in words]
        found = sorted(called([last(word)]), key=alike, reverse=True)
        found = found or _near(word, settings) or called(_near(last(word), map(last, settings)))
        flags += [settings[name] for name in found]
    return f" Did you mean {' or '.join(f + given + value for f in flags[:3])}?" if flags else ""


def _near(word: str, names: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(word, list(names), n=3, cutoff=0.7)


@functools.cache
def _names(cls: type[Any], prefix: str = "") -> tuple[str, ...]:
    """Every setting and group of settings of `cls`, its groups' included."""
    return tuple(_walk(cls, prefix))


def _walk(cls: type[Any], prefix: str) -> Iterator[str]:
    for name, kind in get_type_hints(cls).items():
        yield prefix + name
        if (group := group_of(kind)) is not None:
            yield from _names(group, f"{prefix}{name}.")


def _kind(cls: type[Any], parts: Sequence[str]) -> Any:
    """The type of the setting that these parts of a name lead to."""
    kind: Any = cls
    for depth, part in enumerate(parts):
        here = ".".join(["config", *parts[:depth]])
        group = group_of(kind)
        if group is None:
            raise ConfigError(f"{here} is one value; it has no setting {part}")
        kinds = get_type_hints(group)
        if not part:
            raise ConfigError(
                f"{here}. has no name; expected: --{here}.NAME=VALUE, of {', '.join(sorted(kinds))}"
            )
        if part not in kinds:
            raise ConfigError(unknown_key(
                f"{here}.{part}", part, kinds, meant(f"--config.{'.'.join(parts)}", cls)
            ))
        kind = kinds[part]
    return kind


def _is_without_text(kind: Any) -> bool:
    """Whether a group is given by its settings only."""
    group = group_of(_without_none(kind)[0])
    return group is not None and not hasattr(group, "from_text")


def _read(kind: Any, text: str, name: str) -> Any:
    """The value that a text stands for; of a group that has a text of its own, its settings."""
    one, optional = _without_none(kind)
    if optional and text.lower() == "none":
        return None
    if (group := group_of(one)) is not None:
        if (from_text := getattr(group, "from_text", None)) is not None:
            if not text.strip():
                raise ConfigError(f"{name} has no value; expected: {_expected(kind)}")
            return dataclasses.asdict(from_text(text))
        known = ", ".join(f"{name}.{key}" for key in get_type_hints(group))
        raise ConfigError(f"{name} is a group of settings: {known}")
    if get_origin(one) is tuple and group_of(get_args(one)[0]) is not None:
        if not text.strip(" ()[]"):
            return ()
        raise ConfigError(f"{name} holds groups of settings; expected: given in --config=FILE")
    try:
        return _parse(one, text)
    except (KeyError, ValueError):
        raise ConfigError(f"{name} is {text!r}; expected: {_expected(kind)}") from None


def _parse(kind: Any, text: str) -> Any:
    if get_origin(kind) is tuple:
        items = text.strip(" ()[]").removesuffix(",")
        return tuple(_parse(get_args(kind)[0], item) for item in items.split(",") if items)
    if kind is bool:
        return _BOOLS[text.lower()]
    if kind is int:
        return int(text, 0 if text.lstrip("+-").lower().startswith(("0x", "0o")) else 10)
    return float(text) if kind is float else text


def _without_none(kind: Any) -> tuple[Any, bool]:
    """The type itself, and whether None may stand in its place."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind, False
    (one,) = (part for part in get_args(kind) if part is not types.NoneType)
    return one, True


def _expected(kind: Any) -> str:
    kind, optional = _without_none(kind)
    if get_origin(kind) is tuple:
        words = f"{'whole ' if get_args(kind)[0] is int else ''}numbers with commas between"
    elif get_origin(kind) is Literal:
        words = ", ".join(get_args(kind))
    else:
        known = {bool: "true or false", int: "a whole number", float: "a number"}
        words = known.get(kind, "a text")
    return words + (", or none" if optional else "")
