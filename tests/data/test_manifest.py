import os
import pickle
import re
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest

from hpm_video.cli.main import main
from hpm_video.data.lists.manifest import (
    COLUMNS,
    Manifest,
    check_labels,
    check_some_exist,
    read_manifest,
    require_labels,
    write_manifest,
)
from hpm_video.data.lists.overlap import find_shared
from hpm_video.data.lists.rows import read_rows
from hpm_video.data.video.part import PART_COLUMNS
from hpm_video.runtime.files import printable


def _list(tmp_path: Path, text: str, name: str = "list.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8"))
    return path


def _rows(manifest: Manifest) -> list[tuple[str, int, int]]:
    return [
        (manifest.name(i), manifest.num_frames(i), manifest.label(i)) for i in range(len(manifest))
    ]


OURS = [name for name in COLUMNS if name not in PART_COLUMNS]
AB = [("a b.mp4", 120, 3), ("c/d.mp4", 7, 0)]
LABELS_ONLY = [("a b.mp4", 0, 3), ("c/d.mp4", 0, 0)]
PATHS_ONLY = [("a b.mp4", 0, -1), ("c/d.mp4", 0, -1)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # ours
        (f"{','.join(OURS)}\na b.mp4,3,120,25.0,9,9,ok\nc/d.mp4,0,7,,,,\n", AB),
        ("label,path\n3,a b.mp4\n0,c/d.mp4", LABELS_ONLY),
        ("path\na b.mp4\nc/d.mp4\n", PATHS_ONLY),
        ('path\n"a, ""b"".mp4"\n', [('a, "b".mp4', 0, -1)]),
        ("\ufeffpath,label\r\na b.mp4,3\r\n\r\nc/d.mp4,0\r\n", LABELS_ONLY),
        # foreign, without header
        ("a b.mp4 120 3\nc/d.mp4 7 0\n", AB),
        ("a b.mp4 3\n\nc/d.mp4   0\n", LABELS_ONLY),
        ("a b.mp4\nc/d.mp4\n", PATHS_ONLY),
        ("a b.mp4,120,3\nc/d.mp4,7,0\n", AB),
        ("a b.mp4, 120, 3\nc/d.mp4, 7, 0\n", AB),
        ("a b.mp4,3\nc/d.mp4,0\n", LABELS_ONLY),
        ("a b.mp4\t120\t3\nc/d.mp4\t7\t0\n", AB),
        ("a b.mp4\t3\nc/d.mp4\t0\n", LABELS_ONLY),
        ("a b.mp4 -1\nc/d.mp4 -1\n", PATHS_ONLY),
        ("a b.mp4,-1\nc/d.mp4,-1\n", PATHS_ONLY),
        # commas and numbers inside paths that are separated by spaces
        ("a, b.mp4 3\nc,d.mp4 0\n", [("a, b.mp4", 0, 3), ("c,d.mp4", 0, 0)]),
        ("c,d.mp4\na, b.mp4\n", [("c,d.mp4", 0, -1), ("a, b.mp4", 0, -1)]),
        (
            "clip 7.mp4 9 3\ntake 2 of 9.mp4 5 0\n",
            [("clip 7.mp4", 9, 3), ("take 2 of 9.mp4", 5, 0)],
        ),
        # Excel where decimals have commas, and what Windows calls Unicode
        ("a b.mp4;120;3\nc/d.mp4;7;0\n", AB),
        ("path;label\na b.mp4;3\nc/d.mp4;0\n", LABELS_ONLY),
        # foreign, with header
        ("path num_frames label\na b.mp4 120 3\nc/d.mp4 7 0\n", AB),
        ("path label\na b.mp4 3\nc/d.mp4 0\n", LABELS_ONLY),
        ("video_path\ttotal_frames\ttarget\na b.mp4\t120\t3\nc/d.mp4\t7\t0\n", AB),
        ("filename,class\na b.mp4,3\nc/d.mp4,0\n", LABELS_ONLY),
    ],
)
def test_reads_every_kind_of_list(
    tmp_path: Path, text: str, expected: list[tuple[str, int, int]]
) -> None:
    manifest = read_manifest(_list(tmp_path, text))
    assert _rows(manifest) == expected
    assert manifest.labels.dtype == np.int64
    assert manifest.labels.tolist() == [label for _, _, label in expected]
    assert manifest.classes is None
    assert manifest.num_classes == max(label for _, _, label in expected) + 1


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.mp4,run\nb c.mp4,jump\nd.mp4,run\n",
        "a.mp4,run\nb c.mp4,jump\nd.mp4,run\n",
        "a.mp4\trun\nb c.mp4\tjump\nd.mp4\trun\n",
        "a.mp4 9 run\nb c.mp4 12 jump\nd.mp4 9 run\n",
    ],
)
def test_class_names_become_labels(tmp_path: Path, text: str) -> None:
    path = _list(tmp_path, text)
    by_order = read_manifest(path)
    assert by_order.labels.tolist() == [1, 0, 1] and by_order.classes == ("jump", "run")
    _list(tmp_path, "run\nwalk\njump\n", "classes.txt")
    beside = read_manifest(path)
    assert beside.labels.tolist() == [0, 2, 0] and beside.classes == ("run", "walk", "jump")
    given = read_manifest(path, classes=["jump", "x", "y", "run"])
    assert given.labels.tolist() == [3, 0, 3] and given.num_classes == 4
    assert read_manifest(path, labels=False).labels.tolist() == [-1, -1, -1]


