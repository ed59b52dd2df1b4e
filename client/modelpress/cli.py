"""The command `modelpress`.

Exit status: 0 done (or the job succeeded), 1 the job failed or the file is refused, 2 wrong usage or the service said
no, 3 the job was cancelled, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from modelpress import commands
from modelpress.outcomes import ApiError, DownloadError, ModelpressError, PrepareError, UploadRejected

OPERATORS = {
    "keys": "make, list, rotate and revoke API keys",
    "tenants": "what each tenant has, and how much it may have",
    "audit": "who did what: the audit trail",
}
"""Commands that the service's own program reads and does."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = _options(sys.argv[1:] if arguments is None else arguments)
    problems = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        status: int = options.run(options)
        return status
    except KeyboardInterrupt:
        problems.print("Stopped.")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except (PrepareError, UploadRejected, DownloadError) as error:
        problems.print(f"[red]error:[/red] {escape(str(error))}")
        return 1
    except (ApiError, ModelpressError, OSError, TimeoutError) as error:
        problems.print(f"[red]error:[/red] {escape(str(error))}")
        return 2


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    if arguments and arguments[0] in OPERATORS:
        return argparse.Namespace(run=commands.operate, words=arguments)
    return _parser().parse_args(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="modelpress", description="Make a trained network smaller and faster.")
    parser.add_argument("--url", help="the service (default: $MODELPRESS_URL, else http://127.0.0.1:8000)")
    parser.add_argument("--key", help="the API key (better: $MODELPRESS_KEY, which other users cannot see)")
    command = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        added = command.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
        added.set_defaults(run=getattr(commands, name))
        return added

    prepare = add("prepare", "export a network of yours to a .pt2 file, on this machine")
    prepare.add_argument("source", help="MODULE:FUNCTION or FILE.py:FUNCTION that makes it; or a Hugging Face folder")
    prepare.add_argument("-o", "--output", default="network.pt2")
    prepare.add_argument(
        "--example",
        action="append",
        metavar="SHAPE[:DTYPE]",
        help="shape of an input with its batch, as 1,3,224,224 or 1,128:int64; once for each input",
    )

    def add_reading(added: argparse.ArgumentParser) -> None:
        added.add_argument(
            "--input-shape",
            action="append",
            default=[],
            metavar="[NAME:]SIZES",
            help="sizes an ONNX file or a named network leaves open, the batch first, as 1,3,224,224; once for each",
        )
        added.add_argument(
            "--arch",
            metavar="NAME",
            help="the network that weights alone belong to: timm/resnet18; or transformers, for a folder (or its "
            "uncompressed zip) of config.json and safetensors",
        )
        added.add_argument(
            "--num-classes", type=int, help="of a timm network (default: what the file's classifier has)"
        )

    check = add("check", "read a network's or a data set's file as the service would, on this machine")
    check.add_argument("file")
    check.add_argument("--data", action="store_true", help="the file is a data set (default: by its ending)")
    add_reading(check)
    check.add_argument("--json", action="store_true", help="everything that was found, as JSON")

    upload = add(
        "upload", "send a network (.pt2, .onnx, .tar; weights with --arch) or a data set (.npz, .npy, image folders …)"
    )
    upload.add_argument("file")
    upload.add_argument("--data", action="store_true", help="the file is a data set (default: by its ending)")
    upload.add_argument("--name")
    add_reading(upload)

    compress = add("compress", "send a network and data, wait, and fetch the result")
    compress.add_argument("file")
    compress.add_argument("--data", metavar="FILE", help="labelled or unlabelled samples")
    add_reading(compress)
    compress.add_argument("--preset", default="balanced", help="see the service's /presets (default: %(default)s)")
    compress.add_argument("-o", "--output", metavar="DIR", help="where the result goes (default: the job's id)")

    submit = add("submit", "queue a job from a spec (JSON; - reads it from standard input)")
    submit.add_argument("spec")
    submit.add_argument("--dry-run", action="store_true", help="check it and show what would be done")
    submit.add_argument("--webhook", metavar="URL", help="told once the job has ended, by a signed POST")
    submit.add_argument("--wait", action="store_true", help="watch it until it has finished")

    jobs = add("jobs", "list jobs, newest first")
    jobs.add_argument("--status")
    jobs.add_argument("--limit", type=int, default=20)

    watch = add("watch", "watch a job until it has finished")
    watch.add_argument("job")

    log = add("log", "print the engine's log of a job")
    log.add_argument("job")

    cancel = add("cancel", "stop a job")
    cancel.add_argument("job")

    fetch = add("fetch", "fetch the files of a job, each checked against its SHA-256")
    fetch.add_argument("job")
    fetch.add_argument("-o", "--output", metavar="DIR", help="default: the job's id")

    for name, text in OPERATORS.items():  # `_options` passes them on before they come here
        added = command.add_parser(name, help=f"{text}, on the machine of the service and with its settings")
        added.set_defaults(run=commands.operate, words=[name])

    add("demo", "show everything on this machine: a service of its own, a small network, real data")
    return parser


if __name__ == "__main__":
    sys.exit(main())
