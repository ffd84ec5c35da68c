"""Pages of HTML: one frame (assets/base.html) and one way to fill it; no page needs another file.

The pages of a subpackage are Jinja2 templates in its folder ``assets``, beside their styles and
scripts. All values are escaped, and text is `printable`: names of files hold any byte. A page has a
Content-Security-Policy: it runs its own script and nothing else, and fetches nothing.
"""

import base64
import hashlib
import io
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import PurePath

import numpy as np
import numpy.typing as npt
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from hpm_video.runtime.files import printable

Frames = npt.NDArray[np.uint8]
_MOST_LETTERS = 28  # of a name in a narrow place
_NEGATIVE_ZERO = re.compile(r"-0(\.0*)?%?")


def page(package: str, template: str, **values: object) -> str:
    """A page: the template of a subpackage (its ``__package__``), filled with values."""
    return _environment(package).get_template(template).render(values)


@lru_cache
def _environment(package: str) -> Environment:
    """Finds the templates of a subpackage, and those that all share (base.html, parts.html).

    In templates ``asset(name)`` is the text of a file as it is, such as a style, ``digest(text)``
    what allows a style or a script, ``value | number(".3f")`` a `number` in a format of Python's,
    ``path | short`` its `short` name, ``told_apart(paths)`` those of several files by path, and
    ``name | cut`` a name without its middle.
    """
    loader = ChoiceLoader(
        [PackageLoader(name, "assets") for name in (package, "hpm_video.runtime")]
    )
    made = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=loader,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["number"] = number
    made.filters["short"] = short
    made.filters["cut"] = cut
    made.globals["told_apart"] = told_apart
    made.globals["digest"] = _digest
    made.globals["asset"] = lambda name: Markup(loader.get_source(made, name)[0])
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return made


def _shown(value: object) -> object:
    # Whatever else says what it is as HTML, of which no value has a right to, is text
    return value if isinstance(value, Markup) else printable(str(value))


def short(path: str) -> str:
    """What a page calls a file or a run: its name; a checkpoint is named with its run."""
    parts = [
        part for part in PurePath(path).parts if part not in ("checkpoints", "history", "last")
    ]
    return "/".join(parts[-2:] if PurePath(path).suffix == ".pt" else parts[-1:]) or path


def told_apart(paths: Iterable[str]) -> dict[str, str]:
    """What a page calls each of several files: their `short` names, with the folders that tell all
    files apart."""
    known = dict.fromkeys(paths)
    for number in range(1, max((len(PurePath(path).parts) for path in known), default=0)):
        said = {path: "/".join(PurePath(path).parts[-number:]) or path for path in known}
        if len(set(said.values())) == len(known):
            return said
    return {path: path for path in known}


def cut(name: str) -> str:
    """A long name without its middle: names that begin alike often differ at the end."""
    half = _MOST_LETTERS // 2
    return name if len(name) <= _MOST_LETTERS else f"{name[:half]}…{name[1 - half :]}"


def number(value: object, form: str) -> str:
    """A number in a format of Python's; what is rounded to zero has no sign."""
    text = format(value, form)
    return text.removeprefix("-") if _NEGATIVE_ZERO.fullmatch(text) else text


def _digest(text: str) -> str:
    """How a policy names a style or a script: by what it is."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def address(data: bytes, kind: str) -> Markup:
    """The address of a picture, from the bytes of its file; ``kind`` is png or jpeg."""
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def jpeg(pixels: Frames, *, quality: int) -> Markup:
    """The address of a picture (H, W, 3)."""
    return address(jpeg_bytes(pixels, quality=quality), "jpeg")


def jpeg_bytes(pixels: Frames, *, quality: int) -> bytes:
    """The file of a picture (H, W, 3)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="jpeg", quality=quality)
    return file.getvalue()


def packed(values: npt.NDArray[np.generic]) -> str:
    """The bytes of numbers, little ones first, as base64."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode()
