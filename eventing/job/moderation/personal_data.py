"""Personal data and credentials in text, by shape and checksum. Pure.

A shape alone would flag every long number: what has a check digit is only found where that is right. A shape takes as
much as may belong together (all the groups of a number, say); what of it is real is looked for at the groups' ends.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_SEPARATORS: Final = re.compile(r"[ .-]")


@dataclass(frozen=True, slots=True)
class Detector:
    """A shape (RE2), and which parts of a text of that shape are real, as (start, end). `longest` is in characters: of
    the longest beginning that does not have the shape yet. With `is_beginning` the shape is only the beginning of what
    is found, as of a key of any length.
    """

    pattern: str
    longest: int
    real: Callable[[str], Iterator[tuple[int, int]]] = lambda text: iter([(0, len(text))])
    is_beginning: bool = False


def _parts(
    is_real: Callable[[str], bool], least: int, most: int
) -> Callable[[str], Iterator[tuple[int, int]]]:
    """The real ones among the parts of `least` to `most` characters that begin and end with a group."""

    def real(text: str) -> Iterator[tuple[int, int]]:
        places = [each.start() for each in _SEPARATORS.finditer(text)]
        starts, ends = [0, *(place + 1 for place in places)], [*places, len(text)]
        for start in starts:
            for end in ends[bisect_left(ends, start + least) :]:
                if end - start > most:
                    break
                if is_real(text[start:end]):
                    yield start, end

    return real


def _has_luhn_digit(text: str) -> bool:
    """ISO/IEC 7812-1: the check digit of payment cards."""
    digits = _SEPARATORS.sub("", text)
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [int(d) * (1 + place % 2) for place, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _is_iban(text: str) -> bool:
    """ISO 13616: the country's two check digits make the number 1 modulo 97."""
    joined = _SEPARATORS.sub("", text).upper()
    if len(joined) != _IBAN_LENGTHS.get(joined[:2]) or not joined[2:4].isdigit():
        return False
    moved = joined[4:] + joined[:4]
    return int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def _ssn(text: str) -> Iterator[tuple[int, int]]:
    """The numbers that the US Social Security Administration gives out."""
    area, group, serial = _SEPARATORS.split(text)
    if area not in ("000", "666") and area < "900" and group != "00" and serial != "0000":
        yield 0, len(text)


def _spanish(text: str) -> Iterator[tuple[int, int]]:
    """DNI and NIE: the letter is that of the number modulo 23."""
    number, letter = _SEPARATORS.sub("", text)[:-1].upper(), text[-1].upper()
    if number[0] in "XYZ":
        number = f"{'XYZ'.index(number[0])}{number[1:]}"
    if len(number) == 8 and "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == letter:
        yield 0, len(text)


def _brazilian(text: str) -> Iterator[tuple[int, int]]:
    """CPF: two check digits, each modulo 11."""
    digits = [int(each) for each in text if each.isdigit()]
    if len(set(digits)) == 1:
        return
    for length in (9, 10):
        total = sum(digits[n] * (length + 1 - n) for n in range(length))
        if total * 10 % 11 % 10 != digits[length]:
            return
    yield 0, len(text)


def _french(text: str) -> Iterator[tuple[int, int]]:
    """NIR: the key of a social security number, modulo 97."""
    digits = _SEPARATORS.sub("", text)
    if 97 - int(digits[:13]) % 97 == int(digits[13:]):
        yield 0, len(text)


_IBAN_LENGTHS: Final = {
    name: length
    for length, names in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL",
        19: "MK SI",
        20: "AT BA EE KZ LT LU XK",
        21: "CH HR LI LV",
        22: "BG BH DE GB GE IE ME RS VA",
        23: "AE GI IL TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "PT",
        26: "IS TR",
        27: "FR GR IT MC SM",
        28: "AL AZ CY DO GT HU LB PL",
        29: "BR PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
    }.items()
    for name in names.split()
}
"""Characters of an IBAN by country (ISO 13616)."""


_KEYS: Final = (
    r"sk-[A-Za-z0-9_-]{20}",  # OpenAI and those that followed it
    r"AKIA[0-9A-Z]{16}",  # AWS
    r"gh[pousr]_[A-Za-z0-9]{36}",  # GitHub
    r"xox[abprs]-[A-Za-z0-9-]{10}",  # Slack
    r"AIza[0-9A-Za-z_-]{35}",  # Google
    r"eyJ[A-Za-z0-9_-]{8,180}\.eyJ[A-Za-z0-9_-]{8}",  # a JSON Web Token
    r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----",
)

DETECTORS: Final[Mapping[str, Detector]] = {
    "card": Detector(r"[0-9](?:[ .-]?[0-9]){12,60}", 25, _parts(_has_luhn_digit, 13, 37)),
    "iban": Detector(
        r"(?i:[a-z]{2}[0-9]{2}(?:[ .-]?[a-z0-9]){11,60})", 30, _parts(_is_iban, 15, 61)
    ),
    "email": Detector(
        r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,63}", 131
    ),
    "phone": Detector(r"\+[0-9](?:[ ().-]{0,2}[0-9]){7,14}", 24),
    "us_ssn": Detector(r"[0-9]{3}[- ][0-9]{2}[- ][0-9]{4}", 11, _ssn),
    "dni": Detector(r"[XYZxyz]?[0-9]{7,8}[ -]?[A-Za-z]", 11, _spanish),
    "cpf": Detector(r"[0-9]{3}\.?[0-9]{3}\.?[0-9]{3}[ -]?[0-9]{2}", 14, _brazilian),
    "nir": Detector(r"[12](?: ?[0-9]){14}", 29, _french),
    "secret": Detector("|".join(_KEYS), 196, is_beginning=True),
}
"""By the names that settings use."""
