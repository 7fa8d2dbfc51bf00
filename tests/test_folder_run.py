"""`detector test` on several images: sources, one result for each, and nothing that is lost or replaced unnoticed."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from gpudarknet import image
from gpudarknet.cli import main
from gpudarknet.cli.outputs import joined
from gpudarknet.errors import ImageError
from gpudarknet.io.text import UniqueNames

TEST = ["detector", "test", "tiny.data", "tiny.cfg", "tiny.weights"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in a folder with a tiny detector and pics/: a.png, b.png and sub/a.png, each with 3 objects, and no_image.txt."""
    tiny.files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")
    for name in ("a.png", "b.png", "sub/a.png"):
        (tmp_path / "pics" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("tiny.png", tmp_path / "pics" / name)
    (tmp_path / "pics" / "no_image.txt").write_text("x")
    return tmp_path


def tree(name: str) -> list[str]:
    return sorted(path.relative_to(name).as_posix() for path in Path(name).rglob("*") if path.is_file())


def images(text: str) -> list[str]:
    """Return the images whose objects were printed."""
    return re.findall(r"^(.*): Predicted in [\d.]+ milli-seconds\.$", text, re.MULTILINE)


def summary(err: str) -> str:
    """Return what is printed at the end, without the rate."""
    return re.sub(r"[\d.]+ images/s( \(numpy [\d.]+, fp32\))?", "R images/s", err)


@pytest.mark.parametrize("batch", ["1", "2", "8"])
def test_a_folder(capsys, batch):
    assert main([*TEST, "pics", "-out_dir", "found", "-batch", batch]) == 0
    out, err = capsys.readouterr()
    assert images(out) == ["pics/a.png", "pics/b.png"] and out.count("cat: 86%") == 2
    assert summary(err) == "2 images, R images/s\n"
    assert tree("found") == ["a.jpg", "b.jpg"] and not Path("predictions.jpg").exists()
    assert main([*TEST, "pics/a.png"]) == 0
    assert Path("found/a.jpg").read_bytes() == Path("predictions.jpg").read_bytes()


def test_subfolders_and_reruns(capsys):
    assert main([*TEST, "pics", "-recursive", "-out_dir", "found"]) == 0
    assert tree("found") == ["a.jpg", "b.jpg", "sub/a.jpg"]
    assert images(capsys.readouterr().out) == ["pics/a.png", "pics/b.png", "pics/sub/a.png"]
    assert main([*TEST, "pics", "-recursive", "-out_dir", "found"]) == 0
    assert tree("found") == ["a.jpg", "b.jpg", "sub/a.jpg"]
    assert summary(capsys.readouterr().err) == "3 images, R images/s\nnote: files replaced: 3\n"


def test_equal_names_are_numbered(capsys):
    shutil.copy("tiny.png", "pics/a.bmp.png")
    image.write("pics/A.bmp", tiny.image())
    assert main([*TEST, "pics", "pics/sub/a.png", "pics/*/a.png", "-out_dir", "found", "-crops", "crops"]) == 0
    assert tree("found") == ["A.jpg", "a.bmp.jpg", "a_2.jpg", "a_3.jpg", "b.jpg", "sub/a.jpg"]
    assert len(tree("crops")) == 6 * 3
    assert {name.rsplit("_", 2)[0] for name in tree("crops")} == {name.removesuffix(".jpg") for name in tree("found")}


def test_several_images_without_out_dir_are_not_drawn(capsys):
    for words in (["pics"], ["tiny.png", "pics/a.png"], ["pics/*.png"]):
        assert main([*TEST, *words]) == 0
        note = "note: of several images, none is drawn; -out_dir FOLDER draws each\n"
        assert summary(capsys.readouterr().err) == f"{note}2 images, R images/s\n"
    assert not Path("predictions.jpg").exists()


def test_patterns_and_lists(capsys):
    Path("list.txt").write_text("pics/b.png\n./tiny.png\nmissing.png\n")
    assert main([*TEST, "list.txt", "pics/**/a.*", "./tiny.png", "-out_dir", "found"]) == 2
    out, err = capsys.readouterr()
    assert images(out) == ["pics/b.png", "tiny.png", "pics/a.png", "pics/sub/a.png", "./tiny.png"]  # as given
    assert summary(err) == "error: missing.png: no such file; check the path\n5 images, R images/s, 1 error\n"
    assert tree("found") == ["a.jpg", "b.jpg", "sub/a.jpg", "tiny.jpg", "tiny_2.jpg"]


def test_sources_without_images_are_reported_and_passed_over(capsys):
    Path("empty").mkdir()
    assert main([*TEST, "empty", "no/*.jpg", "ftp://h/x.jpg", "pics/a.png", "-out_dir", "found"]) == 2
    out, err = capsys.readouterr()
    assert images(out) == ["pics/a.png"] and tree("found") == ["a.jpg"]
    assert summary(err).splitlines() == [
        "error: empty: has no image; found nothing",
        "error: no/*.jpg: matches no image; found nothing",
        "error: ftp://h/x.jpg: is no http or https address; download the file and give its path",
        "1 image, R images/s, 3 errors",
    ]


def test_results_are_not_taken_for_images(capsys):
    for _ in range(2):
        assert main([*TEST, ".", "-recursive", "-out_dir", "found", "-crops", "pics/sub/crops"]) == 0
        assert images(capsys.readouterr().out) == ["tiny.png", "pics/a.png", "pics/b.png", "pics/sub/a.png"]
    before = {path: Path("pics", path).read_bytes() for path in tree("pics")}
    assert main([*TEST, "pics", "-out_dir", "pics"]) == 2
    assert capsys.readouterr().err == "error: pics: the results are written there; choose another folder for them\n"
    assert main([*TEST, "pics/*.png", "-out_dir", "./pics/"]) == 2
    assert {path: Path("pics", path).read_bytes() for path in tree("pics")} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("pics/x.jpg -out_dir pics", "pics/x.jpg: could be replaced by a result; choose another -out_dir"),
        ("tiny.png pics/x.png pics/x.jpg -out_dir .", "pics/x.jpg: could be replaced by a result; choose another -out_dir"),
        ("x.txt -out_dir pics", "pics/x.jpg: would be replaced by its result; choose another -out_dir"),
        ("predictions.jpg", "predictions.jpg: would be replaced by its result; use -out_dir"),
        ("pics -csv pics/x.jpg", "-csv pics/x.jpg: is a text file, not an image; -out_dir FOLDER writes images"),
        ("pics x.txt -coco ./x.txt", "./x.txt: is a file that the command reads; write the result to another one"),
        ("pics -out tiny.cfg", "tiny.cfg: is a file that the command reads; write the result to another one"),
    ],
)  # fmt: skip
def test_what_is_read_is_not_replaced(words, message, capsys):
    for name in ("pics/x.jpg", "pics/x.png", "predictions.jpg"):
        image.write(name, tiny.image())
    Path("x.txt").write_text("pics/x.jpg\n")
    before = {name: Path(name).read_bytes() for name in tree(".")}
    assert main([*TEST, *words.split()]) == 2
    assert f"error: {message}" in capsys.readouterr().err.splitlines()
    assert {name: Path(name).read_bytes() for name in tree(".")} == before


