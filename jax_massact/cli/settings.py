"""`--config=FILE[:ARG]` and `--config.a.b=VALUE` to a checked settings dataclass."""

import dataclasses
import difflib
import inspect
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import ml_collections

import jax_massact
from jax_massact.cli.overrides import override
from jax_massact.errors import ConfigError
from jax_massact.settings import from_mapping, group_of

T = TypeVar("T")


def resolve(cls: type[T], file: str | None, overrides: Sequence[str]) -> T:
    """The settings of a run: defaults, then the file, then the overrides.

    Args:
      cls: a settings dataclass of `jax_massact.config`.
      file: `FILE[:ARG]`, or None.
      overrides: what is left of the command line: `--config.KEY=VALUE`, or `--config.KEY VALUE`.

    Raises:
      ConfigError: the file or a setting does not exist, or a value is out of range.
    """
    settings = cls() if file is None else from_mapping(cls, _values_in(file, cls))
    values = dataclasses.asdict(settings)  # pyright: ignore[reportArgumentType]
    override(cls, values, overrides)
    return from_mapping(cls, values)


def _values_in(file: str, cls: type[Any]) -> dict[str, Any]:
    """The values in the file; a JSON file, which may be any, must hold a setting of `cls`."""
    values = load_file(file).to_dict()
    if values and file.endswith(".json") and not values.keys() & get_type_hints(cls).keys():
        raise ConfigError(
            f"{file} holds no settings of this command, but {', '.join(list(values)[:4])}; "
            "expected: the .json file of a run or of a result"
        )
    return values


def names(cls: type[Any]) -> list[str]:
    """The settings of `cls`, each as --config.NAME takes it."""
    return [name for name, _ in _flatten(dataclasses.asdict(cls()))]


def describe(cls: type[Any]) -> str:
    """The settings of `cls` for `--help`: names, defaults, and what its docstrings say."""
    defaults = dict(_flatten(dataclasses.asdict(cls())))
    width = max(map(len, defaults)) + 2
    lines = ["settings, each as --config.NAME=VALUE (default):"]
    lines += [f"  {name:<{width}}{value!r}" for name, value in defaults.items()]
    return "\n\n".join(["\n".join(lines), *filter(None, [attributes(cls)]), *_groups(cls)])


def _groups(cls: type[Any], prefix: str = "") -> Iterator[str]:
    """What the docstrings of the groups of settings say, from the outside in."""
    for name, kind in get_type_hints(cls).items():
        if (group := group_of(kind)) is not None:
            about = inspect.cleandoc(group.__doc__ or "").partition("\n")[0]
            yield f"{prefix}{name}: {about}\n{attributes(group)}"
            yield from _groups(group, f"{prefix}{name}.")


def attributes(cls: type[Any]) -> str:
    """What the docstrings of `cls` and its bases say of each setting."""
    texts = [
        inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
        for base in reversed(cls.__mro__) if base is not object
    ]
    return "\n".join(text.rstrip() for text in texts if text.strip())


def load_file(spec: str) -> ml_collections.ConfigDict:
    """What `get_config` of a Python file returns, or the settings in a JSON file.

    A JSON file is that of a run (`config.json`) or of a result (`probe.json`), whose settings are
    repeated. A file is looked for as given, and, for a path under `configs/`, among those that come
    with the package. One whose `get_config` needs an argument may list them as `ARGUMENTS`.

    Args:
      spec: `FILE` or `FILE:ARG`; a colon may be part of a path that exists.

    Raises:
      ConfigError: there is no such file, it holds no settings, or `get_config` refuses the
        argument.
    """
    path, argument = find_file(spec)
    if path.suffix == ".json" and not argument:
        return _from_json(path)
    if path.suffix != ".py":
        raise ConfigError(
            f"{path} cannot be read as settings; expected: a .py file with get_config, or the "
            ".json file of a run or a result, which takes no argument"
        )
    module = types.ModuleType(f"_config_{path.stem}")
    module.__file__ = str(path)
    try:
        # As an import would, but without a folder of bytecode beside the user's file.
        exec(compile(path.read_bytes(), path, "exec"), module.__dict__)
    except (SyntaxError, ImportError, NameError) as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from None
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"{path} has no function get_config")
    given = [argument] if argument else []
    try:
        inspect.signature(get_config).bind(*given)
    except TypeError:
        raise ConfigError(f"{path}: get_config {_argument(spec, module, argument)}") from None
    try:
        config = get_config(*given)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(
            f"{path}: get_config returned {type(config).__name__}; expected: "
            "ml_collections.ConfigDict"
        )
    return config


def _argument(spec: str, module: types.ModuleType, argument: str) -> str:
    """What is wrong with an argument that is not there, or one too many."""
    if argument:
        return f"takes no {argument!r}"
    name = next(iter(inspect.signature(module.get_config).parameters))
    allowed = getattr(module, "ARGUMENTS", ())
    if not allowed:
        return f"needs an argument, FILE:ARG; ARG is its {name}"
    return (
        f"needs an argument, FILE:ARG; expected: {', '.join(allowed)}; such as "
        f"--config={spec.removesuffix(':')}:{allowed[0]}"
    )


def _from_json(path: Path) -> ml_collections.ConfigDict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if isinstance(values, dict) and "schema" in values:
        values = values.get("config")
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings; expected: those of a run or of a result")
    return ml_collections.ConfigDict(values)


def find_file(spec: str) -> tuple[Path, str]:
    """The file and the argument: as much of `spec` before a colon as is the path of a file."""
    package = Path(jax_massact.__file__).parent
    parts = spec.split(":")
    for count in range(len(parts), 0, -1):
        name, argument = ":".join(parts[:count]), ":".join(parts[count:])
        # Beside the package in a checkout, inside it when installed from a wheel.
        for folder in (Path(), package.parent, package):
            if (folder / name).is_file():
                return folder / name, argument
    own = [f"configs/{path.name}" for folder in (package.parent, package)
           for path in (folder / "configs").glob("*.py")]
    near = difflib.get_close_matches(parts[0], own, n=1, cutoff=0.7)
    hint = f". Did you mean {near[0]}? massact list configs has all" if near else ""
    raise ConfigError(f"there is no configuration file {parts[0]}; expected: FILE[:ARG]{hint}")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
