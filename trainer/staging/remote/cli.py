"""The commands `stage plan | fetch | seal | refetch | download | unpack`. Heavy modules are imported only when a command runs."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.staging.remote.http import HttpSettings

_PASSING = "timeout,connect,dns,cut short,http 429,http 500,http 502,http 503,http 504"


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add the commands to `stage`'s."""
    _add_plan(commands, common)
    _add_fetch(commands, common)
    _add_sources(commands, common)

    seal = commands.add_parser("seal", parents=[common], help="check that all slices are done and write the manifest")
    seal.add_argument("--plan", required=True, metavar="URI", help="folder that `stage plan` printed")
    help_text = "sealing is refused if more than this fraction of the rows is bad (default .01)"
    seal.add_argument("--max-reject-fraction", type=float, default=0.01, help=help_text)
    seal.add_argument("--result", default="", help="also write {uri, identity} as JSON to this URI")
    seal.set_defaults(run=_seal)

    refetch = commands.add_parser("refetch", parents=[common], help="plan a second attempt for rows that could not be fetched")
    refetch.add_argument("--plan", required=True, metavar="URI", help="folder of the data set, fetched or sealed")
    help_text = f"causes to retry, comma-separated, spelled as in the rejects (default: {_PASSING})"
    refetch.add_argument("--causes", default=_PASSING, help=help_text)
    refetch.set_defaults(run=_refetch)


