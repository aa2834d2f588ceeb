"""Reads settings from manifests and collects every refusal, each with name and allowed range.

Called by the readers of manifests, here and in the external scaler.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Refusal:
    """One invalid setting: its name, its value, and what is allowed."""

    name: str
    value: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.name}: {self.value!r} is refused; allowed: {self.allowed}"


class RefusedSettingsError(ValueError):
    """Settings that the cluster's webhook would refuse too; the message names all of them."""

    def __init__(self, refusals: tuple[Refusal, ...]) -> None:
        super().__init__("; ".join(str(refusal) for refusal in refusals))
        self.refusals = refusals


def duration_s(text: str) -> float:
    """The seconds of a Go duration such as `90s`, `1m30s` or `1.5h`.

    Raises ValueError for anything else.
    """
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"not a duration: {text!r}")
    return math.fsum(float(number) * _UNIT_S[unit] for number, unit in parts)


class SettingReader:
    """Reads settings from a mapping one by one and collects refusals until `finish`.

    Values may be strings (annotations, trigger metadata) or numbers (spec fields).
    """

    def __init__(self, values: Mapping[str, object], *, prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix
        self._known: set[str] = set()
        self._refusals: list[Refusal] = []

    def integer(self, name: str, default: int, *, low: int = 0, high: int = 2**31 - 1) -> int:
        """A whole number within [low, high]."""
        allowed = f"a whole number from {low} to {high}"
        value = self._number(name, allowed)
        if value is None:
            return default
        if value != int(value) or not low <= value <= high:
            self.refuse(name, value, allowed)
            return default
        return int(value)

    def number(
        self, name: str, default: float, *, low: float = -math.inf, high: float = math.inf
    ) -> float:
        """A number within [low, high]."""
        allowed = _range(low, high)
        value = self._number(name, allowed)
        if value is None:
            return default
        if not low <= value <= high:
            self.refuse(name, value, allowed)
            return default
        return value

    def maybe_number(self, name: str, *, low: float = -math.inf) -> float | None:
        """A number of at least `low`, or None when it is not set."""
        if not self.has(name):
            return None
        return self.number(name, low, low=low)

    def duration(
        self,
        name: str,
        default: float,
        *,
        low: float = 0,
        high: float = 3600,
        whole: bool = True,
    ) -> float:
        """The seconds of a Go duration within [low, high]; `whole` refuses parts of a second."""
        allowed = f"a duration from {low:g}s to {high:g}s" + (", whole seconds" if whole else "")
        text = self.text(name, "")
        if not text:
            return default
        try:
            seconds = duration_s(text)
        except ValueError:
            self.refuse(name, text, allowed)
            return default
        if not low <= seconds <= high or (whole and seconds != int(seconds)):
            self.refuse(name, text, allowed)
            return default
        return seconds

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        """One of `allowed`."""
        text = self.text(name, default)
        if text not in allowed:
            self.refuse(name, text, "one of " + ", ".join(allowed))
            return default
        return text

    def flag(self, name: str, default: bool) -> bool:
        """A boolean, written as YAML or as text."""
        return self.choice(name, str(default).lower(), ("true", "false")) == "true"

    def text(self, name: str, default: str) -> str:
        """Any text; booleans become `true` and `false`."""
        self._known.add(name)
        value = self._values.get(name)
        if value is None:
            return default
        return str(value).lower() if isinstance(value, bool) else str(value)

    def required(self, name: str, allowed: str) -> str:
        """A text that must be set and not empty."""
        value = self.text(name, "")
        if not value:
            self.refuse(name, value, allowed)
        return value

    def has(self, name: str) -> bool:
        """True when the setting is present; it counts as known from now on."""
        self._known.add(name)
        return self._values.get(name) is not None

    def ignore(self, *names: str) -> None:
        """Settings that are allowed and do not concern scaling."""
        self._known.update(names)

    def rest(self) -> tuple[tuple[str, str], ...]:
        """Every setting not read so far, as text; they count as known from now on."""
        names = sorted(set(self._values) - self._known)
        return tuple((name, self.text(name, "")) for name in names)

    def refuse(self, name: str, value: object, allowed: str) -> None:
        """Record that `name` is invalid."""
        self._refusals.append(Refusal(self._prefix + name, f"{value}", allowed))

    def adopt(self, refusals: tuple[Refusal, ...]) -> None:
        """Add the refusals of another reader of the same manifest."""
        self._refusals.extend(refusals)

    def finish(self) -> None:
        """Raise RefusedSettingsError when a setting was refused or is unknown."""
        for name in sorted(set(self._values) - self._known):
            known = ", ".join(sorted(self._known))
            self.refuse(name, self._values[name], f"unknown setting; known: {known}")
        if self._refusals:
            raise RefusedSettingsError(tuple(self._refusals))

    def _number(self, name: str, allowed: str) -> float | None:
        text = self.text(name, "")
        if text == "":
            return None
        try:
            value = float(text)
        except ValueError:
            self.refuse(name, text, allowed)
            return None
        if math.isnan(value):
            self.refuse(name, text, allowed)
            return None
        return value


def _range(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return "a number"
    if math.isinf(high):
        return f"a number from {low:g}"
    return f"a number from {low:g} to {high:g}"
