import pytest

from pipelines.cluster.merge import strategic_merge
from trainer.errors import InputError

POD = {
    "spec": {
        "containers": [{"name": "pytorch", "image": "a", "args": ["x"], "env": [{"name": "A", "value": "1"}]}],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
        "tolerations": [{"key": "old"}],
        "schedulerName": "default",
    }
}


def test_entries_with_a_name_merge_by_it():
    """The container keeps what the patch does not name, and its variables merge in turn."""
    patch = {"spec": {"containers": [{"name": "pytorch", "image": "b", "env": [{"name": "B", "value": "2"}]}]}}

    (container,) = strategic_merge(POD, patch)["spec"]["containers"]

    assert container == {"name": "pytorch", "image": "b", "args": ["x"], "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}


def test_a_new_entry_is_appended():
    """A sidecar, or a volume for shards."""
    volume = {"name": "shards", "persistentVolumeClaim": {"claimName": "shards"}}

    merged = strategic_merge(POD, {"spec": {"volumes": [volume]}})

    assert merged["spec"]["volumes"] == [{"name": "scratch", "emptyDir": {}}, volume]


def test_lists_without_names_are_replaced():
    """As Kubernetes replaces tolerations and arguments."""
    merged = strategic_merge(POD, {"spec": {"tolerations": [{"key": "new"}]}})

    assert merged["spec"]["tolerations"] == [{"key": "new"}]


def test_null_removes_a_key_and_delete_an_entry():
    """The two ways to take something away."""
    merged = strategic_merge(POD, {"spec": {"schedulerName": None, "volumes": [{"name": "scratch", "$patch": "delete"}]}})

    assert "schedulerName" not in merged["spec"]
    assert merged["spec"]["volumes"] == []


def test_null_in_a_mapping_that_replaces_a_list_removes_its_key_too():
    assert strategic_merge({"args": [1]}, {"args": {"a": None, "b": 1}}) == {"args": {"b": 1}}


def test_the_base_is_left_as_it_was():
    """One template serves every job."""
    strategic_merge(POD, {"spec": {"containers": [{"name": "pytorch", "image": "b"}], "schedulerName": None}})

    assert POD["spec"]["containers"][0]["image"] == "a"
    assert POD["spec"]["schedulerName"] == "default"


@pytest.mark.parametrize("volumes", [3, [1], [{"emptyDir": {}}], {"a": 1}])
def test_a_list_without_what_it_is_merged_by_is_refused(volumes: object):
    with pytest.raises(InputError, match=r"jobs\.pod_template: volumes must be a list of mappings, each with name"):
        strategic_merge({"volumes": [{"name": "shm"}]}, {"volumes": volumes})
