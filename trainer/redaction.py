"""Texts without the credentials that URLs in them carry: users and passwords, signatures, tokens, keys."""

import re

HIDDEN = "***"

_USER = re.compile(r"(?<=://)[^\s/?#@'\"<>\\]*@")
_NAMES = (
    r"x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|x-oss-(?:signature|credential|security-token)|"
    r"(?:[a-z]+[_-]?)?token|jwt|sig|sign|signature|"
    r"(?:[a-z]+[_-]?)?(?:api|access|private|secret|subscription|account)[_-]?key(?:[_-]?id)?|(?:aws|oss)accesskeyid|googleaccessid|"
    r"key|key-pair-id|policy|(?:[a-z]+[_-]?)?(?:password|passwd|pwd|secret)|credentials?|authorization|auth|sas|session(?:[_-]?id)?|hdnea|hdnts"
)
_VALUE = re.compile(rf"((?:[?&;]|\\u0026|%3f|%26)(?:{_NAMES})(?:=|%3d))[^\s&;#'\"<>\\,)\]}}|]+", re.IGNORECASE)
_STORED = re.compile(
    r"[?&;](?:x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|sig|signature|(?:access|auth|security)[_-]?token|"
    r"token|api[_-]?key|awsaccesskeyid|key-pair-id|password)=[^&;#]",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """`text` with `***` in place of what URLs in it tell only those who may use them; anything else stays as it is."""
    if "://" not in text and "=" not in text:
        return text
    return _VALUE.sub(rf"\1{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))


def holds_credentials(uri: str) -> bool:
    """Whether a URI carries a user's name, a signature or a token, which whoever reads it could use."""
    return bool(_USER.search(uri) or _STORED.search(uri))
