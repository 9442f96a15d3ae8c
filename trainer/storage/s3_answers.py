"""Interpret an S3 endpoint's response by its code rather than its status: accept it, retry, or end the command."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from trainer.errors import InputError, RunError
from trainer.redaction import without_credentials
from trainer.storage.protocol import MissingObject
from trainer.storage.retries import PASSING_STATUSES, retry_after

PASSING_CODES = frozenset({
    "BadDigest", "BandwidthLimitExceeded", "Busy", "ClientDisconnected", "ConditionalRequestConflict", "IncompleteBody", "InternalError",
    "InvalidDigest", "OperationAborted", "OperationTimedOut", "RequestLimitExceeded", "RequestTimeTooSkewed", "RequestTimeout",
    "ServerBusy", "ServiceUnavailable", "SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException",
    "TooManyRequests", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "XMinioServerNotInitialized",
})  # fmt: skip
"""S3 errors after which the same request may succeed, whatever their status: load, damage on the way, a clock being set."""

_LOAD = re.compile("Throttl|SlowDown|RateLimit|QpsLimit|TooManyRequests|Timeout|TimedOut|Unavailable")
"""Parts of codes with which other stores, and services behind one (KMS.ThrottlingException), report load."""

EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "InvalidToken", "InvalidTokenId", "TokenRefreshRequired"})
"""Keys that were good once: a credentials file may be about to bring new ones."""

KEY_CODES = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch"})
"""Keys that the store does not know: wrong, unless they were accepted a moment ago."""

_REGION_CODES = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "Redirect"})
_FINAL_CODES = _REGION_CODES | KEY_CODES | EXPIRED_CODES | {
    "AccessDenied", "AccountProblem", "AllAccessDisabled", "BucketAlreadyExists", "BucketAlreadyOwnedByYou", "EntityTooLarge",
    "EntityTooSmall", "InvalidArgument", "InvalidBucketName", "InvalidBucketState", "InvalidObjectState", "InvalidPart",
    "InvalidPartOrder", "InvalidRange", "InvalidRequest", "KeyTooLongError", "MethodNotAllowed", "NoSuchBucket", "NoSuchKey",
    "NoSuchUpload", "NotImplemented", "PreconditionFailed", "QuotaExceeded", "UnauthorizedAccess",
}  # fmt: skip
_ROOTS = {
    ("GET", "list-type"): "ListBucketResult",
    ("GET", "uploads"): "ListMultipartUploadsResult",
    ("POST", "uploads"): "InitiateMultipartUploadResult",
    ("POST", "uploadId"): "CompleteMultipartUploadResult",
}


class Damaged(Exception):
    """An answer that contradicts itself or ends early; the next one may be whole."""


class Stranger(Exception):
    """A response that is not from an S3 store: a login page, a proxy's error, another service."""


class Passing(Exception):
    """The store is temporarily unable to respond; `pause` is the delay that it asks for, in seconds."""

    def __init__(self, text: str, pause: float = 0.0) -> None:
        super().__init__(text)
        self.pause = pause


def check_answer(
    method: str, key: str | None, query: Mapping[str, object], copies: bool, response: BaseHTTPResponse, *, streamed: bool
) -> None:
    """Believe a 2xx answer, or not.

    Args:
        method: of the request.
        key: of the object that it was about, or None.
        query: its parameters.
        copies: whether it was a copy within the store.
        response: the answer.
        streamed: whether its body is an object's that was not read yet.

    Raises:
        S3Error: an error under status 200, as a store sends that has begun to answer.
        Damaged, Stranger: see there.
    """
    root = "CopyObjectResult|CopyPartResult" if copies else next((_ROOTS[method, name] for name in query if (method, name) in _ROOTS), "")
    if root:
        element = _parse(response)
        if element.tag.endswith("}Error") or element.tag == "Error":
            raise error_of(method, key, response)
        if not re.fullmatch(root, _name(element)):
            raise Stranger(said(response))
        _check_fields(element, query)
    elif method == "DELETE":
        if response.status != 204:
            raise Stranger(said(response))
    elif key and (method in ("PUT", "HEAD") or (method == "GET" and "uploadId" not in query)):
        if not _is_of_an_object(method, key, response):
            raise Stranger(said(response, streamed=streamed))


