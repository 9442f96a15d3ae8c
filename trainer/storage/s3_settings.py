"""The S3 store's address, keys and proxy, read from the environment and a credentials file.

Keys never appear in a message: errors name the variable or file instead.
"""

import configparser
import dataclasses
import ipaddress
import os
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import certifi
from minio.credentials.credentials import Credentials
from minio.credentials.providers import Provider, StaticProvider

from trainer.errors import InputError
from trainer.redaction import conceal

_MAX_FILE_BYTES = 1 << 20
_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


@dataclass(frozen=True, kw_only=True)
class S3Settings:
    """Where the store is and how long it is waited for.

    Attributes:
        endpoint: URL without a path.
        region: that requests are signed for.
        access_key: empty if the keys come from `credentials_file`.
        secret_key: likewise.
        session_token: of temporary keys, or empty.
        credentials_file: an AWS credentials file (a mounted secret), read again whenever it changes, or empty.
        profile: the section of `credentials_file`.
        identity: who gives keys to this pod's account: the URL of an STS or of a node's agent, or empty.
        ca_file: CA certificates to trust for TLS.
        proxy: URL of the HTTP proxy on the way, with its user and password, or empty.
        proxy_variable: the environment variable that names the proxy.
        addressing: path, virtual, or empty for what the endpoint is used to.
        retry_seconds: how long one request is tried again.
        timeout_seconds: without a byte, after which a connection counts as broken.
    """

    endpoint: str
    region: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str = field(repr=False)
    credentials_file: str
    profile: str
    identity: str
    ca_file: str
    proxy: str = field(repr=False)
    proxy_variable: str
    addressing: str
    retry_seconds: float
    timeout_seconds: float


def settings_from_environment(uri: str) -> S3Settings:
    """Read AWS_*, FIRSTSIGHT_S3_* and the proxy variables; `uri` is named in errors.

    Raises:
        InputError: no credentials, or a value that cannot be meant.
    """
    get = os.environ.get
    region = get("AWS_REGION") or get("AWS_DEFAULT_REGION") or "us-east-1"
    if not re.fullmatch(r"[A-Za-z0-9._-]+", region):
        raise InputError(f"{uri}: AWS_REGION must be a region's name such as eu-central-1, got {region!r}")
    endpoint = _endpoint(uri, get("AWS_ENDPOINT_URL_S3") or get("AWS_ENDPOINT_URL") or f"https://s3.{region}.amazonaws.com")
    keys = [get(name.upper(), "") for name in _KEYS]
    credentials_file = identity = ""
    if not (keys[0] and keys[1]):
        credentials_file = get("AWS_SHARED_CREDENTIALS_FILE", "")
        identity = "" if credentials_file else _identity(uri, region)
        if not credentials_file and not identity:
            raise InputError(
                f"{uri}: no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL, unless it is AWS)"
            )
        keys = ["", "", ""]
    for name, value in zip(_KEYS, keys, strict=True):
        if wrong := _wrong_key(value):
            raise InputError(f"{uri}: {name.upper()} {wrong}")
    ca_file = get("FIRSTSIGHT_S3_CA") or get("AWS_CA_BUNDLE") or certifi.where()
    for name, file in (("FIRSTSIGHT_S3_CA or AWS_CA_BUNDLE", ca_file), ("AWS_SHARED_CREDENTIALS_FILE", credentials_file)):
        if file and not os.path.isfile(file):
            raise InputError(f"{uri}: {name} names {file}, which is not a file")
    addressing = get("FIRSTSIGHT_S3_ADDRESSING", "")
    if addressing not in ("", "path", "virtual"):
        raise InputError(f"FIRSTSIGHT_S3_ADDRESSING must be path or virtual, got {addressing!r}")
    proxy, variable = _proxy(uri, endpoint)
    return S3Settings(
        endpoint=endpoint,
        region=region,
        access_key=keys[0],
        secret_key=keys[1],
        session_token=keys[2],
        credentials_file=credentials_file,
        profile=get("AWS_PROFILE") or "default",
        identity=identity,
        ca_file=ca_file,
        proxy=proxy,
        proxy_variable=variable,
        addressing=addressing,
        retry_seconds=_seconds("FIRSTSIGHT_S3_RETRY_SECONDS", 300.0),
        timeout_seconds=_seconds("FIRSTSIGHT_S3_TIMEOUT_SECONDS", 60.0),
    )


