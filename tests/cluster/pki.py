"""A certificate authority, server certificates, and one kubeconfig per identity."""

import datetime
import ipaddress
import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.cluster import programs, settings

IDENTITIES = {  # kubeconfig -> (common name, organisation)
    "admin": ("admin", "system:masters"),
    "kubelet": (f"system:node:{settings.NODE}", "system:nodes"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "coredns": ("system:coredns", ""),
}


def make_pki(folder: Path) -> None:
    """Write ca, server and client certificates, the service accounts' key, and a kubeconfig per identity beside `folder`."""
    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _sign("firstsight-e2e-ca", "", ca_key.public_key(), None, ca_key, is_ca=True)
    _write(folder, "ca", ca_key, ca)
    names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    addresses = [settings.NODE_IP, settings.API_SERVICE_IP, "127.0.0.1"]
    servers = {
        "api": ("kube-apiserver", "", names, addresses),
        "kubelet-server": (settings.NODE, "", [settings.NODE], [settings.NODE_IP]),
        "apiserver-kubelet-client": ("apiserver-kubelet-client", "system:masters", [], []),
    }
    clients: dict[str, tuple[str, str, list[str], list[str]]] = {
        name: (common, organisation, [], []) for name, (common, organisation) in IDENTITIES.items()
    }
    for name, (common, organisation, dns, ips) in {**servers, **clients}.items():
        key = ec.generate_private_key(ec.SECP256R1())
        _write(folder, name, key, _sign(common, organisation, key.public_key(), ca, ca_key, dns=dns, ips=ips))
    accounts = ec.generate_private_key(ec.SECP256R1())
    _write(folder, "sa", accounts, None)
    (folder / "sa.pub").write_bytes(
        accounts.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    for name in IDENTITIES:
        _kubeconfig(folder, name)
    (folder / "done").touch()


def _sign(
    common: str, organisation: str, public: ec.EllipticCurvePublicKey, ca: x509.Certificate | None, ca_key: ec.EllipticCurvePrivateKey,
    *, is_ca: bool = False, dns: list[str] | None = None, ips: list[str] | None = None,
) -> x509.Certificate:  # fmt: skip
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common)]
    if organisation:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation))
    subject = x509.Name(attributes)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(ca.subject if ca else subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    )
    if not is_ca:
        usage = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in dns or []]
    names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips or []]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(ca_key, hashes.SHA256())


def _write(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate | None) -> None:
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    )
    (folder / f"{name}.key").chmod(0o600)
    if certificate:
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _kubeconfig(folder: Path, name: str) -> None:
    config = [str(programs.program("kubectl")), "config", "--kubeconfig", str(folder.parent / f"{name}.conf")]
    server = f"--server=https://{settings.NODE_IP}:6443"
    for arguments in (
        ["set-cluster", "cluster", server, f"--certificate-authority={folder}/ca.crt", "--embed-certs"],
        ["set-credentials", "user", f"--client-certificate={folder}/{name}.crt", f"--client-key={folder}/{name}.key", "--embed-certs"],
        ["set-context", "cluster", "--cluster=cluster", "--user=user"],
        ["use-context", "cluster"],
    ):
        subprocess.run([*config, *arguments], check=True, stdout=subprocess.DEVNULL, env=settings.environment())
