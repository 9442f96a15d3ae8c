"""Where a Kubeflow Pipelines server is, and the credentials with which we authenticate."""

import os
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path

from trainer.errors import InputError
from trainer.redaction import conceal, holds_credentials

DEFAULT_NAMESPACE = "kubeflow"
"""Where a Kubeflow for one user runs its steps."""
LOGIN = "set KFP_TOKEN (bearer), KFP_COOKIE (of a logged-in browser) or KF_PIPELINES_SA_TOKEN_PATH (a service account's token file)"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the server is, and how we authenticate to it.

    Attributes:
        host: URL of the API server, or of the UI that passes requests on.
        namespace: of the runs, or of the pipeline's owner, where the server has several; else empty.
        ca: file of the CA certificates to trust for TLS; empty: those of the system.
        ui: URL at which a person opens the UI; empty: not given.
        token: bearer token.
        token_file: file with a token that is renewed in place, such as a pod's projected one.
        cookie: `name=value`, as a logged-in browser sends it.
    """

    host: str
    namespace: str = ""
    ca: str = ""
    ui: str = ""
    token: str = field(default="", repr=False)
    token_file: str = ""
    cookie: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        """Check what can be checked without the server."""
        for name, address in (("KFP_ENDPOINT", self.host), ("KFP_UI", self.ui or self.host)):
            parts = urllib.parse.urlsplit(address)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise InputError(f"{name} must be the http(s):// address of Kubeflow Pipelines, got {address!r}")
            if holds_credentials(address):
                raise InputError(f"{name} must not contain credentials, since log lines and links repeat it, got {address}: {LOGIN}")
        for name, file in (("KFP_CA", self.ca), ("KF_PIPELINES_SA_TOKEN_PATH", self.token_file)):
            if file and not Path(file).is_file():
                raise InputError(f"{name} names {file}, which is not a file")
        conceal(self.token, self.cookie, self.cookie.partition("=")[2])

    @classmethod
    def from_environment(cls, *, host: str, namespace: str, ca: str, ui: str) -> "Endpoint":
        """What the command line says, and the credentials that only the environment may hold."""
        get = os.environ.get
        return cls(
            host=host.rstrip("/"),
            namespace=namespace,
            ca=ca,
            ui=ui.rstrip("/"),
            token=get("KFP_TOKEN", ""),
            token_file=get("KF_PIPELINES_SA_TOKEN_PATH", ""),
            cookie=get("KFP_COOKIE", ""),
        )