def provider(settings: S3Settings) -> Provider:
    """Where a client takes its keys from."""
    if settings.credentials_file:
        return CredentialsFile(settings.credentials_file, settings.profile)
    if settings.identity:
        from trainer.storage.s3_identity import WorkloadIdentity  # here: it needs the client's connections, which need these settings

        return WorkloadIdentity(settings)
    return StaticProvider(settings.access_key, settings.secret_key, settings.session_token or None)


class Renewed(Provider):
    """Keys that change while a process runs.

    Attributes:
        source: where they come from, as messages name it.
        trouble: why there are no new ones at the moment; empty: nothing is wrong.
    """

    source = ""
    trouble = ""

    def renew(self, rejected: Credentials) -> None:
        """The store rejects these keys: look for others the next time."""


class CredentialsFile(Renewed):
    """The keys of one profile in an AWS credentials file, read again when the file changes.

    While a file is rotated it may be missing or half written: the keys read before stay in use, and `trouble` says why.
    """

    def __init__(self, file: str, profile: str) -> None:
        self._file, self._profile, self.source = file, profile, file
        self._version: tuple[int, ...] = ()
        self._credentials: Credentials | None = None

    def retrieve(self) -> Credentials:
        """The keys as the file has them now; InputError naming file and cause where it never had any."""
        try:
            status = os.stat(self._file)
            version = (status.st_ino, status.st_size, status.st_mtime_ns)
            if self._credentials is None or version != self._version:
                self._credentials, self._version = read_credentials(self._file, self._profile), version
            self.trouble = ""
        except OSError as error:
            self.trouble = f"credentials file {self._file}: {error.strerror}"
        except InputError as error:
            self.trouble = str(error)
        if self._credentials is None:
            raise InputError(self.trouble)
        return self._credentials


def read_credentials(file: str, profile: str) -> Credentials:
    """The keys of `profile` in an AWS credentials file.

    Raises:
        InputError: naming file and cause, never a value.
        OSError: it cannot be read.
    """
    where = f"credentials file {file}"
    with open(file, "rb") as stream:
        data = stream.read(_MAX_FILE_BYTES + 1)
    if len(data) > _MAX_FILE_BYTES:
        raise InputError(f"{where}: larger than 1 MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text at byte {error.start}") from None
    parser = configparser.RawConfigParser(delimiters=("=",), default_section="\0")  # no section is everyone's, `%` is a letter
    try:
        parser.read_string(text.replace("\r\n", "\n").replace("\r", "\n"))
    except configparser.DuplicateSectionError as error:
        raise InputError(f"{where}: line {error.lineno}: [{error.section}] appears twice") from None
    except configparser.DuplicateOptionError as error:
        raise InputError(f"{where}: line {error.lineno}: {error.option} appears twice in [{error.section}]") from None
    except configparser.MissingSectionHeaderError as error:
        raise InputError(f"{where}: line {error.lineno}: a line before the first [profile]") from None
    except configparser.ParsingError as error:  # their own words quote the line
        raise InputError(f"{where}: line {error.errors[0][0]}: neither [profile] nor name = value") from None
    if not parser.has_section(profile):
        found = ", ".join(f"[{name}]" for name in parser.sections()) or "none"
        raise InputError(f"{where}: no profile [{profile}] (it has: {found}); AWS_PROFILE names the one to use")
    values = [parser.get(profile, name, fallback="").strip() for name in _KEYS]
    for name, value, needed in zip(_KEYS, values, (True, True, False), strict=True):
        if needed and not value:
            raise InputError(f"{where}: [{profile}] has no {name}")
        if wrong := _wrong_key(value):
            raise InputError(f"{where}: {name} of [{profile}] {wrong}")
    conceal(*values[1:])
    return Credentials(values[0], values[1], values[2] or None)