def _is_of_an_object(method: str, key: str, response: BaseHTTPResponse) -> bool:
    """Whether the headers are those of an object: a page that a web server gives for any address has neither ETag nor x-amz-."""
    headers = response.headers
    if response.status not in ((200, 206) if method == "GET" else (200,)) or not headers.get("etag"):
        return False
    if method == "HEAD" and not headers.get("content-length", "").isdecimal():
        return False
    is_page = "text/html" in headers.get("content-type", "") and not any(name.lower().startswith("x-amz-") for name in headers)
    return not is_page or key.endswith((".html", ".htm"))


def error_of(method: str, key: str | None, response: BaseHTTPResponse) -> S3Error:
    """The S3 error that an answer that is not 2xx stands for.

    Raises:
        Passing, Damaged, Stranger: see there.
    """
    error = error_in(response) if method != "HEAD" else _error_of_head(key, response)
    code = (error.code or "") if error else ""
    if (
        code in PASSING_CODES
        or _LOAD.search(code)
        or response.status in PASSING_STATUSES | {307}
        or (response.status == 409 and code not in _FINAL_CODES)
    ):
        pause = retry_after(response.headers.get("retry-after", ""), most=30.0)
        raise Passing(f"{response.status} {code or printable(response.reason or '')}".strip(), pause)
    if error is None:
        kind = response.headers.get("content-type", "")
        if (response.data or b"").lstrip().startswith((b"<?xml", b"<Error")) or (response.data and "/xml" in kind and "html" not in kind):
            raise Damaged(f"{said(response)}, which is not XML")
        raise Stranger(said(response))
    return error


def is_known(code: str | None) -> bool:
    """Whether this is a code that a store uses; a flipped bit would change it."""
    return code in _FINAL_CODES


def error_in(response: BaseHTTPResponse) -> S3Error | None:
    """The error that the body spells out, or None."""
    try:
        element = _parse(response)
    except (Damaged, Stranger):
        return None
    fields = {_name(part): (part.text or "").strip() for part in element}
    if _name(element) != "Error" or not fields.get("Code"):
        return None
    return S3Error(response, printable(fields["Code"]), printable(fields.get("Message", "")), None, None, None)


def said(response: BaseHTTPResponse, *, streamed: bool = False) -> str:
    """Status, type and the beginning of the body, in one printable line; a body that was not read yet is closed."""
    data = b""
    try:
        data = response.read(400) if streamed else response.data or b""
    except (HTTPError, OSError):
        pass
    finally:
        if streamed:
            response.close()
    kind = printable(response.headers.get("content-type", "").partition(";")[0])
    text = printable(without_credentials(re.sub(rb"\s+", b" ", data[:4000]).decode(errors="replace")))[:100]
    return f"{response.status} {kind}{f' {text!r}' if text else ''}".strip()