def test_an_image_that_would_be_replaced_is_passed_over(capsys):
    image.write("pics/x.jpg", tiny.image())
    Path("x.txt").write_text("pics/x.jpg\ntiny.png\n")
    assert main([*TEST, "x.txt", "-out_dir", "pics", "-csv", "x.csv"]) == 2
    assert summary(capsys.readouterr().err).endswith("2 images, R images/s, 1 error\n")
    assert Path("pics/tiny.jpg").exists() and Path("x.csv").read_text().count("tiny.png") == 3


def test_a_url_that_is_not_read_does_not_end_its_list(capsys):
    Path("x.txt").write_text("ftp://h/x.jpg\ntiny.png\n")
    assert main([*TEST, "x.txt"]) == 2
    assert images(capsys.readouterr().out) == ["tiny.png"]


def test_labels_of_two_images_are_not_mixed(capsys):
    image.write("pics/a.bmp", np.zeros((32, 64, 3), np.uint8))
    assert main([*TEST, "pics", "-save_labels"]) == 2
    assert summary(capsys.readouterr().err).splitlines() == [
        "error: pics/a.png: its labels would replace those of another image, pics/a.txt; rename one of the two",
        "3 images, R images/s, 1 error",
    ]
    assert Path("pics/a.txt").read_text() == "" and len(Path("pics/b.txt").read_text().splitlines()) == 2
    assert main([*TEST, "pics/b.png", "-save_labels"]) == 0
    assert capsys.readouterr().err == "note: files replaced: 1\n"


