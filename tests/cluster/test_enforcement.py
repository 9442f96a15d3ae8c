"""That tests of denials can fail: the probe that they use says so where no policy holds, and where none is enforced."""

from collections.abc import Iterator

import pytest

from tests.cluster import harness, node, probing

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(300)]
ENGINE, PORT = "network-policies", 8080


@pytest.fixture
def targets(restricted_namespace: str) -> list[probing.Address]:
    """A pod that answers, at its addresses of IPv4 and IPv6, beside one that asks; nothing is denied yet."""
    harness.apply([probing.answering("answers", {}, PORT), probing.pod("asks", {})], restricted_namespace)
    probing.wait(restricted_namespace, "answers", "asks")
    return [(address, PORT, "tcp") for address in probing.addresses_of(restricted_namespace, "answers")]


@pytest.fixture
def enforced(own_node: None) -> Iterator[None]:
    """The engine runs again when the test has ended, however it did."""
    try:
        yield
    finally:
        node.start_node()


def test_a_denial_is_seen_to_fail_without_a_policy_and_without_its_engine(
    restricted_namespace: str, targets: list[probing.Address], enforced: None
) -> None:
    """The same pod and addresses each time: open, denied, open while the engine stands, denied, open when the policy is gone."""

    def is_reached(wanted: bool) -> bool:
        """Each of them; where none is wanted, any."""
        reached = probing.reaches(restricted_namespace, "asks", dict.fromkeys(targets, wanted)).values()
        return all(reached) if wanted else any(reached)

    def denied() -> bool:
        return not is_reached(wanted=False)

    assert is_reached(wanted=True)
    harness.apply(probing.DENY, restricted_namespace)
    harness.wait_until("the policy to hold", denied, 60)
    node.stop(ENGINE)
    assert is_reached(wanted=True), "nobody enforces the policy, and still the probe says that it was denied"
    node.start_node()
    harness.wait_until("the policy to hold again", denied, 60)
    harness.kubectl("-n", restricted_namespace, "delete", "networkpolicy", probing.DENY["metadata"]["name"])
    assert is_reached(wanted=True)
