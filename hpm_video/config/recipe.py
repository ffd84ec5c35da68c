"""Recipes: settings of runs that come with the package, found by name.

In a clone they are in ``configs/``, their only copy. The wheel build puts them beside this module.
Each starts with comments: a description, a command, and lines that begin with ``Hardware:``,
``Hours:`` and ``Expected:``.
"""

import difflib
import re
import shlex
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from hpm_video.config.schema import SCHEMAS
from hpm_video.config.settings import find_config, unknown_settings
from hpm_video.runtime.files import shell_path, similar_path

_INSTALLED = Path(__file__).with_name("recipes")
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[2] / "configs"

# The command that reads the recipes of each folder
COMMANDS = {
    "pretrain": "pretrain",
    "finetune": "finetune",
    "probe": "probe",
    "ablation": "bench ablation",
    "demo": "demo",
}
# What follows these commands, if it is not just the file
_WORDS = {"probe": "CHECKPOINT --recipe {}", "ablation": "{} -o outputs/study"}
_MOST_NAMED = 3  # settings that a refusal names
_VARIANTS = FOLDER / "ablation" / "variants.yaml"  # pre-trainings named ``variants:NAME``

_FACTS = ("Hardware", "Hours", "Expected")


@dataclass(frozen=True)
class Recipe:
    """A recipe and the facts at its top, each on one line.

    kind: the command that reads it, a key of `COMMANDS`. name: as typed in that command; variants
    of the list are ``variants:NAME``.
    """

    kind: str
    name: str
    file: Path
    command: str
    hardware: str
    hours: str
    expected: str


def list_recipes() -> list[Recipe]:
    """All recipes, ordered by command and name."""
    found = [_recipe(kind, file) for kind in COMMANDS for file in _files(kind).values()]
    return [recipe for kind in COMMANDS for recipe in found if recipe.kind == kind]


def find_recipe(kind: str, word: str) -> str:
    """Resolve a word of a command line to a file: an existing path, or a recipe.

    An existing file takes precedence over a recipe of the same name. A variant, ``FILE:NAME``,
    keeps its name. Raises FileNotFoundError with suggestions; ValueError for the settings of
    another command.
    """
    try:
        find_config(word)
        _check_is_for(kind, word)
        return word
    except FileNotFoundError as error:
        name, colon, variant = word.partition(":")
        files = _files(kind)
        if kind == "pretrain" and colon:
            files["variants"] = _VARIANTS
        if name in files:
            return f"{files[name]}{colon}{variant}"
        if re.match(r"[\w.]+=", word):
            example = ""
            if "own_videos" in files:
                command = f"hpm-video {COMMANDS[kind]} own_videos {shlex.quote(word)}"
                example = f"{command}, for example; "
            raise ValueError(
                f"config ({word}) must be a recipe or a YAML file, and settings come after it: "
                f"{example}`hpm-video recipes` lists all recipes"
            ) from error
        others = [other for other in COMMANDS if COMMANDS[other] in SCHEMAS]
        if others := [other for other in others if name in _files(other)]:
            does = f"hpm-video {COMMANDS[others[0]]}"
            raise FileNotFoundError(
                f"config ({word}) is a recipe of {does}, not of {COMMANDS[kind]}: run "
                f"{_command(others[0], word)}"
            ) from error
        if (file := Path(word, f"{kind}.yaml")).is_file():
            rule = f"is a folder: run {_command(kind, str(file))}"
            raise FileNotFoundError(f"config ({word}) {rule}") from error
        close = difflib.get_close_matches(Path(name).stem, files, n=3)
        file_like = similar_path(word).removeprefix("; ")
        if file_like and (not close or Path(word).suffix in (".yaml", ".yml")):
            hint = f"{file_like} "
        else:
            hint = f"did you mean {', '.join(close)}? " if close else ""
        raise FileNotFoundError(
            f"config ({word}) does not exist, as a file or as a recipe of hpm-video "
            f"{COMMANDS[kind]}: {hint}`hpm-video recipes` lists all recipes"
        ) from error