def printable(text: str) -> str:
    """`text` without what would break a line or a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in without_credentials(text)).strip()[:300]


@contextmanager
def explained(uri: str, endpoint: str) -> Iterator[None]:
    """One line that names URI, endpoint and cause for whatever the client raises."""
    try:
        yield
    except (InputError, RunError) as error:
        text = str(error)
        raise error if text.startswith(uri) else type(error)(f"{uri}: {text}") from error.__cause__
    except S3Error as error:
        raise _explain_code(uri, endpoint, error) from error
    except ServerError as error:
        raise RunError(f"{uri}: {endpoint} responded with {error.status_code}") from error
    except InvalidResponseError as error:
        raise InputError(f"{uri}: the server at {endpoint} is not an S3 store: {printable(str(error))[:200]}") from error
    except (MinioException, ValueError) as error:
        raise InputError(f"{uri}: {printable(str(error))}") from error


class LostUploadError(RunError):
    """The store no longer knows this upload or its parts: its answer to "complete" got lost, or it expired."""


class ReplacedError(RunError):
    """The object is another version than the one that was begun with."""


def _explain_code(uri: str, endpoint: str, error: S3Error) -> Exception:
    """What an S3 error code means to the person whose command met it."""
    code, text = error.code or "", f"{error.code}: {error.message}"
    if code == "NoSuchKey":
        return MissingObject(f"{uri}: no such object at {endpoint}")
    if code == "NoSuchBucket":
        return InputError(f"{uri}: no such bucket at {endpoint}: create it, or correct the URI")
    if code in ("NoSuchUpload", "InvalidPart", "InvalidPartOrder"):
        return LostUploadError(f"{uri}: {endpoint} lost the upload ({text})")
    if code == "AccessDenied" or code in KEY_CODES | EXPIRED_CODES:
        return InputError(f"{uri}: refused by {endpoint} ({text}): check the credentials and what their policy allows")
    if code in _REGION_CODES:
        return InputError(f"{uri}: refused by {endpoint} ({text}): check AWS_REGION and AWS_ENDPOINT_URL")
    if code == "PreconditionFailed":
        return ReplacedError(f"{uri}: the object was replaced while it was read")
    if code == "InvalidRange":
        return RunError(f"{uri}: the object ends before the requested range: it was truncated")
    if error.response.status >= 500 and code != "NotImplemented":
        return RunError(f"{uri}: {endpoint} failed ({text})")
    return InputError(f"{uri}: refused by {endpoint} ({text})")


def _error_of_head(key: str | None, response: BaseHTTPResponse) -> S3Error | None:
    """The error of a HEAD, which has only a status. None if a 404 may come from something other than a store, such as an ingress."""
    if response.status == 404 and key and not any(name.lower().startswith("x-amz-") for name in response.headers):
        return None
    missing = "NoSuchKey" if key else "NoSuchBucket"
    code = {301: "PermanentRedirect", 404: missing, 412: "PreconditionFailed", 416: "InvalidRange"}.get(response.status)
    code = "AccessDenied" if response.status == 403 and not key else code
    return S3Error(response, code, "", None, None, None) if code else None


def _parse(response: BaseHTTPResponse) -> ElementTree.Element:
    data = response.data or b""
    if not re.match(rb"\s*<(\?xml|[A-Z])", data):
        raise Stranger(said(response))
    try:
        return ElementTree.fromstring(data.decode())
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError) as error:
        raise Damaged(f"{said(response)}, which is not XML") from error


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _check_fields(element: ElementTree.Element, query: Mapping[str, object]) -> None:
    """What the client reads from an answer is there and of its kind."""
    fields = {_name(part): (part.text or "") for part in element}
    try:
        if _name(element) == "ListBucketResult":
            _check_listing(element, fields, str(query.get("prefix", "")))
            if fields["IsTruncated"] == "true" and fields["NextContinuationToken"] == query.get("continuation-token"):
                raise ValueError("itself for its next page")
        elif _name(element) in ("InitiateMultipartUploadResult", "CompleteMultipartUploadResult", "CopyObjectResult", "CopyPartResult"):
            if not fields["UploadId" if _name(element).startswith("Initiate") else "ETag"].strip():
                raise ValueError("an empty field")
    except (KeyError, ValueError) as error:
        raise Damaged(f"{_name(element)} with {error}") from error


def _check_listing(element: ElementTree.Element, fields: Mapping[str, str], prefix: str) -> None:
    decode = unquote_plus if fields.get("EncodingType") == "url" else str
    if fields["IsTruncated"] not in ("true", "false") or (fields["IsTruncated"] == "true" and not fields.get("NextContinuationToken")):
        raise ValueError("no end and no next page")
    if decode(fields.get("Prefix", prefix)) not in (prefix, decode(prefix)):
        raise ValueError("another prefix")
    entries = [part for part in element if _name(part) in ("Contents", "CommonPrefixes")]
    if "KeyCount" in fields and int(fields["KeyCount"]) != len(entries):
        raise ValueError("another number of keys than it announces")
    for entry in entries:
        if _name(entry) == "Contents":
            values = {_name(part): (part.text or "") for part in entry}
            datetime.fromisoformat(values["LastModified"])
            if int(values["Size"]) < 0 or not decode(values["Key"]).startswith(prefix):
                raise ValueError("a key or a size that cannot be")