def bypasses_proxy(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY names this host: `*`, a name or suffix, an address, or a network such as 10.0.0.0/8; each with or without a port.

    Entries stand between commas or spaces, and a suffix begins with `.`, `*.` or neither, as other programs read them.
    """
    host = host.lower().removesuffix(".")
    for entry in re.split(r"[,\s]+", no_proxy.lower()):
        name, _, wanted = entry.rpartition(":") if re.search(r"(^[^:]*|\]):[0-9]+$", entry) else (entry, "", "")
        name = name.removeprefix("*").lstrip(".").removesuffix(".")
        if entry == "*" or (name and wanted in ("", str(port)) and (f".{host}".endswith(f".{name}") or _is_in(host, name))):
            return True
    return False


def _is_in(host: str, network: str) -> bool:
    """Whether a host is an address in a network, or the address that is named instead of one."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network.replace("[", "").replace("]", ""), strict=False)
    except ValueError:  # one of them is a name
        return False


def has_credentials() -> bool:
    """Whether the environment names credentials of any kind; whether they are good is not looked at."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SHARED_CREDENTIALS_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
    return any(os.environ.get(name) for name in names)


def identity_settings(settings: S3Settings) -> S3Settings:
    """The settings by which who gives keys is reached: its address, the public certificates or AWS_CA_BUNDLE, the proxy on that way."""
    parts = urlsplit(settings.identity)
    endpoint = f"{parts.scheme}://{parts.netloc}"
    proxy, variable = _proxy(endpoint, endpoint)
    if parts.scheme == "http":  # an agent on this node, or a test's
        proxy, variable = "", ""
    ca_file = os.environ.get("AWS_CA_BUNDLE") or certifi.where()
    return dataclasses.replace(settings, endpoint=endpoint, ca_file=ca_file, proxy=proxy, proxy_variable=variable)


def _identity(uri: str, region: str) -> str:
    """URL of who gives keys to this pod's account by what the cloud set in its environment; empty: nobody does."""
    get = os.environ.get
    if get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        if not get("AWS_ROLE_ARN"):
            raise InputError(f"{uri}: AWS_WEB_IDENTITY_TOKEN_FILE is set without AWS_ROLE_ARN: the account's annotation names the role")
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        return _endpoint(uri, get("AWS_ENDPOINT_URL_STS") or f"https://sts.{region}.{domain}", "AWS_ENDPOINT_URL_STS")
    return get("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")


def _endpoint(uri: str, text: str, variable: str = "AWS_ENDPOINT_URL") -> str:
    rule = f"{variable} must be http(s)://host[:port] and nothing more"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InputError(f"{uri}: {rule}") from None
    if "@" in text:
        raise InputError(f"{uri}: {rule}: keys go into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment
    if wrong or port == 0 or not re.fullmatch(r"[!-~]+", text):
        raise InputError(f"{uri}: {rule}, got {text!r}")
    return f"{parts.scheme}://{parts.netloc}"


def _proxy(uri: str, endpoint: str) -> tuple[str, str]:
    """URL of the proxy for the endpoint and the variable that names it; both empty if the way is direct."""
    parts, proxies = urlsplit(endpoint), getproxies_environment()
    url = proxies.get(parts.scheme) or proxies.get("all") or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if not url or bypasses_proxy(parts.hostname or "", port, proxies.get("no", "")):
        return "", ""
    name = f"{parts.scheme}_proxy" if proxies.get(parts.scheme) else "all_proxy"
    variable = name if os.environ.get(name) else name.upper()
    url = url if "://" in url else f"http://{url}"
    try:
        proxy = urlsplit(url)
        port = proxy.port or 0
    except ValueError:
        port = -1
    if port < 0 or proxy.scheme not in ("http", "https") or not proxy.hostname or not re.fullmatch(r"[!-~]+", url):
        raise InputError(f"{uri}: {variable} must be http://[user:password@]host:port (or NO_PROXY name the store's host)")
    return url, variable


def _wrong_key(value: str) -> str:
    """What no key can have, since it goes into a header; empty if all is well."""
    if re.fullmatch(r"[!-~]*", value):
        return ""
    ends = value != value.strip() and re.fullmatch(r"[!-~]*", value.strip())
    return f"{'ends or begins with' if ends else 'contains'} a space, line break, control character or non-ASCII character"


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise InputError(f"{name} must be seconds >= 0, got {text!r}")
    return value
