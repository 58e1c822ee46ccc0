"""The program `nokv`: finds the command, loads only its module, and turns errors into exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted, 141 the reader of the
output went away. `nokv serve` also ends with 70 where a node could not vouch for its state.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from nokv._guard import refuse_optimised

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 128 + signal.SIGINT
EXIT_BROKEN_PIPE: Final = 128 + signal.SIGPIPE

TIMEOUT_S: Final = 30.0

USAGE_CODES: Final = frozenset({100, 101, 102})
"""Codes of ConfigError, DataDirectoryError and UsageError: trying again cannot help."""


class Group(NamedTuple):
    """Commands that one module holds: for each its name and what `nokv --help` says of it."""

    title: str
    module: str
    commands: tuple[tuple[str, str], ...]


GROUPS: Final = (
    Group(
        "files",
        "nokv.cli.files",
        (
            ("put", "copy local files, directories (-r) or standard input into the namespace"),
            ("get", "copy files or directories (-r) out, verified"),
            ("cat", "write files to standard output, verified"),
        ),
    ),
    Group(
        "publish",
        "nokv.cli.publish",
        (("publish", "make a local directory visible as one atomic change"),),
    ),
    Group(
        "listings",
        "nokv.cli.listing",
        (
            ("ls", "list directories"),
            ("stat", "show everything that is recorded of a path"),
            ("tree", "show a directory with all that is below it"),
            ("du", "count entries and bytes below directories, exactly"),
        ),
    ),
    Group(
        "changes",
        "nokv.cli.watch",
        (("watch", "tell the changes of a directory as they happen"),),
    ),
    Group(
        "past and copies",
        "nokv.cli.snapshot",
        (("snapshot", "keep a directory readable as it is now, list, renew and delete such"),),
    ),
    Group(
        "past and copies",
        "nokv.cli.views",
        (
            ("clone", "copy a directory of any size at once, writable"),
            ("workspace", "make, list and delete directories that are views of their own"),
            ("rollback", "make a directory again what a snapshot of it shows"),
        ),
    ),
    Group(
        "names",
        "nokv.cli.names",
        (
            ("mkdir", "make directories"),
            ("rm", "remove files, or directories with all that is below them (-r)"),
            ("mv", "rename or move, between views too"),
            ("ln", "make a further name of a file, or a symbolic link (-s)"),
            ("chmod", "set permission bits"),
        ),
    ),
    Group(
        "past states",
        "nokv.cli.diff",
        (
            ("diff", "show what changed between two states of a directory"),
            ("history", "list the generations of a file that can still be read"),
            ("revert", "make a past generation of a file the present one again"),
        ),
    ),
    Group(
        "names",
        "nokv.cli.copy",
        (("cp", "copy files inside the namespace; no bytes are copied"),),
    ),
    Group(
        "names",
        "nokv.cli.trash",
        (("trash", "list, restore and empty what `rm --trash` removed"),),
    ),
    Group(
        "limits",
        "nokv.cli.quota",
        (("quota", "limit how much directories may hold, show and clear limits"),),
    ),
    Group(
        "a cluster on this machine",
        "nokv.cli.local",
        (
            ("up", "start a local cluster of three nodes"),
            ("down", "stop it"),
        ),
    ),
    Group(
        "health",
        "nokv.cli.status",
        (("status", "show the nodes of a cluster, who leads and who lags"),),
    ),
    Group(
        "health",
        "nokv.cli.doctor",
        (("doctor", "find what is wrong with this machine, a configuration or a cluster"),),
    ),
    Group(
        "members",
        "nokv.cli.member",
        (("member", "list the members of a cluster, add, promote or remove one, hand over"),),
    ),
    Group(
        "one node",
        "nokv.cli.node",
        (
            ("init", "make a cluster's first data directory, or join it with another"),
            ("serve", "run a node in the foreground"),
            ("config", "check a node's configuration"),
        ),
    ),
    Group(
        "one node",
        "nokv.cli.raft_log",
        (("raft-log", "show, verify or repair a stopped node's replicated log"),),
    ),
    Group(
        "security",
        "nokv.cli.certs",
        (("certs", "make a certificate authority, and certificates of nodes and clients"),),
    ),
    Group(
        "a cluster",
        "nokv.cli.backup",
        (("backup", "make, list, verify, delete and restore backups of a volume"),),
    ),
    Group(
        "a cluster",
        "nokv.cli.volume",
        (("volume", "show the volume, or adopt a restored one"),),
    ),
    Group(
        "a cluster",
        "nokv.cli.gc",
        (
            ("gc", "show what waits for the collector and why, and run it"),
            ("fsck", "check a whole volume: its metadata, and its bodies in the bucket"),
        ),
    ),
    Group("for developers", "nokv.cli.debug", (("debug", "show records and logs without a node"),)),
)


class _Choice(NamedTuple):
    module: str
    summary: str


COMMANDS: Final = {
    name: _Choice(group.module, summary) for group in GROUPS for name, summary in group.commands
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    refuse_optimised()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        # What is opened next would get its number, and whatever is printed with it.
        sys.stderr.write("nokv: standard output is closed\n")
        return EXIT_USAGE
    for stream in (sys.stdout, sys.stderr):
        # A name that is not UTF-8 leaves as the bytes that it is.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="surrogateescape")
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError as error:
        if type(error) is not BrokenPipeError:
            raise
        # Nobody reads the rest; the interpreter must not try to write it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return code


def _run(arguments: Sequence[str]) -> int:
    parser = _parser(_chosen(arguments))
    try:
        options = parser.parse_args(arguments)
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else EXIT_USAGE
    if getattr(options, "run", None) is None:
        parser.print_help(sys.stderr)
        return EXIT_USAGE
    from nokv.errors import NokvError

    try:
        code: int = options.run(options)
    except NokvError as error:
        complain(error)
        return EXIT_USAGE if error.code in USAGE_CODES else EXIT_FAILED
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except OSError as error:
        complain(error)
        return EXIT_FAILED
    return code


def complain(error: OSError, *, about: str = "") -> None:
    """Write an error as one line, and its hint as a second one, to standard error."""
    from nokv.errors import NokvError

    if isinstance(error, NokvError):
        text, hint = error.message, error.hint
    else:
        text = error.strerror or str(error)
        hint = ""
        if error.filename is not None:
            text = f"{os.fsdecode(error.filename)}: {text[0].lower()}{text[1:]}"
    text, about = one_line(text), one_line(about)
    if about and about not in text:
        text = f"{about}: {text}"
    sys.stdout.flush()
    sys.stderr.write(f"nokv: {text}\n")
    if hint:
        sys.stderr.write(f"hint: {one_line(hint)}\n")


def one_line(text: str) -> str:
    """Return text that can't break the line or the terminal that it is written to."""
    from nokv.cli.output import shown

    return shown(text)


