import subprocess, tempfile, pathlib, time
from tests.images import local
local.install_buildah()
t=time.time()
with tempfile.TemporaryDirectory() as d:
    pip=pathlib.Path(d)/"pip.conf"; pip.write_text(local._pip_configuration())
    C=local.CERTIFICATES
    subprocess.run(["buildah",*local.OPTIONS,"build","--isolation","chroot","--layers","--volume",f"{C}:{C}:ro","--build-arg",f"BASE={local.BASE}","--build-arg","VERSION=0.1.0","--build-arg","REVISION=x","--secret",f"id=pip,src={pip}","--tag","localhost/full:1","--file","images/trainer/Dockerfile","."],check=True)
print("built in", time.time()-t)
