"""A real single-node Kubernetes on a Debian machine as root, from published packages, in its own network namespace.

    python -m tests.cluster build | up | down | status

`programs.py` and `build.py` make what it runs (cached outside the tree), `node.py` starts and stops it, `addons.py` deploys what a
firstsight cluster has: the training operator. Nothing here is part of the product.
"""
