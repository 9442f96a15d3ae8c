"""`stage seal`: check that all slices exist, every row is accounted for, and few enough were bad; then write the manifest."""

from collections import Counter

from trainer.errors import InputError, RunError
from trainer.staging import heldout
from trainer.staging.plans import Plan
from trainer.staging.remote.rows import read_plan
from trainer.staging.sealed import find_intact
from trainer.staging.shards import mse_accuracy
from trainer.staging.writer import Account, check_rejects, gather, seal
from trainer.storage import join


def seal_remote(folder: str, max_reject_fraction: float) -> tuple[str, str]:
    """Seal the data set in `folder`; returns the folder and the data set's identity.

    Intact sealed files are left as they are. Damaged ones are restored from remaining attempts, from the test shards (evaluation
    sets) or from the slices' records (the manifest); slices that cannot be restored are named, for `stage fetch` to make.

    Args:
        folder: the folder that `stage plan` printed.
        max_reject_fraction: refuse a larger fraction of bad rows.

    Raises:
        InputError: too many rows are bad, or none is usable.
        RunError: slices are missing or damaged, rows are not accounted for, or the slices are not the sealed ones.
    """
    sealed = find_intact(folder)
    if sealed is not None:
        return folder, sealed.identity
    plan = read_plan(folder)
    account = gather(folder, plan)
    _check_account(folder, plan, account)
    check_rejects(folder, plan.source["uri"], account, max_reject_fraction)
    sizes = Counter[str]()
    for shard in account.shards:
        sizes[shard.split] += shard.num_samples
    facts: dict[str, object] = {"splits": dict(sizes)}
    evaluation = []
    if plan.kind == "triplets":
        facts["pixel_mse_accuracy"] = mse_accuracy(folder, account.shards)
    elif sizes["test"]:
        root, name = folder.rpartition("/datasets/")[0], plan.name.removesuffix("-pairs")
        evaluation = heldout.stage(
            root=root,
            base_name=name,
            pairs_folder=folder,
            pairs=plan,
            account=account,
            classes=plan.source["classes"],
            templates=heldout.TEMPLATES,
            first_caption_only=False,
        )
    return folder, seal(folder, plan, account, evaluation=evaluation, facts=facts).identity


def _check_account(folder: str, plan: Plan, account: Account) -> None:
    """Check that every row read was written or lost, and that some were written."""
    lost = sum(account.lost.values())
    if account.written + lost != plan.rows_read:
        raise RunError(f"{folder}: {plan.rows_read} rows were read, but {account.written} written and {lost} lost: slices of another plan?")
    if not account.written:
        causes = ", ".join(f"{count} x {cause} (such as {account.examples[cause]})" for cause, count in sorted(account.lost.items()))
        raise InputError(
            f"{plan.source['uri']}: none of the {plan.rows_read} rows became a sample: {causes}; see {join(folder, 'rejects')}"
        )
