"""Remove credentials from texts: those in URLs (users, signatures, tokens, keys), and those that this process was given.

A server may repeat in its error what it was sent, so the values themselves are searched for, not only the places where they belong.
"""

import os
import re

HIDDEN = "***"
SECRET_NAME = re.compile(r"secret|token|passw|credential|api_?key|access_key|private_key|cookie", re.IGNORECASE)
"""Words in the name of an environment variable whose value is secret."""

_LEAST = 8  # characters of a secret: shorter ones are part of too many words
_given: set[str] = set()

_USER = re.compile(r"(?<=://)[^\s/?#@'\"<>\\]*@")
_NAMES = (
    r"x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|x-oss-(?:signature|credential|security-token)|"
    r"(?:[a-z]+[_-]?)?token|jwt|sig|sign|signature|"
    r"(?:[a-z]+[_-]?)?(?:api|access|private|secret|subscription|account)[_-]?key(?:[_-]?id)?|(?:aws|oss)accesskeyid|googleaccessid|"
    r"key|key-pair-id|policy|(?:[a-z]+[_-]?)?(?:password|passwd|pwd|secret)|credentials?|authorization|auth|sas|session(?:[_-]?id)?|hdnea|hdnts"
)
_VALUE = re.compile(rf"((?:[?&;]|\\u0026|%3f|%26)(?:{_NAMES})(?:=|%3d))[^\s&;#'\"<>\\,)\]}}|]+", re.IGNORECASE)
SECRET_IN_URL = re.compile(
    r"[?&;](?:x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|sig|signature|(?:access|auth|security)[_-]?token|"
    r"token|api[_-]?key|awsaccesskeyid|key-pair-id|password)=[^&;#]",
    re.IGNORECASE,
)


def names_secret(variable: str) -> bool:
    """Whether an environment variable contains a credential, by its name; `…_FILE` and `…_PATH` contain only a path to one."""
    return bool(SECRET_NAME.search(variable)) and not variable.upper().endswith(("_FILE", "_PATH"))


def conceal(*secrets: str) -> None:
    """Register credentials that were read from files, so that they are redacted like those in the environment."""
    _given.update(secrets)


def without_credentials(text: str) -> str:
    """`text` with `***` in place of credentials; anything else stays as it is."""
    for secret in sorted((secret for secret in _known() if secret in text), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return without_signatures(text)


def _known() -> set[str]:
    """The credentials of this process."""
    names = [name for name in os.environ if names_secret(name) and not name.upper().endswith("_ID")]
    known = {os.environ.get(name, "") for name in names} | _given  # another thread may remove one meanwhile
    return {secret for secret in known if len(secret) >= _LEAST}


def without_signatures(text: str) -> str:
    """`text` with `***` in place of the credentials in its URLs only; a fast version for text that is printed very often."""
    if "://" not in text and "=" not in text:
        return text
    return _VALUE.sub(rf"\1{HIDDEN}", _USER.sub(f"{HIDDEN}@", text))


def holds_credentials(uri: str) -> bool:
    """Whether a text is a URI with a user name, a signature or a token, or contains a credential that this process was given."""
    return bool(_USER.search(uri) or SECRET_IN_URL.search(uri)) or any(secret in uri for secret in _known())
