"""Text that may be shown, logged and kept: what stands in addresses and commands as a secret is left out of it."""

import re
from typing import Any

HIDDEN = "***"
NAME = r"[\w.-]*(?:passw(?:or)?d|passwd|secret|token|signature|credential|api[_-]?key|access[_-]?key|auth)[\w.-]*"
RULES = (
    (re.compile(r"(?<=://)[^\s'\"]+(?=@)"), HIDDEN),  # user:password@host, and a token before a host
    (re.compile(r"(?<=://)(?P<kept>[^\s'\"?#]*\?)[^\s'\"#]+"), rf"\g<kept>{HIDDEN}"),  # signed addresses
    (re.compile(r"(?P<kept>authorization\s*:\s*(?:\w+\s+)?)[^\s'\"]+", re.I), rf"\g<kept>{HIDDEN}"),
    (re.compile(rf"(?P<kept>\b{NAME}\s*[=:]\s*['\"]?)(?!\*)[^\s'\"&;,}}\]]+", re.I), rf"\g<kept>{HIDDEN}"),
    (re.compile(rf"(?P<kept>--?{NAME}\s+['\"]?)(?!\*)[^\s'\"]+", re.I), rf"\g<kept>{HIDDEN}"),
    (re.compile(r"(?P<kept>(?<!\S)(?:-u|--user|--proxy-user)[ =]?['\"]?[^\s'\":]+:)[^\s'\"]+"), rf"\g<kept>{HIDDEN}"),
    (re.compile(r"(?P<kept>\bsshpass\s+-p\s*['\"]?)[^\s'\"]+"), rf"\g<kept>{HIDDEN}"),
)
PLACE = re.compile(r"://|pipe:")  # only text that speaks of a place or a command holds any


def hide_passwords(text: str) -> str:
    """The text without the secrets that addresses and commands often hold: `https://***@host/shards`."""
    if PLACE.search(text):
        for pattern, shown in RULES:
            text = pattern.sub(shown, text)
    return text


def hide_in(value: Any) -> Any:
    """The same for every text in nested dictionaries and lists."""
    if isinstance(value, str):
        return hide_passwords(value)
    if isinstance(value, dict):
        return {key: hide_in(each) for key, each in value.items()}
    return [hide_in(each) for each in value] if isinstance(value, list | tuple) else value
