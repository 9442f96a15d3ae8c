"""Start and stop the node: a network namespace, containerd, etcd, the control plane, kubelet, kube-proxy, CoreDNS."""

import json
import os
import shutil
import signal
import string
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.cluster import programs, settings
from tests.cluster.pki import make_pki

STATE, NETNS = settings.STATE, Path("/run/netns") / settings.NAMESPACE
_started: list["subprocess.Popen[bytes]"] = []  # one that nobody holds warns that it still runs
INSIDE = ["nsenter", f"--net={NETNS}"]  # not `ip netns exec`: that one remounts /sys and hides the cgroups


def up() -> None:
    """Start whatever is not running; returns when the node is Ready. Safe to repeat."""
    started = time.monotonic()
    for folder in ("logs", "run", "cni", "podlogs", "etcd", "containerd"):
        (STATE / folder).mkdir(parents=True, exist_ok=True)
    STATE.chmod(0o755)
    make_pki(STATE / "pki")
    _make_network()
    _make_cgroups()
    _write_templates()
    start_container_runtime()
    start_control_plane()
    start_node()
    wait_for("the node to be Ready", lambda: _kubectl("wait", "--for=condition=Ready", f"node/{settings.NODE}", "--timeout=1s"))
    wait_for("the default service account", lambda: _kubectl("get", "serviceaccount", "default"))
    print(f"cluster: up after {time.monotonic() - started:.0f} s; export KUBECONFIG={settings.KUBECONFIG}", flush=True)


def start_container_runtime() -> None:
    """containerd, with the cluster's images in it."""
    start("containerd", "containerd", "--config", str(STATE / "containerd.toml"))
    wait_for("containerd", lambda: _ctr("version"))
    import_images()


def import_images() -> None:
    """Import the archives of settings.IMAGES that containerd does not have yet."""
    for archive in sorted(settings.IMAGES.glob("*.tar")):
        stamp = STATE / "run" / f"{archive.name}.{archive.stat().st_mtime_ns}"
        if not stamp.exists():
            subprocess.run(_ctr_command("images", "import", str(archive)), check=True, stdout=subprocess.DEVNULL)
            stamp.touch()


def start_control_plane() -> None:
    """etcd, the API server, the controller manager, the scheduler."""
    pki = STATE / "pki"
    start(
        "etcd", "etcd", "--data-dir", str(STATE / "etcd"), "--unsafe-no-fsync",
        "--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
        "--listen-peer-urls", "http://127.0.0.1:2380",
    )  # fmt: skip
    start_apiserver()
    start(
        "controller-manager", "kube-controller-manager", f"--kubeconfig={STATE}/controller-manager.conf", "--leader-elect=false",
        f"--service-account-private-key-file={pki}/sa.key", f"--root-ca-file={pki}/ca.crt", "--use-service-account-credentials",
        f"--cluster-signing-cert-file={pki}/ca.crt", f"--cluster-signing-key-file={pki}/ca.key", "--bind-address=127.0.0.1",
        "--pvclaimbinder-sync-period=1s", "--enable-hostpath-provisioner",
    )  # fmt: skip
    start("scheduler", "kube-scheduler", f"--kubeconfig={STATE}/scheduler.conf", "--leader-elect=false", "--bind-address=127.0.0.1")
    wait_for("bootstrap objects", lambda: _kubectl("apply", "-f", str(settings.HERE / "templates/bootstrap.yaml")))


def start_apiserver() -> None:
    """The API server, ready. WatchList is off: Debian's etcd 3.4 lacks RequestWatchProgress and some watches would stall."""
    pki = STATE / "pki"
    start(
        "apiserver", "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", "--secure-port=6443",
        f"--bind-address={settings.NODE_IP}", f"--advertise-address={settings.NODE_IP}",
        f"--service-cluster-ip-range={settings.SERVICE_CIDR}", f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/api.crt", f"--tls-private-key-file={pki}/api.key",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet-client.key", f"--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP", "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/sa.pub", f"--service-account-signing-key-file={pki}/sa.key",
        "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
        "--feature-gates=WatchList=false",
    )  # fmt: skip
    wait_for("the API server", lambda: _kubectl("get", "--raw", "/readyz"))