def _chosen(arguments: Sequence[str]) -> str:
    """Return the command that the arguments name, or empty."""
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in {"--cluster", "--timeout"}:
            skip = True
        elif not argument.startswith("-"):
            return argument if argument in COMMANDS else ""
    return ""


def _parser(chosen: str) -> argparse.ArgumentParser:
    """Return the parser; only the chosen command's module is loaded and knows its arguments."""
    parser = argparse.ArgumentParser(
        prog="nokv",
        description="A replicated metadata control plane over immutable bodies in object storage.",
        epilog="NOKV_CLUSTER=host:port,... names the cluster; without it a cluster that "
        "`nokv up` started on this machine is meant. Where the cluster uses TLS, NOKV_TLS_CA, "
        "NOKV_TLS_CERT and NOKV_TLS_KEY name the files of a client (nokv certs client).",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    add_cluster(parser, default=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name, (module, summary) in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            allow_abbrev=False,
        )
        if name == chosen:
            getattr(importlib.import_module(module), f"add_{name.replace('-', '_')}")(sub)
    return parser


def add_action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str
) -> argparse.ArgumentParser:
    """Add one action of a command, as `nokv member list`; its own help begins with the summary."""
    return actions.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
    )


def add_cluster(parser: argparse.ArgumentParser, default: str | None = argparse.SUPPRESS) -> None:
    """Add how to reach a cluster; an option after the command's name wins over one before it."""
    parser.add_argument(
        "--cluster",
        metavar="ADDRESSES",
        default=default,
        help="host:port of some nodes, separated by commas (default: NOKV_CLUSTER)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        default=TIMEOUT_S if default is None else argparse.SUPPRESS,
        help=f"for each answer of the cluster (default: {TIMEOUT_S:g})",
    )


class _Version(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Print the version of the installed package."""
        del namespace, values, option_string
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"nokv {version('nokv')}")
        except PackageNotFoundError:
            print("nokv (not installed)")
        parser.exit(0)


if __name__ == "__main__":
    sys.exit(main())
