"""Options shared by several commands, under the same names everywhere.

Some settings are also options: ``--device cpu`` sets ``run.device=cpu``.
"""

import argparse
import difflib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any, NoReturn

from hpm_video.data.video.part import file_of
from hpm_video.runtime.files import printable, shell_path, similar_path

if TYPE_CHECKING:
    from hpm_video.config.schema import Setting

SETTINGS = "key=value"

_TAKES_COMMANDS = ("submit",)
_WITH_COMMANDS = ("bench", "data", "weights")  # have commands of their own
_VIDEOS = "videos"  # positional arguments of some commands; may be empty

# Settings that are also options (last part of their name), with the placeholder in --help; empty:
# the choices. Functions import the configuration only when they need it: it takes 0.1 s
_ALSO_OPTIONS = {
    "manifest": "LIST",
    "root": "DIR",
    "output_dir": "DIR",
    "seed": "N",
    "device": "",
    "num_workers": "N",
}


def add_config(parser: argparse.ArgumentParser, schema: type[Any]) -> None:
    """Add the recipe or settings file, and settings that override it."""
    text = "name of a recipe (`hpm-video recipes` lists them), or a YAML file of settings"
    parser.add_argument("config", metavar="RECIPE", help=text)
    add_settings(parser, schema, "settings that override the recipe's; listed below")


def add_settings(
    parser: argparse.ArgumentParser, schema: type[Any], meaning: str = "settings; listed below"
) -> None:
    """Add settings ``key=value``, options for some of them, and a table of all to --help."""
    from hpm_video.config.schema import describe_settings
    from hpm_video.config.values import Device, values_of

    parser.add_argument("settings", nargs="*", metavar=SETTINGS, help=meaning)
    group = parser.add_argument_group("settings that are also options")
    for setting in describe_settings(schema):
        where, _, name = setting.key.rpartition(".")
        if name in _ALSO_OPTIONS and where in ("", "run", "data"):
            group.add_argument(
                *(["-o"] if name == "output_dir" else []), "--" + name.replace("_", "-"),
                dest=f"{setting.key}=", nargs="+" if name == "manifest" else None,
                metavar=_ALSO_OPTIONS[name] or "|".join(values_of(Device)),
                help=f"sets {setting.key}",
            )  # fmt: skip
    parser.epilog = settings_help(schema)
    know_settings(parser, schema)


def settings_help(schema: type[Any]) -> str:
    """The table of settings at the end of --help."""
    from hpm_video.config.schema import settings_table

    columns = min(shutil.get_terminal_size().columns, 80)
    return "settings:\n" + settings_table(schema, columns=columns)


def know_settings(parser: argparse.ArgumentParser, schema: type[Any]) -> None:
    """Let a parser suggest settings of its command for mistyped options."""
    if isinstance(parser, Parser):
        parser.schema = schema


CLASSIFIER = "fine-tuned classifier: a run folder, a checkpoint, or VideoMAE's file or folder"


def add_checkpoint(
    parser: argparse.ArgumentParser, meaning: str = "checkpoint or run folder"
) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=meaning)


def add_manifest(
    parser: argparse._ActionsContainer, meaning: str, name: str = "--manifest", **more: Any
) -> None:
    """Add an option for one or more lists of videos."""
    parser.add_argument(name, nargs="+", default=[], metavar="LIST", help=meaning, **more)


def lists_or_stored(
    given: Sequence[str], stored: Sequence[str], *, option: str, setting: str, checkpoint: str
) -> list[str]:
    """The lists given with an option, else those in the checkpoint's settings."""
    if given:
        return list(given)
    from hpm_video.data.lists.places import list_exists

    if not stored:
        raise ValueError(
            f"{option} (none) must name a list: checkpoint ({checkpoint}) has none in {setting}"
        )
    for path in stored:
        if not list_exists(path):
            raise FileNotFoundError(
                f"{setting} of the checkpoint ({path}) does not exist: name a list with {option}"
            )
    return list(stored)