def test_files_of_all_images(capsys):
    assert main([*TEST, "pics", "-out", "a.json", "-csv", "a.csv", "-coco", "a_coco.json"]) == 0
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "warning: pics/b.png: has the image_id 0 of another image; names should end in numbers"
    assert [entry["filename"] for entry in json.loads(Path("a.json").read_text())] == ["pics/a.png", "pics/b.png"]
    with open("a.csv", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["pics/a.png"] * 3 + ["pics/b.png"] * 3
    assert len(json.loads(Path("a_coco.json").read_text())) == 6


@pytest.mark.parametrize("flag", ["-out", "-csv", "-coco"])
def test_standard_output(flag, capsys, monkeypatch):
    words = [*TEST, "pics", flag]
    assert main([*words, "file"]) == 0
    capsys.readouterr()
    assert main([*words, "-"]) == 0
    assert capsys.readouterr().out == Path("file").read_text() and not Path("-").exists()
    monkeypatch.setattr(sys, "stdin", io.StringIO("pics/a.png\npics/b.png\n"))
    assert main([*TEST, flag, "-"]) == 0
    out, err = capsys.readouterr()
    assert out == Path("file").read_text() and err.startswith("Enter Image Path: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-out - -csv -", "-out - and -csv -: only one can be on standard output; write a file instead"),
        ("-csv - -table", "-csv - and -table: only one can be on standard output; write a file instead"),
        ("-out a.json -coco ./a.json", "-out and -coco: would be one file; give each its own"),
        ("-batch 0", "detector test: -batch needs an integer from 1 to 1024, got '0'"),
        ("-max_det 0", "detector test: -max_det needs an integer from 1 to 2147483648, got '0'"),
    ],
)
def test_flags_that_exclude_each_other(flags, message, capsys):
    before = tree(".")
    assert main([*TEST, "pics", *flags.split()]) == 2
    assert capsys.readouterr() == ("", f"error: {message}\n") and tree(".") == before