def start_node() -> None:
    """kubelet, kube-proxy, CoreDNS, and what judges connections by the network policies."""
    start_kubelet()
    start(
        "proxy", "kube-proxy", f"--kubeconfig={STATE}/proxy.conf", f"--hostname-override={settings.NODE}", "--proxy-mode=nftables",
        f"--cluster-cidr={settings.POD_CIDR}", "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    )  # fmt: skip
    start("coredns", "coredns", "-conf", str(STATE / "Corefile"))
    start(
        "network-policies", "kube-network-policies", f"--kubeconfig={settings.KUBECONFIG}", f"--hostname-override={settings.NODE}",
        f"--nfqueue-id={settings.POLICY_QUEUE}",
    )  # fmt: skip


def start_kubelet() -> None:
    """The kubelet, answering; told of containerd's socket, without which there are no container metrics."""
    start(
        "kubelet", "kubelet", f"--config={STATE}/kubelet.yaml", f"--kubeconfig={STATE}/kubelet.conf",
        f"--hostname-override={settings.NODE}", f"--node-ip={settings.NODE_IP}", f"--root-dir={STATE}/kubelet",
        f"--containerd={settings.CONTAINERD_SOCKET}",
    )  # fmt: skip
    wait_for("the kubelet", lambda: _kubectl("get", "--raw", f"/api/v1/nodes/{settings.NODE}/proxy/healthz"))


def start(name: str, *command: str) -> None:
    """Run `command` in the node's network, its pid recorded, unless it runs already."""
    if alive(name):
        return
    with (STATE / "logs" / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [*INSIDE, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env=settings.environment(),
        )  # fmt: skip
    _started.append(process)
    (STATE / "run" / f"{name}.pid").write_text(str(process.pid))


def alive(name: str) -> int:
    """The recorded pid if it runs in our network namespace, else 0: a stale record must never hit a reused pid."""
    try:
        pid = int((STATE / "run" / f"{name}.pid").read_text())
        if os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(NETNS).st_ino and _state(pid) != "Z":
            return pid
    except (OSError, ValueError):
        return 0
    return 0


def stop(name: str, how: signal.Signals = signal.SIGTERM) -> None:
    """End the process of this name and wait until it is gone; SIGKILL after 5 s."""
    pid = alive(name)
    if pid:
        os.kill(pid, how)
        deadline = time.monotonic() + 5
        while alive(name) and time.monotonic() < deadline:
            time.sleep(0.1)
        if alive(name):
            os.kill(pid, signal.SIGKILL)
    (STATE / "run" / f"{name}.pid").unlink(missing_ok=True)


def down() -> None:
    """Stop everything by recorded pid and leave nothing: mounts, cgroups, namespaces, files."""
    if not STATE.exists():
        return
    names = [path.stem for path in (STATE / "run").glob("*.pid")]
    for name in [name for name in names if name not in ("apiserver", "etcd", "containerd")]:
        stop(name)
    networks = _remove_containers() if alive("containerd") else []
    for name in ("apiserver", "etcd", "containerd"):
        stop(name)
    _kill_shims()
    for network in networks:
        subprocess.run(["ip", "netns", "del", Path(network).name], capture_output=True)
    _unmount_all()
    for cgroup in Path("/sys/fs/cgroup").glob(f"*/{settings.NAMESPACE}"):
        for folder in sorted((path for path in cgroup.rglob("*") if path.is_dir()), key=lambda path: len(path.parts), reverse=True):
            folder.rmdir()
        cgroup.rmdir()
    subprocess.run(["ip", "link", "del", f"{settings.NAMESPACE}h"], capture_output=True)
    if NETNS.exists():
        subprocess.run(["ip", "netns", "del", settings.NAMESPACE], check=True)
    shutil.rmtree(settings.PROVISIONED, ignore_errors=True)
    shutil.rmtree(STATE)


def status() -> dict[str, bool]:
    """Which of the node's processes run."""
    return {path.stem: bool(alive(path.stem)) for path in sorted((STATE / "run").glob("*.pid"))} if STATE.exists() else {}


def is_up() -> bool:
    """Whether there is a node, and all of its processes run."""
    found = status()
    return bool(found) and all(found.values())


def wait_for(what: str, ready: Callable[[], bool], seconds: float = 90) -> None:
    """Poll until ready; past `seconds` a RuntimeError that names what was awaited and where the logs are."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds:.0f} s for {what}; see {STATE / 'logs'}")
        time.sleep(0.2)


def _make_network() -> None:
    """The node's namespace and its link to the machine.

    New connections to and from pods are queued to the engine of the network policies; without it they pass. Pods reach each
    other over a bridge, whose packets meet the same rules (bridge-nf-call-iptables); the node's own servers they reach by INPUT.
    The legacy tool: the kernel may lack the queue of nftables.
    """
    if NETNS.exists():
        return
    judged = f"-m conntrack --ctstate NEW -j NFQUEUE --queue-num {settings.POLICY_QUEUE} --queue-bypass"
    name, outer, inner = settings.NAMESPACE, f"{settings.NAMESPACE}h", f"{settings.NAMESPACE}n"
    for line in (
        f"ip netns add {name}",
        f"ip link add {outer} type veth peer name {inner}",
        f"ip link set {inner} netns {name}",
        f"ip addr add {settings.HOST_IP}/24 dev {outer}",
        f"ip link set {outer} up",
        f"ip -n {name} link set lo up",
        f"ip -n {name} addr add {settings.DNS_IP}/32 dev lo",
        f"ip -n {name} addr add {settings.NODE_IP}/24 dev {inner}",
        f"ip -n {name} link set {inner} up",
        f"ip -n {name} route add default via {settings.HOST_IP}",  # ClusterIPs need a route; the host does not forward
        f"ip route add {settings.POD_CIDR} via {settings.NODE_IP}",
        f"ip route add {settings.SERVICE_CIDR} via {settings.NODE_IP}",
        f"nsenter --net={NETNS} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        f"nsenter --net={NETNS} sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1",
        f"nsenter --net={NETNS} iptables-legacy -w -A FORWARD {judged}",
        f"nsenter --net={NETNS} iptables-legacy -w -A INPUT -s {settings.POD_CIDR} {judged}",
        f"nsenter --net={NETNS} ip6tables-legacy -w -A FORWARD {judged}",
        f"nsenter --net={NETNS} ip6tables-legacy -w -A INPUT -s {settings.POD_CIDR6} {judged}",
    ):
        subprocess.run(line.split(), check=True)


def _make_cgroups() -> None:
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():  # cgroup v2: the kubelet makes its own
        return
    for controller in Path("/sys/fs/cgroup").iterdir():
        if controller.is_dir():
            (controller / settings.NAMESPACE).mkdir(exist_ok=True)
    shares = Path(f"/sys/fs/cgroup/cpu/{settings.NAMESPACE}/cpu.shares")
    if shares.exists():
        shares.write_text("8192")  # all pods together would else weigh as much as one process outside
    cpuset = Path("/sys/fs/cgroup/cpuset")
    for key in ("cpuset.cpus", "cpuset.mems"):  # an empty cpuset takes no process
        if (cpuset / key).exists():
            (cpuset / settings.NAMESPACE / key).write_text((cpuset / key).read_text())


def _write_templates() -> None:
    values = {
        "STATE": str(STATE), "SOCKET": str(settings.CONTAINERD_SOCKET), "NODE_IP": settings.NODE_IP, "DNS_IP": settings.DNS_IP,
        "POD_CIDR": settings.POD_CIDR, "POD_CIDR6": settings.POD_CIDR6, "NAMESPACE": settings.NAMESPACE,
    }  # fmt: skip
    targets = {"cni.conflist": "cni/10.conflist"}
    for name in ("containerd.toml", "kubelet.yaml", "Corefile", "cni.conflist"):
        template = string.Template((settings.HERE / "templates" / name).read_text())
        (STATE / targets.get(name, name)).write_text(template.substitute(values))
    (STATE / "resolv.conf").touch()


def _remove_containers() -> list[str]:
    listing = subprocess.run(_ctr_command("containers", "list", "-q"), capture_output=True, text=True).stdout.split()
    networks = []
    for container in listing:
        info = json.loads(subprocess.run(_ctr_command("containers", "info", container), capture_output=True, text=True).stdout or "{}")
        for space in info.get("Spec", {}).get("linux", {}).get("namespaces", []):
            if space["type"] == "network" and "/cni-" in space.get("path", ""):
                networks.append(space["path"])
        subprocess.run(_ctr_command("tasks", "kill", "-s", "KILL", container), capture_output=True)
    time.sleep(1)
    for container in listing:
        subprocess.run(_ctr_command("tasks", "rm", "-f", container), capture_output=True)
        subprocess.run(_ctr_command("containers", "rm", container), capture_output=True)
    return networks


def _kill_shims() -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it ended meanwhile
            continue
        if b"containerd-shim" in arguments[0] and str(settings.CONTAINERD_SOCKET).encode() in arguments:
            os.kill(int(process.name), signal.SIGKILL)


def _unmount_all() -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{STATE}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], capture_output=True)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def _kubectl(*arguments: str) -> bool:
    return subprocess.run([programs.program("kubectl"), *arguments], capture_output=True, env=settings.environment()).returncode == 0


def _ctr_command(*arguments: str) -> list[str]:
    return ["ctr", "-a", str(settings.CONTAINERD_SOCKET), "-n", "k8s.io", *arguments]


def _ctr(*arguments: str) -> bool:
    return subprocess.run(_ctr_command(*arguments), capture_output=True).returncode == 0
