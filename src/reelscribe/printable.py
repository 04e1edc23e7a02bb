"""Make foreign texts safe to print, log or store: without credentials and terminal control characters.

Every line that is printed or logged passes through `printable`; file names, servers' messages and foreign exceptions
may have been chosen by somebody else.
"""

from __future__ import annotations

import logging
import re

_STORE_USER = re.compile(
    r"(?<![\w+.-])((?:s3a?|gs|gcs|hf)://)(?!arn:)[^\s/@:]*:[^\s@]{0,200}@(?:[^\s/@?#]*@)*", re.IGNORECASE
)
"""Key and secret before a bucket, which has no port: secrets of object stores may contain slashes."""
_USER = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)(?!\[|arn:)[^\s/@:]*:(?!\d{1,5}(?:[/?#\s,;'\")\]}]|$))[^\s@]{0,200}@(?:[^\s/@?#]*@)*"
)
"""User and password; digits in the place of a port are a port."""
_NAME_ALONE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)(?:[^\s/@?#]*@)+")
_FIRST = re.compile(r"\A([A-Za-z][A-Za-z0-9+.-]{0,30}://)[^/?#]*@")
"""Like that, in a text that starts as an address, even with blanks in it."""
_USERS = (_STORE_USER, _USER, _NAME_ALONE, _FIRST)
_SECRET_PARAMETER = re.compile(
    r"([?&;#](?:[\w.-]{0,64}(?:token|secret|passwd|password|signature|credential)[\w.-]{0,64}|(?:x-)?api[-_]?key|sig|key|pwd|auth"
    r"|authorization|policy|[\w-]{0,64}access[-_]?key[-_]?(?:id)?|googleaccessid)=)[^\s&#;'\"]*",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """The text with users, keys and passwords removed from all addresses, and the values of parameters whose names mark
    them as secret.

    >>> redacted("s3://KEY:SECRET@bucket/a.mp4 and https://host/a.mp4?sig=abc&x=1")
    's3://bucket/a.mp4 and https://host/a.mp4?sig=…&x=1'
    """
    if "://" not in text:
        return text
    for user in _USERS * 2 if "@" in text else ():  # the rest may be an address again
        text = user.sub(r"\1", text)
    return _SECRET_PARAMETER.sub(r"\1…", text)


def names_user(address: str) -> bool:
    """Whether an address holds a user or a key before its host or bucket."""
    return any(user.match(address) for user in _USERS)


def printable(text: str) -> str:
    """The text as one line that a terminal prints literally: redacted, with line ends, control characters (which start
    escape sequences), marks that change the direction of writing, and bytes that are not text, escaped.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    if not text.isprintable():
        text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return redacted(text)


def one_line(text: str) -> str:
    """The same for a text of several lines: whitespace between words becomes one blank."""
    return printable(" ".join(text.split()))


def logger(name: str) -> logging.Logger:
    """A logger whose lines are printable."""
    found = logging.getLogger(name)
    if _make_printable not in found.filters:
        found.addFilter(_make_printable)
    return found


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True
