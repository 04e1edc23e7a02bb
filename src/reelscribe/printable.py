"""What may be printed, logged or kept of texts from elsewhere: no credentials, and nothing that a terminal acts on.

Every line that is printed or logged passes through `printable`; file names, a server's words and foreign exceptions
are texts that somebody else may have chosen.
"""

from __future__ import annotations

import logging
import re

_STORE_USER = re.compile(
    r"(?<![\w+.-])((?:s3a?|gs|gcs|hf)://)(?!arn:)[^\s/@:]*:[^\s@]{0,200}@(?:[^\s/@?#]*@)*", re.IGNORECASE
)
"""Key and secret before a bucket, where no port can stand: secrets of object stores may hold slashes."""
_USER = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)(?!\[|arn:)[^\s/@:]*:(?!\d{1,5}(?:[/?#\s,;'\")\]}]|$))[^\s@]{0,200}@(?:[^\s/@?#]*@)*"
)
"""User and password; digits that end as a port does are one."""
_NAME_ALONE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)(?:[^\s/@?#]*@)+")
_FIRST = re.compile(r"\A([A-Za-z][A-Za-z0-9+.-]{0,30}://)[^/?#]*@")
"""Of a text that begins as an address, also where there are blanks in it."""
_USERS = (_STORE_USER, _USER, _NAME_ALONE, _FIRST)
_SECRET_PARAMETER = re.compile(
    r"([?&;#](?:[\w.-]{0,64}(?:token|secret|passwd|password|signature|credential)[\w.-]{0,64}|(?:x-)?api[-_]?key|sig|key|pwd|auth"
    r"|authorization|policy|[\w-]{0,64}access[-_]?key[-_]?(?:id)?|googleaccessid)=)[^\s&#;'\"]*",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """The text with all addresses in it without users, keys and passwords, and without the values of parameters that
    are secrets by their names.

    >>> redacted("s3://KEY:SECRET@bucket/a.mp4 and https://host/a.mp4?sig=abc&x=1")
    's3://bucket/a.mp4 and https://host/a.mp4?sig=…&x=1'
    """
    if "://" not in text:
        return text
    for user in _USERS * 2 if "@" in text else ():  # what is left may be an address again
        text = user.sub(r"\1", text)
    return _SECRET_PARAMETER.sub(r"\1…", text)


def names_user(address: str) -> bool:
    """Whether an address holds a user or a key before its host or bucket."""
    return any(user.match(address) for user in _USERS)


def printable(text: str) -> str:
    """The text in one line that a terminal prints as it is: redacted, with line ends, control characters (escape
    sequences begin with one), marks that turn the direction of writing, and bytes that are no text, escaped.

    >>> printable("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    if not text.isprintable():
        text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return redacted(text)


def one_line(text: str) -> str:
    """The same for a text of several lines: what is between words becomes a blank."""
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