def test_max_det(capsys, monkeypatch):
    assert main([*TEST, "pics/a.png", "-max_det", "1", "-out", "a.json", "-csv", "a.csv", "-crops", "crops"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["cat: 86%"]
    assert len(json.loads(Path("a.json").read_text())[0]["objects"]) == 1
    assert len(Path("a.csv").read_text().splitlines()) == 2 and tree("crops") == ["a_1_cat.png"]
    monkeypatch.setattr("gpudarknet.cli.detector.MAX_DET", 2)  # in formats that are not Darknet's
    assert main([*TEST, "pics/a.png", "-out", "a.json", "-csv", "a.csv", "-coco", "coco.json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert len(json.loads(Path("a.json").read_text())[0]["objects"]) == 3
    assert len(Path("a.csv").read_text().splitlines()) == 3 and len(json.loads(Path("coco.json").read_text())) == 3


def test_tiles_of_several_images(capsys):
    assert main([*TEST, "pics", "-tiles", "-batch", "2"]) == 0
    assert images(capsys.readouterr().out) == ["pics/a.png", "pics/b.png"]


def test_an_interrupted_run_keeps_its_results(capsys, monkeypatch):
    from gpudarknet import Detector

    to_detections, calls = Detector.to_detections, []

    def interrupt(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return to_detections(*args, **options)

    monkeypatch.setattr(Detector, "to_detections", interrupt)
    assert main([*TEST, "pics", "-out_dir", "found", "-out", "a.json", "-csv", "a.csv", "-coco", "coco.json"]) == 130
    assert summary(capsys.readouterr().err) == "1 image, R images/s\n"
    assert len(json.loads(Path("a.json").read_text())) == 1 and len(json.loads(Path("coco.json").read_text())) == 3
    assert len(Path("a.csv").read_text().splitlines()) == 4 and tree("found") == ["a.jpg"]


def test_a_closed_pipe_keeps_the_results(capsys, monkeypatch):
    class Pipe(io.StringIO):
        def write(self, text):
            if text.startswith("pics/b.png"):
                raise BrokenPipeError(32, "Broken pipe")
            return super().write(text)

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

    monkeypatch.setattr(sys, "stdout", Pipe())
    assert main([*TEST, "pics", "-csv", "a.csv"]) == 2
    assert summary(capsys.readouterr().err) == "1 image, R images/s\n"
    assert len(Path("a.csv").read_text().splitlines()) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="has no such links and pipes")
def test_links_and_pipes_are_written_through():
    assert main([*TEST, "pics", "-csv", "real.csv"]) == 0
    expected = Path("real.csv").read_text()
    for content in (True, False):
        Path("link.csv").symlink_to("real.csv")
        if not content:
            Path("real.csv").unlink()
        assert main([*TEST, "pics", "-csv", "link.csv"]) == 0
        assert Path("link.csv").is_symlink() and Path("real.csv").read_text() == expected
        Path("link.csv").unlink()
    os.mkfifo("pipe.csv")
    reader = os.open("pipe.csv", os.O_RDONLY | os.O_NONBLOCK)
    assert main([*TEST, "pics", "-csv", "pipe.csv"]) == 0
    assert os.read(reader, 1 << 16).decode() == expected and Path("pipe.csv").is_fifo()
    os.close(reader)


def test_a_run_that_fails_leaves_no_partial_file(capsys, monkeypatch):
    Path("a.csv").write_text("old")
    Path("found/b.jpg").mkdir(parents=True)  # where an image belongs
    assert main([*TEST, "pics", "-out_dir", "found", "-csv", "a.csv", "-out", "a.json"]) == 2
    assert capsys.readouterr().err.startswith("error: found/b.jpg: cannot be written")
    assert Path("a.csv").read_text() == "old" and tree("found") == ["a.jpg"]
    assert not any(path.startswith(".") or path == "a.json" for path in tree("."))


def test_lines_of_standard_input_are_answered_one_by_one(monkeypatch):
    """A program that writes a path waits for its answer before it writes the next."""
    asked = []

    class Lines(io.StringIO):
        def readline(self):
            asked.append(Path("answers").read_text().count("Predicted"))
            return super().readline()

    monkeypatch.setattr(sys, "stdin", Lines("pics/a.png\npics\n"))
    with open("answers", "w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert main(TEST) == 0
    assert asked == [0, 1, 3] and Path("predictions.jpg").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 or UTF-16 elsewhere")
def test_names_that_are_not_utf8(capsys):
    """As an archive from another system unpacks them; OpenCV crashes on such strings."""
    names = [b"caf\xe9", b"\xff.\xfe"]
    for name in names:
        shutil.copy("tiny.png", b"pics/sub/" + name + b".png")
    image.check(os.fsdecode(b"pics/sub/caf\xe9.png"))
    assert main([*TEST, "pics/sub", "-out_dir", "found", "-crops", "crops", "-csv", "x.csv", "-save_labels"]) == 0
    assert {os.fsencode(path).removesuffix(b".jpg") for path in tree("found")} == {b"a", *names}
    assert len(tree("crops")) == 9 and Path("x.csv").read_bytes().count(b"caf\xe9.png") == 3
    with pytest.raises(ImageError, match="cannot write"):
        image.write(os.fsdecode(b"x.p\xffng"), tiny.image())


def test_lines_of_standard_input_as_windows_pipes_them(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffpics/a.png \r\n\r\npics/b.png\r\n"))
    assert main(TEST) == 0
    assert capsys.readouterr().out.count("Predicted in") == 2


def test_a_local_server_is_read_only_if_allowed(capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "gpudarknet.image.read",
        lambda path, channels: seen.append(os.environ.get("GPUDARKNET_ALLOW_PRIVATE_URLS")) or tiny.image(),
    )
    monkeypatch.setattr(
        "gpudarknet.image.as_image",
        lambda path, channels: seen.append(os.environ.get("GPUDARKNET_ALLOW_PRIVATE_URLS")) or tiny.image(),
    )
    monkeypatch.delenv("GPUDARKNET_ALLOW_PRIVATE_URLS", raising=False)
    url = "http://127.0.0.1/photos/my%20cat.jpg?size=3"
    for flags in ([], ["-allow_private"], []):
        assert main([*TEST, url, "-out_dir", "found", *flags]) == 0
    assert seen == [None, "1", None] and tree("found") == ["my cat.jpg"]


def test_classifiers_take_sources_too(capsys):
    Path("class.cfg").write_text(
        "[net]\nwidth=4\nheight=2\nchannels=3\n[avgpool]\n[connected]\noutput=3\nactivation=linear\n[softmax]\n"
    )
    Path("class.names").write_text("one\ntwo\nthree\n")
    Path("class.data").write_text("names=class.names\n")
    Path("class.weights").write_bytes(Path("tiny.weights").read_bytes()[:20] + bytes(48))
    assert (
        main(["classifier", "predict", "class.data", "class.cfg", "class.weights", "pics", "none/*.jpg", "-recursive"])
        == 2
    )
    out, err = capsys.readouterr()
    assert images(out) == ["pics/a.png", "pics/b.png", "pics/sub/a.png"]
    assert err == "error: none/*.jpg: matches no image; found nothing\n"


def test_unique_names():
    unique = UniqueNames()
    assert [unique(name) for name in ["a", "b", "a", "A", "a_2", "a"]] == ["a", "b", "a_2", "A_3", "a_2_2", "a_4"]


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "b", "c"]])
def test_joined(texts):
    with joined(Path("file"), "[", ", ", "]") as append:
        for text in texts:
            append(text)
    assert Path("file").read_text() == f"[{', '.join(texts)}]"
