"""Settings of a checkpoint from any of its files, read one by one with their types."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_massact.errors import ConfigError, WeightsError
from jax_massact.settings import check_float, check_int

# No dimension of a model is larger; array libraries overflow beyond.
_MAX_SIZE = 2**31 - 1


@dataclass(frozen=True)
class Settings:
    """The settings of one file; one that is null counts as absent.

    Attributes:
      values: by name.
      file: for errors.
      prefix: put before every name that is asked for.
    """

    values: Mapping[str, Any]
    file: Path
    prefix: str = ""

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a setting, or `default`."""
        value = self.values.get(self.prefix + name)
        return default if value is None else value

    def has(self, name: str) -> bool:
        """Whether a setting is stated and not null."""
        return self.get(name) is not None

    def size(self, name: str, default: int | None = None) -> int:
        """The value of a setting: a whole number above 0."""
        return self._checked(check_int, name, default, 1, _MAX_SIZE)

    def count(self, name: str) -> int:
        """The value of a setting: a whole number of at least 0."""
        return self._checked(check_int, name, None, 0, _MAX_SIZE)

    def number(self, name: str, default: float | None = None) -> float:
        """The value of a setting: a finite number above 0."""
        return float(self._checked(check_float, name, default, 0.0, open_low=True))

    def numbers(self, name: str) -> tuple[float, ...]:
        """The value of a setting: a list of finite numbers above 0."""
        values = self._required(name, None)
        if not isinstance(values, list):
            raise self.error(name, "a list of numbers above 0")
        each = {f"{self.prefix}{name}[{i}]": value for i, value in enumerate(values)}
        return tuple(Settings(each, self.file).number(key) for key in each)

    def flag(self, name: str, default: bool) -> bool:
        """The value of a setting: true or false."""
        return self.one_of(name, (True, False), default)

    def one_of(self, name: str, allowed: Collection[Any], default: Any = None) -> Any:
        """The value of a setting: one of `allowed`."""
        value = self._required(name, default)
        if not any(value == a and type(value) is type(a) for a in allowed):
            raise self.error(name, " or ".join(repr(a) for a in allowed))
        return value

    def error(self, name: str, expected: str) -> WeightsError:
        """The error that a setting has a value other than expected."""
        found = repr(self.get(name))
        found = found if len(found) <= 100 else f"{found[:100]}..."
        return WeightsError(f"{self.file}: {self.prefix}{name} is {found}; expected: {expected}")

    def _required(self, name: str, default: Any) -> Any:
        value = self.get(name, default)
        if value is None:
            raise WeightsError(f"{self.file}: {self.prefix}{name} is missing")
        return value

    def _checked(self, check: Any, name: str, default: Any, *limits: Any, **options: Any) -> Any:
        value = self._required(name, default)
        try:
            check(f"{self.prefix}{name}", value, *limits, **options)
        except ConfigError as error:
            raise WeightsError(f"{self.file}: {error}") from error
        except OverflowError as error:
            raise self.error(name, "a number within the range of float64") from error
        return value
