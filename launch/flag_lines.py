"""The lines of a flagfile, as the editors of any system write them.

Text may be UTF-8 or, with a byte order mark, UTF-16 or UTF-32; lines may end in any way. A line is empty, a comment
that begins with # or //, or one flag: `--name`, `--name=value` or `--name value`, with or without quotes around the
value. What could be meant in two ways is refused with its file and line.
"""

import codecs
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

# UTF-32 first: its mark begins with that of UTF-16.
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_COMMENTS = ("#", "//")
# Invisible, and left at the ends of lines by editors and by files that were joined.
_AROUND = "\ufeff\u200b"
_JOINERS = "\u200c\u200d"  # invisible parts of words in some scripts
_FLAG = re.compile(r"(--?[A-Za-z][A-Za-z0-9_]*)(?:(\s*=\s*|\s+)(.*))?")
_MORE = re.compile(r"\s(--?[A-Za-z]|#|//|\\$)")
_QUOTES, _TYPOGRAPHIC = "\"'", "“”„‟‘’‚‛«»"
_ONE_FLAG = "--name=value, one flag in a line, or a comment that begins with #"


class FlagLine(NamedTuple):
    """Attributes: place: file and line, for errors; argument: as on a command line."""

    place: str
    argument: str


def read_lines(path: Path) -> list[FlagLine]:
    """The flags of a file, without its comments.

    Raises:
      ValueError: it is no text, or a line is no flag; names the file and the line.
      OSError: it cannot be read.
    """
    lines = enumerate(re.split(r"\r\n|\r|\n", _decode(path)), start=1)
    stripped = ((number, _strip(line)) for number, line in lines)
    given = [(f"{path}, line {n}", line) for n, line in stripped if line and not line.startswith(_COMMENTS)]
    return [FlagLine(place, _as_argument(line, place)) for place, line in given]


def as_line(argument: str) -> str:
    """The line that `read_lines` reads as this argument: a value that could be read otherwise is quoted.

    Raises:
      ValueError: the value has a line break or another sign that no line may hold.
    """
    name, separator, value = argument.partition("=")
    _require_visible(argument, f"--{name.lstrip('-')}")
    plain = not re.search(r"\s", value) and value.strip(_QUOTES + _TYPOGRAPHIC + _AROUND) == value
    return argument if plain else f'{name}{separator}"{value}"'


def _decode(path: Path) -> str:
    data = path.read_bytes()
    encoding = next((name for mark, name in _ENCODINGS.items() if data.startswith(mark)), "utf-8")
    # A byte that is no UTF-8 does no harm in a comment; in a flag it is refused with its line.
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    try:
        text = data.decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise ValueError(f"The flagfile {path} is damaged ({error}); expected text. Save it as UTF-8.") from error
    if "\0" in text:
        raise ValueError(
            f"The flagfile {path} holds zero bytes, so it is binary, or UTF-16 without a byte order mark; expected "
            f"text. Save it as UTF-8."
        )
    return text


def _strip(line: str) -> str:
    """The line without white space and marks around it, which may take turns."""
    while (stripped := line.strip().strip(_AROUND)) != line:
        line = stripped
    return line


def _as_argument(line: str, place: str) -> str:
    _require_visible(line, place)
    line = line if line.startswith("-") else _unquote(line, place)
    match = _FLAG.fullmatch(line)
    if match is None:
        raise ValueError(f"{place} is {line!r}{_about_dash(line)}; expected {_ONE_FLAG}.")
    name, separator, value = match.groups(default="")
    unquoted = _unquote(value, place)
    if unquoted == value and (more := _MORE.search(separator + value)):
        raise ValueError(f"{place} is {line!r}, which goes on with {more[1]!r}; expected {_ONE_FLAG}, or quotes.")
    return f"{name}={unquoted}" if value or "=" in separator else name


def _unquote(text: str, place: str) -> str:
    """The text without a pair of quotes around it."""
    for sign in (text[:1], text[-1:]):
        if sign and sign in _TYPOGRAPHIC:
            raise ValueError(f"{place} has the typographic quote {sign} in {text!r}; expected \" or ', or no quotes.")
    if not text or not set(text[0] + text[-1]) & set(_QUOTES):
        return text
    if len(text) == 1 or text[0] != text[-1] or f"{text[0]} -" in text[1:-1]:
        raise ValueError(f"{place} has quotes that do not pair in {text!r}; expected them around the whole value.")
    return text[1:-1]


def _require_visible(line: str, place: str) -> None:
    """Refuses what nobody sees: control signs, marks of direction, bytes that are no UTF-8."""
    for sign in line:
        kind = unicodedata.category(sign)
        if kind == "Cs":
            byte = f"0x{ord(sign) & 0xFF:02x}"
            raise ValueError(f"{place} has the byte {byte}, which is no UTF-8; expected text. Save the file as UTF-8.")
        if kind in ("Cc", "Cf", "Zl", "Zp") and sign not in "\t" + _JOINERS:
            name = unicodedata.name(sign, "a control sign")
            raise ValueError(f"{place} has the invisible U+{ord(sign):04X} ({name}); expected none. Take it out.")


def _about_dash(line: str) -> str:
    sign = line[1:2] if line.startswith("-") else line[:1]
    if sign in ("", "-") or not (unicodedata.category(sign) == "Pd" or sign == "\u2212"):
        return ""
    return f", which begins with {unicodedata.name(sign)} in place of --"