def add_one_manifest(parser: argparse.ArgumentParser) -> None:
    """Add the list of a command that takes one, as ``M`` or ``--manifest M``."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("M", nargs="?", help="list of videos, in any format")
    group.add_argument(
        "--manifest", metavar="M", help="list of videos, instead of the positional M"
    )


def add_output_dir(parser: argparse._ActionsContainer, meaning: str, **more: Any) -> None:
    parser.add_argument("-o", "--output-dir", metavar="DIR", help=meaning, **more)


def add_output(
    parser: argparse.ArgumentParser, meaning: str, *names: str, metavar: str = "FILE"
) -> None:
    """Add the output file; ``names``: further spellings, for commands that also write folders."""
    parser.add_argument("-o", "--output", *names, required=True, metavar=metavar, help=meaning)


def add_numbers(
    parser: argparse._ActionsContainer,
    meanings: Mapping[str, str],
    defaults: Mapping[str, Any] | None = None,
    metavar: str = "N",
) -> None:
    """Add options for integers, such as ``--num-frames`` for ``num_frames``."""
    for name, meaning in meanings.items():
        default = (defaults or {}).get(name)
        text = meaning if default is None else f"{meaning} (default {default})"
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, default=default, metavar=metavar, help=text)


def add_root(parser: argparse._ActionsContainer, meaning: str) -> None:
    parser.add_argument("--root", metavar="DIR", help=meaning)


def add_device(parser: argparse._ActionsContainer) -> None:
    from hpm_video.config.values import Device, values_of

    text = "device to compute on; auto: CUDA if available (default %(default)s)"
    parser.add_argument("--device", choices=values_of(Device), default="auto", help=text)


def add_decoding(parser: argparse.ArgumentParser, *, timeout_s: int, decoder: str) -> None:
    """Add options for decoding each video of a list once; ``decoder``: help of that option."""
    from hpm_video.config.values import Decoder, values_of

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    add_root(parser, "folder where relative paths start (default: the folder of M)")
    parser.add_argument("--decoder", choices=values_of(Decoder), default="decord", help=decoder)
    parser.add_argument(
        "--num-workers", "--workers", type=int, default=cores, metavar="N",
        help="videos to process at a time (default: cores, %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--decode-timeout-s", "--timeout", type=float, default=timeout_s, metavar="S",
        help="seconds per video before it counts as unreadable (default %(default)s)",
    )  # fmt: skip


_NO_PLACE = re.compile(r"[^/#:?]*")  # setting names lack these characters of paths, parts and URLs
# Arguments for existing files and folders, with the word for each in messages
_PLACES = {
    "checkpoint": "checkpoint ({}) does not exist",
    "checkpoints": "checkpoint ({}) does not exist",
    "file": "weights ({}) do not exist",
    "classifier": "--classifier ({}) does not exist",
    "manifest": "{} does not exist (expected a list of videos)",
    "train": "{} does not exist (expected a list of videos)",
    "val": "{} does not exist (expected a list of videos)",
    "videos": "VIDEO ({}) does not exist",
    "video": "--video ({}) does not exist",
    "folder": "{} does not exist (expected a folder)",
}
_OF_START = "{} does not exist (expected a folder or list of videos)"
_LISTS = ("manifest", "train", "val")  # those that name lists of videos


def check_there(arguments: argparse.Namespace) -> None:
    """Raise SettingFaults for missing files, before anything slow is imported."""
    from hpm_video.data.lists.places import folder_as_list

    faults = []
    for name, text in _PLACES.items():
        if name == "folder" and arguments.job in _TAKES_COMMANDS:
            continue  # a new folder, of the job's files
        given = getattr(arguments, name, None) or []
        for place in [given] if isinstance(given, str) else given:
            # A colon marks models stored elsewhere: hf://OWNER/NAME, timm:NAME
            if ":" in place:
                continue
            try:
                is_there = _is_there(name, place)
            except ValueError as error:
                faults.append(str(error))
                continue
            if not is_there:
                lack = _OF_START if arguments.job == "start" else text
                others = _runs_instead(arguments.job, place) if name.startswith("check") else ""
                faults.append(lack.format(place) + (similar_path(place) or others))
            elif name in _LISTS and os.path.isdir(place) and arguments.job != "start":
                faults.append(folder_as_list(place))
    if faults:
        from hpm_video.config.schema import SettingFaults

        raise SettingFaults(faults)


def _runs_instead(job: str, place: str) -> str:
    """What to add to the refusal of a missing checkpoint: runs that the command takes."""
    from hpm_video.weights.run_folders import runs_near

    kinds = ["finetune"] if job in ("evaluate", "predict") else ["pretrain"]
    if job in ("features", "weights"):
        kinds.append("finetune")
    runs = [shell_path(run) for run in runs_near(place, *kinds)]
    return f"; there is {' or '.join(runs)}" if runs else ""


def _is_there(argument: str, place: str) -> bool:
    """True if the list, video (or the video of a part), file or folder exists."""
    if argument in (*_LISTS, "folder"):
        from hpm_video.data.lists.places import list_exists

        return list_exists(place) or os.path.lexists(place)
    if argument in (_VIDEOS, "video"):
        from hpm_video.data.video.source import exists

        return exists(file_of(place))
    return os.path.exists(place)


def is_setting(word: str) -> bool:
    """True if a word of the command line is a setting, not an option, file or part."""
    name, equals, _ = word.partition("=")
    # Missing files, members of tars and URLs with a query may contain `=`, too
    if not equals or word.startswith("-") or not _NO_PLACE.fullmatch(name):
        return False
    try:
        return not os.path.exists(file_of(word))
    except ValueError:  # an invalid part; the code that takes videos reports it
        return False


_NO_NAME = re.compile(r"-|-\d*\.?\d+")  # standard input, and numbers


class Parser(argparse.ArgumentParser):
    """Says rule and example for a value that does not fit, suggests the closest match for a
    mistyped command or choice, and takes no abbreviations.

    schema: the settings of its command, if it takes some.
    """

    schema: type[Any] | None = None

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        if message.endswith("required: -o/--output-dir"):
            message += ", for example -o outputs/new"
        super().error(message)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if action.type not in _KINDS:
                raise
            rule = f"must be {_KINDS[action.type]}, such as {_example(action)}"
            raise argparse.ArgumentError(None, f"{_shown(action)} ({arg_string}) {rule}") from error

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            choices = list(map(str, action.choices or ()))
            close = difflib.get_close_matches(str(value), choices, n=1)
            meant = f": did you mean {close[0]}?" if close else ""
            rule = f"must be one of {', '.join(choices)}{meant}"
            said = f"{_shown(action)} ({value}) {rule}"
            if isinstance(action, argparse._SubParsersAction):
                said = f"{value!r} is unknown{meant or f': {rule}'}"
            raise argparse.ArgumentError(None, said) from error

    def _match_argument(self, action: argparse.Action, arg_strings_pattern: str) -> int:
        try:
            return super()._match_argument(action, arg_strings_pattern)
        except argparse.ArgumentError as error:
            if action.nargs is not None or not (action.type in _KINDS or action.choices):
                raise
            rule = f"must have a value, such as {_example(action)}"
            raise argparse.ArgumentError(None, f"{_shown(action)} {rule}") from error


_KINDS: dict[Any, str] = {int: "a whole number", float: "a number"}


def _shown(action: argparse.Action) -> str:
    """Name of an option, or of a positional argument, for messages."""
    return max(action.option_strings, key=len, default="") or str(action.metavar or action.dest)


def _example(action: argparse.Action) -> str:
    """A value that an option takes: its default, if it has one."""
    default = action.default
    if isinstance(default, list | tuple):
        default = next(iter(default), None)
    if action.choices:
        choices = list(map(str, action.choices))
        return str(default) if str(default) in choices else choices[0]
    if default is None:
        return "1" if action.type is int else "0.5"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _refuse_words(
    parser: argparse.ArgumentParser, rest: Sequence[str], words: Sequence[str]
) -> None:
    """Exit with the unknown words, and suggestions for them."""
    if quoted := unquoted(words):
        parser.error(quoted)
    schema = next((one.schema for one in _parsers(parser, words) if _schema_of(one)), None)
    options, hints = list(_options(parser, words)), []
    for word, after in pairwise([*rest, "-"]):
        if word.startswith("-"):
            name, _, value = word.partition("=")
            follows = "" if after.startswith("-") or is_setting(after) else after
            hints.append(_meant(name, value or follows, options, schema))
    command = parser.prog if " " in parser.prog else f"{parser.prog} {_command_of(words)}"
    hints = [hint for hint in dict.fromkeys(hints) if hint]
    hints = hints or [f"{command} --help lists its options"]
    parser.error(f"unrecognized arguments: {' '.join(rest)}: {' '.join(hints)}")


def _schema_of(parser: argparse.ArgumentParser) -> type[Any] | None:
    return parser.schema if isinstance(parser, Parser) else None


def _meant(option: str, value: str, options: Sequence[str], schema: type[Any] | None) -> str:
    """What may be meant by an unknown option: a setting of the command, or a similar option."""
    name = option.lstrip("-")
    same, is_exact = _settings_like(name.replace("-", "_"), schema) if schema else ([], False)
    likely = [shlex.quote(f"{one.key}={value or one.default}") for one in same]
    if likely and "." in name:
        return f"settings have no leading dashes: {likely[0]}"
    close = [] if is_exact else _alike(name, options)
    return f"did you mean {' or '.join(close or likely)}?" if close or likely else ""


def _settings_like(name: str, schema: type[Any]) -> tuple[list["Setting"], bool]:
    """Settings of a name, with or without its groups, or of a similar one; whether it is theirs."""
    from hpm_video.config.schema import describe_settings, settings_called

    if "." in name:
        known = {one.key: one for one in describe_settings(schema)}
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        return [known[key] for key in close], name in known
    if found := settings_called(name, schema):
        return found, any(f".{one.key}".endswith(f".{name}") for one in found)
    names = {one.key.rpartition(".")[2] for one in describe_settings(schema)}
    close = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.8)
    return [one for near in close for one in settings_called(near, schema)], False


def _alike(name: str, options: Sequence[str]) -> list[str]:
    """Options that begin like a mistyped one, else the most similar one."""
    long = [one[2:] for one in options if one.startswith("--")]
    begin = [one for one in long if len(name) >= _FEWEST and one.startswith(name)]
    if not begin and len(name) > _FEWEST:  # but for its last letter
        near = [one for one in long if one.startswith(name[:-1])]
        begin = difflib.get_close_matches(name, near, n=1, cutoff=0)
    if not begin:
        # Without the dashes, which make any two short names similar; and the first letters alone
        whole = {**{one[: len(name) + 1]: one for one in long}, **{one: one for one in long}}
        close = difflib.get_close_matches(name, whole, n=1, cutoff=0.75)
        begin = [whole[one] for one in close]
    return [f"--{one}" for one in begin[:_MOST_OPTIONS]]


_FEWEST = 3  # letters of an option that say which is meant
_MOST_OPTIONS = 3  # that a message offers
_MOST_PIECES = 8  # words between the spaces of a path


def unquoted(words: Sequence[str]) -> str:
    """The refusal of a path that the shell has split at its spaces, with the command quoted; empty
    if no words that follow each other make an existing path."""
    for start, word in enumerate(words):
        name, equals, _ = word.partition("=")
        key = name + equals if equals and (is_setting(word) or word.startswith("--")) else ""
        for end in range(start + 2, min(start + _MOST_PIECES, len(words)) + 1):
            pieces = [word.removeprefix(key), *words[start + 1 : end]]
            path = " ".join(pieces)
            if os.path.lexists(path) and not all(map(os.path.lexists, pieces)):
                whole = [*words[:start], f"{key}{path}", *words[end:]]
                return (
                    f"{printable(path)} must be quoted, since it has spaces: "
                    f"{shlex.join(['hpm-video', *whole])}"
                )
    return ""


def _where_settings_go(words: Sequence[str]) -> str:
    if words[0] == "start":
        return "add settings to the commands that start prints, or change them in its YAML files"
    return (
        f"this command takes no settings; hpm-video {_command_of(words)} --help lists its options"
    )


def _command_of(words: Sequence[str]) -> str:
    return " ".join(words[: 2 if words[0] in _WITH_COMMANDS else 1])


def _options(parser: argparse.ArgumentParser, words: Sequence[str]) -> Iterator[str]:
    """Options of a parser, and of its sub-commands among the words."""
    for one in _parsers(parser, words):
        for action in one._actions:
            yield from action.option_strings


def _parsers(parser: argparse.ArgumentParser, words: Sequence[str]) -> Iterator[Any]:
    """A parser, and those of its sub-commands among the words."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name in (word for word in dict.fromkeys(words) if word in action.choices):
                yield from _parsers(action.choices[name], words)


def parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse words; a job's settings may stand anywhere among them.

    Settings typed as ``key=value`` override the same settings given as options.
    """
    known = list(_options(parser, words))
    for word in takewhile("--".__ne__, words):
        may_be_file = word[:1] == "-" and word not in known and not _NO_NAME.fullmatch(word)
        if may_be_file and os.path.lexists(word):
            parser.error(f"{word} is read as an option: for the file or folder, write ./{word}")
    unknown: list[str] = []
    for word, value in pairwise([*words, "-"]):
        name = word.partition("=")[0]
        if re.match(r"--\w", name) and name not in known:
            unknown += [word] if value.startswith("-") else [word, value]
    # Report unknown options before missing arguments: a typo may explain both. Submitted jobs have
    # their own options
    if unknown and words[0] not in _TAKES_COMMANDS:
        _refuse_words(parser, unknown, words)
    arguments, rest = parser.parse_known_args(words)
    given = vars(arguments)
    if (manifest := given.pop("M", None)) is not None:
        arguments.manifest = manifest
    if rest and "settings" not in given and all(map(is_setting, rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}: {_where_settings_go(words)}")
    # argparse leaves positional words behind an option unparsed if none came before it
    if rest and not ("settings" in given and all(map(is_setting, rest))):
        _refuse_words(parser, rest, words)
    if "settings" not in given:
        return arguments
    options: list[str] = []
    typed = {*arguments.settings, *rest}
    for name in [name for name in given if name != "settings"]:
        if isinstance(given[name], list):  # settings after an option with several values
            settings = [word for word in given[name] if isinstance(word, str) and is_setting(word)]
            given[name] = [word for word in given[name] if word not in settings]
            if settings and not given[name] and name != _VIDEOS:
                option, follow = name.rpartition(".")[2].rstrip("="), " ".join(settings)
                raise ValueError(
                    f"--{option} must have a value: only settings follow it ({follow})"
                )
            typed.update(settings)
        if name.endswith("=") and (value := given.pop(name)) is not None:
            if isinstance(value, list):
                is_plain = len(value) == 1 and not value[0].startswith("[")
                value = value[0] if is_plain else json.dumps(value)
            options.append(f"{name}{value}")
    arguments.settings = [*options, *(word for word in words if word in typed)]
    return arguments