def _add_plan(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    plan = commands.add_parser("plan", parents=[common], help="turn a list of remote pictures into slices of rows")
    plan.add_argument("kind", choices=["urls", "yfcc15m-openai", "yfcc15m-slip", "yfcc15m-declip", "yfcc15m-rwkv", "nights"])
    plan.add_argument("--root", required=True, help="store URI; the data set goes into datasets/ below it")
    plan.add_argument("--list", default="", metavar="URI", help="the list (CSV, TSV, JSON lines, parquet); for nights a folder or zip")
    plan.add_argument("--table", default="", metavar="URI", help="data.csv (nights): --list is then the folder of the chunk zips")
    plan.add_argument("--metadata", default="", metavar="URI", help="YFCC100M's metadata TSV (yfcc15m-openai and -slip)")
    plan.add_argument("--ids", default="", metavar="URI", help="flickr_unique_ids.npy (yfcc15m-slip)")
    plan.add_argument("--images", default="", metavar="URI", help="http(s), s3 or local base address of YFCC's pictures")
    plan.add_argument("--captions", default="as-is", help="title | description | both | slip | as-is (default)")
    plan.add_argument("--heldout-fraction", type=float, default=0.0, help="fraction of the rows that becomes the split `test` (default 0)")
    plan.add_argument(
        "--memory-mb", type=int, default=1024, help="memory limit of the join and the sort; beyond it they use disk (default 1024)"
    )
    plan.add_argument("--scratch", default="", help="local folder for files of the join and the sort (default: the system's)")
    plan.add_argument("--recipe", default="paper", help="shipped recipe, or the URI of a YAML file (default paper)")
    plan.add_argument("--contact", default="", help="e-mail address or URL sent to servers as contact")
    plan.add_argument("--result", default="", help="also write {uri, slices, rows} as JSON to this URI")
    plan.set_defaults(run=_plan)


def _add_fetch(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    fetch = commands.add_parser("fetch", parents=[common], help="fetch pictures and write the shards of some or all slices")
    fetch.add_argument("--plan", required=True, metavar="URI", help="folder that `stage plan` printed")
    fetch.add_argument(
        "--slice",
        default="0/1",
        metavar="I/N",
        help="every N-th slice, starting with the I-th (default 0/1: all); `index` for I takes the pod's own index",
    )
    fetch.add_argument("--images", default="", metavar="URI", help="a different base URI for the pictures, such as a mirror")
    fetch.add_argument("--contact", default="", help="e-mail address or URL sent to servers as contact")
    fetch.add_argument("--concurrency", type=int, default=32, help="concurrent requests (default 32)")
    fetch.add_argument("--per-host", type=int, default=16, help="concurrent requests per host (default 16)")
    fetch.add_argument("--tries", type=int, default=4, help="attempts per URL if the failure may be temporary (default 4)")
    fetch.add_argument("--timeout", type=float, default=20.0, help="seconds without receiving a byte before a request fails (default 20)")
    fetch.add_argument("--backoff", type=float, default=1.0, help="initial delay in seconds after a failure, doubled each time (default 1)")
    fetch.add_argument("--processes", type=int, default=0, help="processes that decode and encode (default 0: threads in this process)")
    fetch.add_argument("--buffer-mb", type=int, default=256, help="MB of fetched data waiting to be processed (default 256)")
    fetch.add_argument("--max-image-mb", type=int, default=32, help="larger responses are rejected (default 32)")
    fetch.set_defaults(run=_fetch)


def _add_sources(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    help_text = "download NIGHTS, resuming an interrupted download; run `stage triplets` next"
    download = commands.add_parser("download", parents=[common], help=help_text)
    download.add_argument("--source", required=True, metavar="URI", help="nights.zip, or the folder of its chunks")
    download.add_argument("--table", default="", metavar="URI", help="data.csv, which the chunks do not contain")
    download.add_argument("--folder", required=True, help="local folder, which will have the NIGHTS layout")
    download.add_argument("--keep-zips", action="store_true", help="do not delete a zip once it is unpacked")
    download.add_argument("--contact", default="", help="e-mail address or URL sent to servers as contact")
    download.set_defaults(run=_download)

    unpack = commands.add_parser("unpack", parents=[common], help="turn parquet files with pictures into tars; run `stage pairs` next")
    unpack.add_argument("--source", required=True, metavar="URI", help="folder of .parquet files")
    unpack.add_argument("--folder", required=True, metavar="URI", help="where the tars go")
    unpack.set_defaults(run=_unpack)


def _plan(options: argparse.Namespace) -> dict[str, str | int]:
    from trainer.staging.remote.rows import read_plan
    from trainer.storage import write_json

    uri = _plan_source(options)
    plan = read_plan(uri)
    result: dict[str, str | int] = {"uri": uri, "slices": len(plan.splits), "rows": plan.rows_read}
    if options.result:
        write_json(options.result, result)
    return result


def _plan_source(options: argparse.Namespace) -> str:
    from trainer.errors import InputError
    from trainer.staging.remote.captions import POLICIES
    from trainer.staging.remote.plan import PlanOptions, plan_pairs
    from trainer.staging.remote.sources import nights, url_list, yfcc15m
    from trainer.storage.recipes import read_recipe

    recipe = read_recipe(options.recipe, options.set)
    if not options.list:
        raise InputError("--list must name the list (for nights: the folder or zip)")
    if options.kind == "nights":
        return nights.plan(options.root, options.list, options.table, recipe, _http_settings(options))
    if options.table:
        raise InputError("--table is only for nights (its data.csv)")
    if options.captions not in POLICIES:
        raise InputError(f"--captions must be one of {', '.join(POLICIES)}, got {options.captions!r}")

    def make(database: Any, inputs: Any) -> Any:
        if options.kind == "urls":
            return url_list.table(database, inputs, list_uri=options.list, captions=options.captions)
        uris = {"list_uri": options.list, "metadata_uri": options.metadata, "ids_uri": options.ids}
        return yfcc15m.table(database, inputs, which=options.kind.removeprefix("yfcc15m-"), captions=options.captions, **uris)

    planned = PlanOptions(
        images=options.images, captions=options.captions, heldout_fraction=options.heldout_fraction,
        memory_mb=options.memory_mb, scratch=options.scratch, contact=options.contact,
    )  # fmt: skip
    return plan_pairs(options.root, make, planned, recipe.staging)


def _fetch(options: argparse.Namespace) -> dict[str, int]:
    from trainer.staging.remote.fetch import FetchSettings, fetch, parse_part

    part, parts = parse_part(options.slice)
    settings = FetchSettings(
        http=_http_settings(options), images=options.images, concurrency=options.concurrency, processes=options.processes,
        buffer_mb=options.buffer_mb,
    )  # fmt: skip
    return fetch(options.plan, part, parts, settings)


def _seal(options: argparse.Namespace) -> dict[str, str]:
    from trainer.staging.remote.seal import seal_remote
    from trainer.storage import write_json

    uri, identity = seal_remote(options.plan, options.max_reject_fraction)
    result = {"uri": uri, "identity": identity}
    if options.result:
        write_json(options.result, result)
    return result


def _download(options: argparse.Namespace) -> dict[str, str]:
    from pathlib import Path

    from trainer.staging.remote.download import fetch_nights

    folder = fetch_nights(options.source, options.table, Path(options.folder), contact=options.contact, keep=options.keep_zips)
    return {"uri": str(folder)}


def _unpack(options: argparse.Namespace) -> dict[str, str | int]:
    from trainer.staging.remote.unpack import unpack_parquet

    return {"rows": unpack_parquet(options.source, options.folder), "uri": options.folder}


def _refetch(options: argparse.Namespace) -> dict[str, str]:
    from trainer.staging.remote.refetch import plan_refetch

    return {"uri": plan_refetch(options.plan, [cause.strip() for cause in options.causes.split(",") if cause.strip()])}


def _http_settings(options: argparse.Namespace) -> "HttpSettings":
    from trainer.staging.remote.http import HttpSettings

    if options.command == "stage" and options.what == "plan":
        return HttpSettings(contact=options.contact)
    return HttpSettings(
        contact=options.contact, per_host=options.per_host, tries=options.tries, read_seconds=options.timeout,
        max_bytes=options.max_image_mb << 20, backoff_seconds=options.backoff,
    )  # fmt: skip
