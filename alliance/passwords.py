"""Text that may be shown, logged and kept: what stands in addresses and commands as a secret is left out of it."""

import re
from typing import Any

HIDDEN = "***"
REFERENCE = re.compile(r"\$\{(\w+)\}")  # what the environment holds, which is no secret itself
NO_REFERENCE = r"(?!(?:(?:bearer|basic|token)\s+)?\$\{\w+\}(?:[\s'\"&;,@#}\]]|:\s|$))"
NAME = r"[\w.-]*(?:passw(?:or)?d|passwd|secret|token|signature|credential|api[_-]?key|access[_-]?key|auth)[\w.-]*"
HOST = r"(?:://|\b(?:https?|ftps?|sftp|ssh|s3|gs|gcs|az|abfss?|webdavs?):/(?!/))"  # before one; a path keeps one slash
NO_LOGIN = r"(?!(?:[^\s'\"@:/]*:)?\$\{\w+\}@[^\s'\"@]*(?:[\s'\"]|$))"  # by reference alone
LITERAL = r"(?![^\s'\"#]*=\$\{\w+\})"  # a query without references
RULES = (
    (
        re.compile(rf"(?P<kept>{HOST}){NO_LOGIN}[^\s'\"]+(?=@)"),
        rf"\g<kept>{HIDDEN}",
    ),  # user:password@host, and a token before a host
    (re.compile(rf"(?P<kept>{HOST}[^\s'\"?#]*\?){LITERAL}[^\s'\"#]+"), rf"\g<kept>{HIDDEN}"),  # signed addresses
    (re.compile(rf"(?P<kept>authorization\s*:\s*(?:\w+\s+)?+){NO_REFERENCE}[^\s'\"]+", re.I), rf"\g<kept>{HIDDEN}"),
    (
        re.compile(
            rf"(?P<kept>\b(?:{NAME}|sig)\s*[=:]\s*['\"]?)(?!\*){NO_REFERENCE}(?:\$\{{\w+\}}|[^\s'\"&;,}}\]])+", re.I
        ),
        rf"\g<kept>{HIDDEN}",
    ),
    (re.compile(rf"(?P<kept>--?{NAME}\s+['\"]?)(?!\*){NO_REFERENCE}[^\s'\"]+", re.I), rf"\g<kept>{HIDDEN}"),
    (
        re.compile(rf"(?P<kept>(?<!\S)(?:-u|--user|--proxy-user)[ =]?['\"]?[^\s'\":]+:){NO_REFERENCE}[^\s'\"]+"),
        rf"\g<kept>{HIDDEN}",
    ),
    (re.compile(rf"(?P<kept>\bsshpass\s+-p\s*['\"]?){NO_REFERENCE}[^\s'\"]+"), rf"\g<kept>{HIDDEN}"),
)
PLACE = re.compile(rf"{HOST}|pipe:")  # only text that speaks of a place or a command holds any


def hide_passwords(text: str) -> str:
    """The text without the secrets that addresses and commands often hold: `https://***@host/shards`.

    References to the environment stay: `https://user:${NAME}@host/shards`.
    """
    if PLACE.search(text):
        for pattern, shown in RULES:
            text = pattern.sub(shown, text)
    return text


def holds_password(place: str) -> bool:
    """Whether a place holds a secret as it is, rather than a reference `${NAME}` to one in the environment."""
    return hide_passwords(place) != place


def hide_in(value: Any) -> Any:
    """The same for every text in nested dictionaries and lists."""
    if isinstance(value, str):
        return hide_passwords(value)
    if isinstance(value, dict):
        return {key: hide_in(each) for key, each in value.items()}
    return [hide_in(each) for each in value] if isinstance(value, list | tuple) else value
