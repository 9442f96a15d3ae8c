"""All targets by name, in an order in which a hunt goes through them."""

from tests.fuzz import people, servers, written
from tests.fuzz.registry import TARGETS, Target

__all__ = ["TARGETS", "Target", "people", "servers", "written"]