def test_names_for_integer_labels(tmp_path: Path) -> None:
    path = _list(tmp_path, "a.mp4 1\n")
    _list(tmp_path, "run\nwalk fast\njump\n", "classes.txt")
    manifest = read_manifest(path)
    assert manifest.classes == ("run", "walk fast", "jump") and manifest.num_classes == 3


def test_rows_that_are_not_ok_are_left_out(tmp_path: Path) -> None:
    path = _list(tmp_path, "path,status\na.mp4,ok\nb.mp4,no such file\nc.mp4,\n")
    manifest = read_manifest(path)
    assert [manifest.name(i) for i in range(len(manifest))] == ["a.mp4", "c.mp4"]
    assert [row["status"] for _, row in read_rows(path)] == ["ok", "no such file", ""]


def test_several_lists_keep_their_own_folders(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = _list(tmp_path / "one", "a.mp4 0\nb.mp4 2\n")
    two = _list(tmp_path / "two", "path,label,num_frames\nc.mp4,1,9\n/abs/d.mp4,0,8\n")
    manifest = read_manifest([one, str(two)])
    folder = str(tmp_path)
    expected = [f"{folder}/one/a.mp4", f"{folder}/one/b.mp4", f"{folder}/two/c.mp4", "/abs/d.mp4"]
    assert [manifest.path(i) for i in range(4)] == expected
    assert _rows(manifest)[2] == ("c.mp4", 9, 1)
    assert manifest.labels.tolist() == [0, 2, 1, 0] and manifest.num_classes == 3
    moved = read_manifest([one, two], root="/data set")
    assert moved.path(0) == "/data set/a.mp4" and moved.path(3) == "/abs/d.mp4"
    assert _rows(pickle.loads(pickle.dumps(manifest))) == _rows(manifest)


def test_rows_that_name_a_video_again_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path\nx.mp4\ny.mp4\nx.mp4\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.csv").write_text(f"path\nx.mp4\n{tmp_path}/y.mp4\n")
    assert read_manifest(tmp_path / "a.csv").num_repeated == 1
    assert read_manifest(tmp_path / "sub" / "b.csv").num_repeated == 0
    both = [tmp_path / "a.csv", tmp_path / "sub" / "b.csv"]
    assert read_manifest(both).num_repeated == 2  # sub/x.mp4 is another
    assert read_manifest(both, root=str(tmp_path)).num_repeated == 3


def test_videos_of_two_lists_are_the_same_where_their_paths_are(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.csv").write_text("path\nx.mp4\nsub/y.mp4\n")
    (tmp_path / "sub" / "b.csv").write_text(f"path\nx.mp4\ny.mp4\n../x.mp4\n{tmp_path}/x.mp4\n")
    one, other = read_manifest(tmp_path / "a.csv"), read_manifest(tmp_path / "sub" / "b.csv")
    assert find_shared(one, other).num_shared == 3  # all but sub/x.mp4
    assert find_shared(other, one).num_shared == 2


def test_joined_lists_must_share_their_classes(tmp_path: Path) -> None:
    lists = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        lists.append(_list(tmp_path / name, "a.mp4 0\n"))
        _list(tmp_path / name, f"{name}\n", "classes.txt")
    with pytest.raises(ValueError, match=r"two/classes.txt must match .*one/classes.txt .*label 0"):
        read_manifest(lists)
    assert len(read_manifest(lists, labels=False)) == 2


def test_a_list_without_usable_videos_names_them_and_a_way_on(tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "b.mp4").touch()  # that one is missing here says nothing of the others
    name = f"{tmp_path}/list.csv"
    bad = _list(tmp_path, "path,status,reason\na.mp4,bad,is empty\nb.mp4,missing,\nc.mp4,bad,x\n")
    with pytest.raises(ValueError, match=r"bad \(2\), missing \(1\)") as refusal:
        read_manifest(bad)
    said = "the first: a.mp4: is empty; b.mp4: status missing; c.mp4: x. Replace the files, then: "
    assert str(refusal.value).endswith(f"{said}hpm-video data check {name}")
    own = _list(tmp_path, "path,status\na.mp4,later\n")
    with pytest.raises(ValueError, match=r"a.mp4: status later. Clear the column status"):
        read_manifest(own)
    torn = _list(tmp_path, "path,num_frames,status,damaged\na.mp4,10,damaged,5\n")
    with pytest.raises(ValueError, match=r"data.max_damage \(0.1\) allows. data.max_damage=1 uses"):
        read_manifest(torn, max_damage=0.1)


def test_a_folder_is_no_list_but_can_be_listed(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    video = next(toy.parent.rglob("*.mp4"))
    for name in ("a", "b"):
        (tmp_path / "-my clips" / name).mkdir(parents=True)
        (tmp_path / "-my clips" / name / "1.mp4").write_bytes(video.read_bytes())
    assert main(["data", "check", "./-my clips/"]) == 2
    command = re.search("hpm-video (data list .*) makes one", capsys.readouterr().err)
    assert command is not None and main(shlex.split(command[1])) == 0
    assert main(["data", "check", "--quick", "./-my clips.csv"]) == 0


def test_a_list_without_labels_can_get_those_of_folders(
    tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    video = next(toy.parent.rglob("*.mp4"))
    for name in ("a", "b"):
        (tmp_path / "v v" / name).mkdir(parents=True)
        (tmp_path / "v v" / name / "1.mp4").write_bytes(video.read_bytes())
    file = _list(tmp_path, "path\nv v/a/1.mp4\nv v/b/1.mp4\n")
    with pytest.raises(ValueError, match="must have labels, but has none") as refusal:
        require_labels(read_manifest(file), name="data.manifest", lists=["list.csv"])
    command = re.search("hpm-video (data list .*) makes a list", str(refusal.value))
    assert command is not None and main(shlex.split(command[1])) == 0
    assert read_manifest("labelled.csv").labels.tolist() == [0, 1]
    (tmp_path / "classes.txt").unlink()
    flat = _list(tmp_path, "path\nv v/a/1.mp4\n")
    with pytest.raises(ValueError, match="into a folder per class: hpm-video data list --folder"):
        require_labels(read_manifest(flat), name="data.manifest", lists=["list.csv"])


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ("", None, r"list.csv lists no videos"),
        ("path,label\n", None, r"list.csv lists no videos"),
        ("path,status\na.mp4,broken\n", None, r"list.csv lists no videos"),
        ("path,label\na.mp4,1\nb.mp4\n", None, r"list.csv:3: 1 columns, expected 2"),
        ("a.mp4,1\nb.mp4,1,2,3\n", None, r"list.csv:2: 4 columns, expected 2, as in the first row"),
        ("a.mp4,1,2,3\n", None, r"list.csv:1: 4 columns"),
        ("label,id\nrun,abc\n", None, r"header \(label,id\) must have a column path"),
        ("path,label\n,1\n", None, r"list.csv:2: the path is empty"),
        ("path,num_frames\na.mp4,many\n", None, r"list.csv:2: num_frames \(many\)"),
        ("path,num_frames\na.mp4,-4\n", None, r"list.csv:2: num_frames \(-4\)"),
        ("a.mp4 0\nb.mp4 -2\n", None, r"list.csv:2: label \(-2\) must be at least 0"),
        ("a.mp4 0\nb.mp4 2\n", ["x", "y"], r"list.csv:2: label \(2\) must be below .*\(2, "),
        ("a.mp4,x\nb.mp4,z\n", ["x", "y"], r"list.csv:2: label \(z\) must be one of the .*: x, y$"),
        ('path\n"a.mp4\nb.mp4\n', None, r"list.csv:3: malformed CSV"),
    ],
)
def test_mistakes_name_file_and_line(
    tmp_path: Path, text: str, classes: list[str] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_manifest(_list(tmp_path, text), classes=classes)
    assert "\n" not in str(caught.value)


def test_names_are_not_guessed_to_be_somebodys_numbers(tmp_path: Path) -> None:
    """Sorted, b would be 1, whatever number it has in the list that gives numbers only."""
    named = _list(tmp_path, "a.mp4,b\nb.mp4,a\n")
    with pytest.raises(ValueError, match=r"list.csv:1: label \(b\) must be a number: "):
        read_manifest(named, numbers_only=True)
    (tmp_path / "classes.txt").write_text("b\na\n")
    assert read_manifest(named, numbers_only=True).labels.tolist() == [0, 1]
    numbers = _list(tmp_path, "a.mp4,1\nb.mp4,0\n")
    assert read_manifest(numbers, numbers_only=True).labels.tolist() == [1, 0]


def test_files_that_are_no_lists(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing.csv does not exist"):
        read_manifest(tmp_path / "missing.csv")
    with pytest.raises(ValueError, match="is a folder"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match="at least one list"):
        read_manifest([])
    _list(tmp_path, "run\nrun\n", "classes.txt")
    with pytest.raises(ValueError, match="'run' occurs more than once"):
        read_manifest(_list(tmp_path, "a.mp4 0\n"))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    names = ["plain.mp4", "a, b.mp4", 'c"d".mp4', " e\nf.mp4 ", "g\r.mp4", "視.mp4", '"g"']
    path = tmp_path / "out.csv"
    write_manifest(
        path,
        (
            {"status": "ok", "label": i, "path": name, "fps": None, "source": "web, old"}
            for i, name in enumerate(names)
        ),
    )
    assert path.read_text(encoding="utf-8").splitlines()[0] == "path,label,status,source"
    manifest = read_manifest(path)
    assert [manifest.name(i) for i in range(len(manifest))] == names
    assert manifest.labels.tolist() == list(range(7))
    assert {row["source"] for _, row in read_rows(path)} == {"web, old"}


def test_writing_replaces_the_old_list_or_leaves_it(tmp_path: Path) -> None:
    path = _list(tmp_path, "a.mp4 0\n")
    with pytest.raises(ValueError, match="is not valid Unicode"):
        write_manifest(path, [{"path": "good.mp4"}, {"path": "half a pair \ud800.mp4"}])
    assert path.read_text() == "a.mp4 0\n"
    write_manifest(path, [{"path": "good.mp4"}])
    assert path.read_text() == "path\ngood.mp4\n"
    assert [p.name for p in tmp_path.iterdir()] == ["list.csv"]


def test_rows_are_no_python_objects(tmp_path: Path) -> None:
    """Looking rows up must not change memory shared with forked workers: no object per row."""
    manifest = read_manifest(_list(tmp_path, "".join(f"{i}.mp4 {i % 5}\n" for i in range(5000))))
    assert manifest.path(4321).endswith("/4321.mp4") and manifest.label(4321) == 1
    containers = [v for v in vars(manifest).values() if isinstance(v, list | tuple | dict)]
    assert sum(map(len, containers)) < 10


def test_numbers_and_names_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"list\.csv:1: label \(1\) is a number, but 'dog' .*:2"):
        read_manifest(_list(tmp_path, "a.mp4 1\nb.mp4 dog\n"))


def test_a_list_of_other_classes_than_those_given_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("b\na\n")
    path = _list(tmp_path, "a.mp4 1\nb.mp4 0\n")
    assert read_manifest(path, classes=["b", "a"]).classes == ("b", "a")
    with pytest.raises(
        ValueError,
        match=r"classes\.txt must match the classes given .*, but its label 0 is 'b', not 'a'$",
    ):
        read_manifest(path, classes=["a", "b"])


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # another separator, or a label that was not understood, must not become part of a path
        ("a.mp4|3\nb.mp4|1\n", r"list.csv:1: row \(a.mp4\|3\) must be `path`, `path label`"),
        ("path|label\na.mp4|1\n", r"list.csv:1: row \(path\|label\)"),
        ("a.mp4 0\nb.mp4;1\n", r"list.csv:2: row \(b.mp4;1\)"),
        ("a.mp4 0\nb.mp4 1.5\n", r"list.csv:2: label \(1.5\) must be a whole number or a class"),
        ("a.mp4,1.5\n", r"list.csv:1: label \(1.5\)"),
        ("path,label\na.mp4,3.0\n", r"list.csv:2: label \(3.0\)"),
        ("path,label\na.mp4,1e3\n", r"list.csv:2: label \(1e3\)"),
        ("a.mp4 run fast\n", r"list.csv:1: row \(a.mp4 run fast\).*labels with spaces"),
        ("path label\na.mp4 run fast\n", r"list.csv:2: row \(a.mp4 run fast\)"),
        ("a.mp4 12 3 4\n", r"list.csv:1: row \(a.mp4 12 3 4\)"),
        # what is no list of videos
        ("clip_001 3\n", r"list.csv:1: row \(clip_001 3\).*header path,label"),
        ("clip_001,3\n", r"list.csv:1: row \(clip_001,3\)"),
        ("a.mp4,1\nclip_001,3\n", r"list.csv:2: path \(clip_001\) must end in"),
        ('{"videos": ["a.mp4"]}\n', r"list.csv:1: must be CSV .*, but is JSON"),
        ("[\n", r"list.csv:1: must be CSV .*, but is JSON"),
        ("hpm-video index\n\0\0", r"list.csv must be a list of videos, but is the index of one"),
        ("a.mp4 1\n\nSee also:\n", r"list.csv:3: row \(See also:\)"),
        ("video_name,caption\nx.mp4,hello\n", r"list.csv:1: row"),
        ("# only\n# comments\n", r"list.csv lists no videos"),
        pytest.param("x" * 200_000, r"list.csv:1: row \(x+\.\.\.\)", id="one long word"),
        pytest.param("a.mp4,,," * 50_000, r"list.csv:1: 150001 columns", id="one long row"),
        ("path,label,label\na.mp4,1,2\n", r"list.csv:1: column label must occur only once"),
        ("video,file\na.mp4,b.mp4\n", r"list.csv:1: column path must occur only once"),
        ("a.mp4\0 3\n", r"list.csv:1: must be UTF-8 text"),
        (
            "path,label\na.mp4,1\nb\0.mp4,1\n",  # which Python 3.10 refuses on its own
            r"list.csv:3: path \(b\\x00.mp4\) must not contain NUL|line contains NUL",
        ),
        ("path,num_frames\na.mp4,99999999999999999999\n", r"list.csv:2: num_frames"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_manifest(_list(tmp_path, text))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize("name", ["README.md", "setup.py", "configs/pretrain/ssv2_base.yaml"])
def test_other_texts_are_no_lists(name: str) -> None:
    with pytest.raises(ValueError, match=r":\d+: row"):
        read_manifest(ROOT / name, labels=False)


@pytest.mark.parametrize("text", ["ä.mp4 1\n", "path,label\nä.mp4,1\n", "path\tlabel\nä.mp4\t1"])
def test_utf_16_is_read_where_the_text_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.csv"
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        mark = "" if encoding == "utf-16" else "\ufeff"
        path.write_bytes((mark + text).encode(encoding))
        assert _rows(read_manifest(path)) == [("ä.mp4", 0, 1)]
    path.write_bytes(text.encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"list\.csv:1: must be UTF-8 text; .* `iconv -f UTF-16LE"):
        read_manifest(path)
    path.write_bytes(text.encode("utf-16") + b"\x00\xd8")
    with pytest.raises(
        ValueError, match=r"list\.csv begins like UTF-16 text, but cannot be decoded"
    ):
        read_manifest(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# path label\na.mp4 1\n  # gone.mp4 2\n#\nb.mp4 0\n", [("a.mp4", 1), ("b.mp4", 0)]),
        ("#made by hand\na.mp4,1\n# x.mp4,2\nb.mp4,0\n", [("a.mp4", 1), ("b.mp4", 0)]),
        ("# made\n\npath,label\n# a.mp4,1\n", [("# a.mp4", 1)]),  # below a header all are rows
        ("#20_a.avi 1\n#b.avi 0\n", [("#20_a.avi", 1), ("#b.avi", 0)]),  # names of HMDB51
        ("a.MP4 1\nb.3gp 0\n", [("a.MP4", 1), ("b.3gp", 0)]),
        ("path,label\nclip_001,1\nframes/2,0\n", [("clip_001", 1), ("frames/2", 0)]),
        ('"a, b.mp4",1\n', [("a, b.mp4", 1)]),
        ("a.mp4 b.mp4 1\n", [("a.mp4 b.mp4", 1)]),
    ],
)
def test_comments_and_odd_names(tmp_path: Path, text: str, expected: list[tuple[str, int]]) -> None:
    manifest = read_manifest(_list(tmp_path, text))
    assert [(name, label) for name, _, label in _rows(manifest)] == expected


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    """A file name is bytes: those of the list are those of the file."""
    name = b"caf\xe9 \xff.mp4"
    for line in (name, b"path,label\n" + name + b",", name + b" 3", name + b"\t3"):
        (tmp_path / "list.csv").write_bytes(line + b"\n")
        manifest = read_manifest(tmp_path / "list.csv")
        assert os.fsencode(manifest.path(0)) == os.fsencode(tmp_path) + b"/" + name
        copy = pickle.loads(pickle.dumps(manifest))
        assert os.fsencode(copy.name(0)) == name
    write_manifest(tmp_path / "out.csv", [{"path": os.fsdecode(name)}])
    assert (tmp_path / "out.csv").read_bytes() == b"path\n" + name + b"\n"


@pytest.mark.parametrize(
    ("labels", "num_classes"),
    [
        ([0, 1, 2], 3),
        ([1, 2, 3], 4),  # counted from 1: a class too many does no harm
        ([0, 11], 12),
        ([-1, -1], 0),
        ([0, 12], None),
        ([11, 12], None),
        ([0, 1, 2, 999999], None),
        ([0, 10**25], None),
    ],
)
def test_a_stray_number_does_not_make_classes(
    tmp_path: Path, labels: list[int], num_classes: int | None
) -> None:
    path = _list(tmp_path, "".join(f"{i}.mp4 {label}\n" for i, label in enumerate(labels)))
    manifest = read_manifest(path)
    if num_classes is not None:
        assert manifest.num_classes == num_classes
        return
    with pytest.raises(ValueError, match=rf"list\.csv:{len(labels)}: label \(\d+\) must") as caught:
        manifest.num_classes  # noqa: B018
    assert "classes.txt" in str(caught.value) and "do not occur" in str(caught.value)
    _list(tmp_path, "run\nwalk\n", "classes.txt")
    with pytest.raises(ValueError, match=r"must be below the number of classes \(2, .*classes.txt"):
        read_manifest(path)


def _in_class_folders(tmp_path: Path, rows: list[tuple[str, int]]) -> Path:
    return _list(tmp_path, "".join(f"{f}/{i}.mp4 {label}\n" for i, (f, label) in enumerate(rows)))


def test_numbers_that_disagree_with_class_folders(tmp_path: Path) -> None:
    _list(tmp_path, "run\nwalk\njump\n", "classes.txt")
    right = [("run", 0), ("walk", 1), ("jump", 2), ("walk", 1), ("jump", 2)]
    assert read_manifest(_in_class_folders(tmp_path, right)).labels.tolist() == [0, 1, 2, 1, 2]
    alphabetical = [("run", 1), ("walk", 2), ("jump", 0)]
    with pytest.raises(
        ValueError, match=r"list.csv:1: label \(1\) must be 0: .*'run'.*another order"
    ):
        read_manifest(_in_class_folders(tmp_path, alphabetical))
    two_swapped = [("run", 0), ("walk", 2), ("jump", 1)]
    with pytest.raises(ValueError, match=r"list.csv:2: label \(2\) must be 1: .*'walk'"):
        read_manifest(_in_class_folders(tmp_path, two_swapped))
    with pytest.raises(ValueError, match=r"list.csv:2: label \(2\) must be 1: .*classes given"):
        read_manifest(_in_class_folders(tmp_path, two_swapped), classes=["run", "walk", "jump"])


@pytest.mark.parametrize(
    "rows",
    [
        [*[("run", 0), ("walk", 1)] * 3, ("walk", 2)],  # moved to a better class by hand
        [("run", 1), ("elsewhere", 2)],  # folders are not the classes
        [("run", 2), ("run", 1), ("run", 1)],  # nor is one folder for all
        [("run", -1), ("walk", -1)],
        [("RUN", 2), ("Walk", 0)],
    ],
)
def test_folders_that_say_nothing_about_labels(tmp_path: Path, rows: list[tuple[str, int]]) -> None:
    _list(tmp_path, "run\nwalk\njump\n", "classes.txt")
    path = _in_class_folders(tmp_path, rows)
    assert read_manifest(path).labels.tolist() == [label for _, label in rows]


def test_class_names_that_cannot_be_read(tmp_path: Path) -> None:
    path = _list(tmp_path, "a.mp4 0\n")
    _list(tmp_path, "\n  \n", "classes.txt")
    with pytest.raises(
        ValueError, match=r"classes\.txt: must have one class name per line, but is empty"
    ):
        read_manifest(path)
    (tmp_path / "classes.txt").write_bytes("\ufeffrün \r\n\r\nwalk\u2028fast\r\n".encode())
    assert read_manifest(path).classes == ("rün", "walk\u2028fast")


def test_names_of_files_are_shown_on_one_line() -> None:
    assert printable("caf\u00e9 \udcff\n") == "caf\u00e9 \\udcff\\n"


def test_damaged_videos_are_used_up_to_a_share(tmp_path: Path) -> None:
    rows = [("a", "ok", 50, 0), ("b", "damaged", 50, 5), ("c", "damaged", 50, 80)]
    rows += [("d", "damaged", "", ""), ("e", "bad", "", ""), ("f", "damaged", 50, 6)]
    lines = [f"{name}.mp4,{frames},{status},{damaged}" for name, status, frames, damaged in rows]
    path = _list(tmp_path, "path,num_frames,status,damaged\n" + "\n".join(lines) + "\n")

    def used(**settings: float) -> str:
        manifest = read_manifest(path, **settings)
        return "".join(manifest.name(index)[0] for index in range(len(manifest)))

    assert used() == used(max_damage=1.0) == "abcdf"  # however much is damaged
    assert used(max_damage=0.99) == used(max_damage=0.12) == "abf"
    assert used(max_damage=0.1) == "ab"
    assert used(max_damage=0) == "a"
    others, note = read_manifest(path).notes
    assert others == "1 videos are left out because of their status: bad (1)"
    assert note.startswith("4 videos have damaged frames")
    _, used_note, other = read_manifest(path, max_damage=0.1).notes
    assert used_note.startswith("1 videos have damaged") and "3 videos are left out" in other
    assert "data.max_damage (0.1)" in other
    path.write_text("path,num_frames,status,damaged\na.mp4,9,damaged,some\n")
    with pytest.raises(ValueError, match=r"list.csv:2: damaged \(some\) must be an integer"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            [0, -1, 1, -1],
            r"label \(none\) of .*b.mp4 must be in \[0, 1\], .*remove its row \(and 1",
        ),
        (
            [1, 2, 1, 1],
            r"label \(2\) of .*b.mp4 .*the model: labels count from 0, but no label is 0$",
        ),
        ([0, 2, 2, 1], r"label \(2\) of .*b.mp4 .*: labels count from 0 \(and 1 more rows\)$"),
    ],
)
def test_labels_that_a_model_does_not_have(tmp_path: Path, labels: list[int], said: str) -> None:
    rows = "".join(f"{name}.mp4,{label}\n" for name, label in zip("abcd", labels, strict=True))
    with pytest.raises(ValueError, match=said):
        check_labels(read_manifest(_list(tmp_path, rows)), 2)


def test_lists_under_a_wrong_root_are_refused_with_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    (tmp_path / "videos").mkdir()
    names = [f"{k}.mp4" for k in range(45)]
    listed = _list(tmp_path / "lists", "".join(f"{name} 0\n" for name in names))
    absolute = _list(tmp_path, "/no/a.mp4 0\n", name="absolute.csv")

    def fault() -> str:
        with pytest.raises(ValueError) as caught:
            check_some_exist(read_manifest([listed, absolute]), option="data.root=")
        return str(caught.value)

    here, there = fault().split("; list ")  # all faults at once
    assert here == (
        f"list ({listed}) must name videos that exist, but none of the 15 checked exists, for "
        f"example {listed.parent / '0.mp4'}; add data.root=DIR, with the folder that contains 0.mp4"
    )
    assert there.startswith(f"({absolute})") and there.endswith("hpm-video data list")
    (tmp_path / "videos" / "42.mp4").touch()  # every third is looked for
    assert f"; set data.root={tmp_path / 'videos'}" in fault()
    manifest = read_manifest(listed, root=str(tmp_path / "videos"))
    check_some_exist(manifest)
    (tmp_path / "videos" / "42.mp4").rename(tmp_path / "videos" / "41.mp4")
    with pytest.raises(ValueError, match="root=DIR"):
        check_some_exist(manifest)


def test_what_is_not_looked_for_is_not_missing(tmp_path: Path) -> None:
    remote = _list(tmp_path, "memory://bucket/a.mp4 0\nmemory://bucket/b.mp4 1\n")
    check_some_exist(read_manifest(remote))
    with tarfile.open(tmp_path / "videos.tar", "w") as tar:
        tar.add(remote, "a.mp4")
    check_some_exist(read_manifest(_list(tmp_path, "videos.tar/a.mp4 0\n", name="tar.csv")))


@pytest.mark.parametrize(
    ("names", "folder"),
    [
        (("wave/a.mp4", "clap/b.mp4"), "."),
        (("wave/one/a.mp4", "clap/two/b.mp4"), "."),
        (("wave/a.mp4", "wave/b.mp4"), "wave"),  # to be sorted into folders there
        (("train/a.mp4", "val/b.mp4"), None),  # splits, which are no classes
        (("train/wave/a.mp4", "val/clap/b.mp4"), None),
        (("anna/wave/a.mp4", "bert/wave/b.mp4"), None),  # persons or classes
        (("wave/a.mp4", "b.mp4"), None),
    ],
)
def test_labels_come_from_the_folders_only_where_these_are_certainly_classes(
    tmp_path: Path, names: tuple[str, ...], folder: str | None
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    manifest = read_manifest(_list(tmp_path, "path\n" + "".join(f"{name}\n" for name in names)))
    place = "DIR" if folder is None else os.path.normpath(tmp_path / folder)
    with pytest.raises(ValueError, match=rf"data list --folder {place} -o labelled\.csv"):
        require_labels(manifest, name="data.manifest", lists=["list.csv"])