def _command(kind: str, word: str) -> str:
    words = _WORDS.get(kind, "{}").format(shell_path(word))
    return f"hpm-video {COMMANDS[kind]} {words}"


def _check_is_for(kind: str, file: str) -> None:
    """Raise ValueError if a file has settings that another command knows, but not this one."""
    try:
        foreign = set(unknown_settings(SCHEMAS[COMMANDS[kind]], file))
        left = {
            one: set(unknown_settings(SCHEMAS[command], file))
            for one, command in COMMANDS.items()
            if foreign and command in SCHEMAS
        }
    except ValueError:  # not settings; `load_config` says why
        return
    other = min(left, key=lambda one: len(left[one]), default=kind)
    if left and left[other] < foreign:
        found = sorted(foreign - left[other])
        names = ", ".join(found[:_MOST_NAMED]) + ", …" * (len(found) > _MOST_NAMED)
        raise ValueError(
            f"config ({file}) has settings of hpm-video {COMMANDS[other]} ({names}), not of "
            f"{COMMANDS[kind]}: run {_command(other, file)}"
        )


def for_a_gpu(kind: str, word: str) -> str | None:
    """What to know on a machine without a GPU about the recipe or YAML that `find_recipe` finds:
    that its first comment names GPUs as hardware, and the recipe for CPUs nearest to it.

    None if it names other hardware, or none.
    """
    file, _ = find_config(find_recipe(kind, word))
    needs = re.split(r"\.(?: |$)", _recipe(kind, file).hardware, maxsplit=1)[0]
    if "GPU" not in needs:
        return None
    on_cpus = (name.removesuffix("_cpu") for name in _files(kind) if name.endswith("_cpu"))
    near = max((name for name in on_cpus if file.stem.startswith(name)), key=len, default=None)
    advice = (
        "expect very slow steps"
        if near is None
        else f"hpm-video {COMMANDS[kind]} {near}_cpu … suits a CPU"
    )
    return f"no GPU here: {word} is meant for {needs}; {advice}"


def find_named(name: str) -> Path:
    """File of a recipe ``NAME``, or ``FOLDER/NAME`` if several commands have one.

    Raises FileNotFoundError; ValueError for an ambiguous name.
    """
    known = {f"{kind}/{stem}": file for kind in COMMANDS for stem, file in _files(kind).items()}
    matching = [key for key in known if name in (key, key.partition("/")[2])]
    if len(matching) > 1:
        raise ValueError(f"recipe ({name}) is ambiguous: choose {' or '.join(matching)}")
    if not matching:
        stems = sorted({key.partition("/")[2] for key in known})
        close = difflib.get_close_matches(name, [*known, *stems], n=3)
        hint = f"did you mean {', '.join(close)}? " if close else ""
        raise FileNotFoundError(
            f"recipe ({name}) does not exist: {hint}`hpm-video recipes` lists all recipes"
        )
    return known[matching[0]]


def _files(kind: str) -> dict[str, Path]:
    return {file.stem: file for file in sorted((FOLDER / kind).glob("*.yaml"))}


def _recipe(kind: str, file: Path) -> Recipe:
    is_list = file == _VARIANTS
    lines = takewhile(lambda line: line.startswith("#"), file.read_text("utf-8").splitlines())
    head = "\n".join(line[1:].removeprefix(" ") for line in lines)

    def fact(name: str) -> str:
        """Text of a fact, up to an empty line or the next fact."""
        others = "|".join(_FACTS)
        found = re.search(
            rf"^{name}: (.+?)(?=\n(?:{others}): |\n\n|\Z)", head, re.DOTALL | re.MULTILINE
        )
        return " ".join(found[1].split()) if found else ""

    return Recipe(
        "pretrain" if is_list else kind,
        f"{file.stem}:NAME" if is_list else file.stem,
        file,
        " ".join(re.findall(r"^  +(.*?)[ \\]*$", head, re.MULTILINE)),
        *map(fact, _FACTS),
    )
