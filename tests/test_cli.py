"""The command line: what it prints and writes, and that no input causes a traceback."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny

import gpudarknet
from gpudarknet import __version__, cli
from gpudarknet.cli import main
from gpudarknet.cli.arguments import DARKNET_COMMANDS

RUN = ["detector", "test", "tiny.data", "tiny.cfg", "tiny.weights", "tiny.png"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run in an empty folder with the tiny detector's files, on NumPy."""
    tiny.files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPUDARKNET_BACKEND", "numpy")
    monkeypatch.setenv("GPUDARKNET_CACHE", str(tmp_path / "cache"))
    return tmp_path


def results(text: str) -> list[str]:
    """Return printed lines, without the inference time."""
    return [line.split("Predicted in")[0] for line in text.splitlines()]


def error_of(capsys, *words: str) -> str:
    """Run a command that must fail: exit code 2, one line of error, nothing on stdout, nothing written. Return the line."""
    before = sorted(Path.cwd().rglob("*"))
    assert main(words) == 2
    out, err = capsys.readouterr()
    *before_it, last = err.splitlines()
    assert out == "" and all(line.startswith("warning: ") for line in before_it) and last.startswith("error: "), (
        out,
        err,
    )
    assert sorted(Path.cwd().rglob("*")) == before
    return last.removeprefix("error: ")


def test_log_messages_are_printed_while_a_command_runs(capsys, monkeypatch):
    logger = logging.getLogger("gpudarknet")
    before = logger.level, list(logger.handlers)
    monkeypatch.setattr(cli, "run", lambda words: logger.info("compiling CUDA kernels %s", "plan\nfor float16") or 0)
    assert main(["info"]) == 0
    assert capsys.readouterr() == ("", "info: compiling CUDA kernels plan for float16\n")
    assert (logger.level, logger.handlers) == before


def test_detector_test_prints_as_darknet_does(capsys):
    assert main(RUN) == 0
    out, err = capsys.readouterr()
    assert results(out) == ["tiny.png: ", "dog: 46%", "cat: 45%", "cat: 86%"] and err == ""
    assert out.splitlines()[0].endswith(" milli-seconds.")
    assert cv2.imread("predictions.jpg").shape == (32, 64, 3)


def test_ext_output_prints_pixels(capsys):
    assert main([*RUN, "-ext_output"]) == 0
    first, second = (
        "(left_x:   14   top_y:    3   width:   20   height:   10)",
        "(left_x:   46   top_y:   19   width:   20   height:   10)",
    )
    assert results(capsys.readouterr().out)[1:] == [f"dog: 46%\t{first}", f"cat: 45%\t{first}", f"cat: 86%\t{second}"]


def test_out_writes_darknets_json(capsys):
    assert main([*RUN, "-out", "result.json"]) == 0
    box = '"relative_coordinates":{"center_x":0.375000, "center_y":0.250000, "width":0.312500, "height":0.312500}'
    last = '"relative_coordinates":{"center_x":0.875000, "center_y":0.750000, "width":0.312500, "height":0.312500}'
    assert Path("result.json").read_text() == (
        '[\n{\n "frame_id":1, \n "filename":"tiny.png", \n "objects": [ \n'
        f'  {{"class_id":0, "name":"cat", {box}, "confidence":0.451594}}, \n'
        f'  {{"class_id":1, "name":"dog", {box}, "confidence":0.455150}}, \n'
        f'  {{"class_id":0, "name":"cat", {last}, "confidence":0.864955}}\n'
        " ] \n}\n]"
    )


def test_json_is_valid_whatever_the_names_are(capsys):
    Path("tiny.names").write_text('say "cat"\nback\\slash\n')
    cv2.imwrite("black.png", np.zeros((9, 7, 3), np.uint8))
    assert main([*RUN, "black.png", "-out", "result.json"]) == 0
    whole, empty = json.loads(Path("result.json").read_text())
    assert [o["name"] for o in whole["objects"]] == ['say "cat"', "back\\slash", 'say "cat"']
    assert empty == {"frame_id": 2, "filename": "black.png", "objects": []}


def test_save_labels_writes_next_to_the_image(folder):
    (folder / "images" / "val2017").mkdir(parents=True)
    (folder / "labels" / "val2017").mkdir(parents=True)
    os.rename("tiny.png", "images/val2017/a.b.png")
    assert main([*RUN[:-1], str(folder / "images/val2017/a.b.png"), "-save_labels"]) == 0
    text = (folder / "labels/val2017/a.b.txt").read_text()
    assert text == "1 0.3750 0.2500 0.3125 0.3125\n0 0.8750 0.7500 0.3125 0.3125\n"


def test_flags_can_be_anywhere_with_any_dashes(capsys):
    words = ["detector", "test", "--thresh=0.5", "tiny.data", "-ext-output", "tiny.cfg", "--dontshow", "tiny.weights"]
    assert main([*words, "-nms", "0", "tiny.png", "-hier", ".5", "-i", "0", "-backend", "numpy"]) == 0
    assert results(capsys.readouterr().out)[1:] == [
        "cat: 86%\t(left_x:   46   top_y:   19   width:   20   height:   10)"
    ]


# Every find_arg, find_int_arg, find_float_arg and find_char_arg of main, run_detector and run_classifier (src/darknet.c,
# detector.c, classifier.c)
DARKNET_FLAGS = """
-dont_show -benchmark -benchmark_layers -show -letter_box -map -points 0 -show_imgs -mjpeg_port 8090 -avgframes 3 -dontdraw_bbox
-json_port 8070 -http_post_host localhost -time_limit_sec 0 -out_filename x.avi -json_file_output x.json -out x.json
-prefix x -thresh .25 -iou_thresh .5 -hier .5 -c 0 -s 0 -num_of_clusters 5 -width 416 -height 416 -ext_output -save_labels
-chart x.png -mAP_epochs 4 -gpus 0 -clear -i 0 -cuda_debug_sync -dontuse_opencv -topk -t 0
""".split()


@pytest.mark.parametrize(
    "name", [command.name for command in cli.commands() if command.name.split()[0] in DARKNET_COMMANDS]
)
def test_darknets_flags_are_accepted_by_all_its_commands(name):
    command, _ = cli.find(name.split())
    positionals = [word for word in command.positionals if "..." not in word and word != "[video]"]
    args = cli.parse(command, [*DARKNET_FLAGS, *positionals])
    assert args.positionals == positionals
    for flag in command.flags:
        if flag.kind is bool and f"-{flag.name}" in DARKNET_FLAGS:
            assert getattr(args, flag.name) is True
    given = {word.lstrip("-") for word in DARKNET_FLAGS if word.startswith("-")} - {"dont_show"}
    noted = {note.split(": -")[1].split(" has no effect")[0] for note in args.notes}
    assert noted == given - {flag.name for flag in command.flags}


@pytest.mark.parametrize(
    ("words", "clear", "map_", "notes"),
    [
        ("-clear -map", True, True, []),
        ("-clear 1 -map 0", True, False, []),
        ("-clear=1 -map=0", True, False, []),
        ("-clear 0", False, False, []),
        ("-map 0.1", False, True, ["-map takes no value; 0.1 is ignored"]),
        ("-map=0.1 -clear -1", True, True, ["-map takes no value; 0.1 is ignored", "-clear takes no value; -1 is ignored"]),
        ("-MAP -Clear", True, True, []),
        ("-map\r -clear\r\n", True, True, []),
        ("-dont_show 1 -map", False, True, []),
        ("-mjpeg_port 8090 -map", False, True, ["-mjpeg_port has no effect; there is no server"]),
        ("-mjpeg-port=8090 -ext_output 1", False, False,
         ["-mjpeg_port has no effect; there is no server", "-ext_output has no effect"]),
    ],
)  # fmt: skip
def test_flags_that_take_no_value(words, clear, map_, notes):
    command, _ = cli.find(["detector", "train"])
    for argv in ([*words.split(" "), "x.data", "x.cfg\r"], ["x.data", "x.cfg", *words.split(" "), "\r"]):
        args = cli.parse(command, argv)
        assert (args.positionals, args.clear, args.map) == (["x.data", "x.cfg"], clear, map_)
        assert args.notes == [f"detector train: {note}" for note in notes]


def test_a_flag_without_effect_is_noted(capsys):
    assert main([*RUN, "-mjpeg_port", "8090", "-dont_show", "-hier", ".5", "-thresh", ".5\r"]) == 0
    out, err = capsys.readouterr()
    assert results(out)[1:] == ["cat: 86%"]
    assert err.splitlines() == [
        "note: detector test: -mjpeg_port has no effect; there is no server",
        "note: detector test: -hier has no effect; as in Darknet",
    ]


def test_letter_box_keeps_the_aspect_ratio(capsys):
    cv2.imwrite("square.png", np.full((64, 64, 3), (0, 0, 255), np.uint8))
    assert main([*RUN[:-1], "square.png", "-letter_box", "-ext_output", "-thresh", ".5"]) == 0
    # 32 x 32 of the 64 x 32 pixels are image, so a box of 20 x 10 is 40 x 20; the first column's cells see gray
    places = [f"(left_x: {left:4}   top_y: {top:4}" for left in (-4, 28) for top in (6, 38)]
    lines = results(capsys.readouterr().out)[1:]
    assert lines == [f"cat: 86%\t{place}   width:   40   height:   20)" for place in places]


def test_paths_come_from_standard_input(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("tiny.png\n\nmissing.png\ntiny.png\r\n"))
    assert main(RUN[:-1]) == 2
    out, err = capsys.readouterr()
    assert out.count("Enter Image Path: ") == 5 and out.count("cat: 86%") == 2
    assert err.splitlines() == [
        "error: missing.png: no such file; check the path",
        "note: predictions.jpg shows the last image only; -out_dir FOLDER writes one for each",
    ]


def test_an_unreadable_image_is_skipped(capsys):
    Path("bad.png").write_bytes(b"not an image")
    assert main([*RUN, "bad.png", "tiny.png", "-out", "result.json"]) == 2
    out, err = capsys.readouterr()
    assert out.count("cat: 86%") == 2 and err.splitlines()[0].startswith("error: bad.png: ")
    assert (
        re.fullmatch(r"2 images, [\d.]+ images/s \(numpy [\d.]+, fp32\), 1 error", err.splitlines()[1])
        and len(err.splitlines()) == 2
    )
    assert [image["frame_id"] for image in json.loads(Path("result.json").read_text())] == [1, 3]


def test_hidden_classes_are_not_shown(capsys):
    Path("tiny.names").write_text("cat\ndont_show dog\n")
    assert main([*RUN, "-out", "result.json"]) == 0
    assert results(capsys.readouterr().out)[1:] == ["cat: 45%", "dont_show dog: 46%", "cat: 86%"]
    assert "dog" not in Path("result.json").read_text()


def test_detect_uses_cocos_names_and_its_own_threshold(capsys):
    assert main(["detect", "tiny.cfg", "tiny.weights", "tiny.png", "-thresh", ".4"]) == 0
    assert results(capsys.readouterr().out)[1:] == ["bicycle: 46%", "person: 45%", "person: 86%"]
    main(["detect", "--help"])
    assert "default 0.24" in " ".join(capsys.readouterr().out.split())


def test_classifier_predict_prints_the_best_classes(capsys):
    Path("class.cfg").write_text(
        "[net]\nwidth=4\nheight=2\nchannels=3\n[avgpool]\n[connected]\noutput=3\nactivation=linear\n[softmax]\n"
    )
    Path("class.names").write_text("one\ntwo\nthree\n")
    Path("class.data").write_text("labels=class.names\ntop=2\n")
    bias, kernel = np.log(np.array([0.25, 0.125, 0.625], "<f4")), np.zeros(9, "<f4")
    Path("class.weights").write_bytes(Path("tiny.weights").read_bytes()[:20] + bias.tobytes() + kernel.tobytes())
    words = ["classifier", "predict", "class.data", "class.cfg", "class.weights", "tiny.png"]
    assert main(words) == 0
    assert results(capsys.readouterr().out) == ["tiny.png: ", "three: 0.625000", "one: 0.250000"]
    assert main([*words, "-t", "1"]) == 0
    assert results(capsys.readouterr().out)[1:] == ["three: 0.625000"]
    assert main(["classify", *words[3:]]) == 0
    assert results(capsys.readouterr().out)[1:] == ["class 2: 0.625000", "class 0: 0.250000", "class 1: 0.125000"]


def test_table_accepts_a_path_or_a_bundled_name(capsys):
    assert main(["table", "yolov4-tiny"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == ["Total BFLOPS 6.910 ", "avg_outputs = 310203"]
    assert main(["table", "tiny.cfg"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("   0 conv ")


def test_partial_writes_the_first_layers(capsys):
    assert main(["partial", "tiny.cfg", "tiny.weights", "tiny.conv.1", "1"]) == 0
    assert Path("tiny.conv.1").read_bytes() == Path("tiny.weights").read_bytes()
    assert capsys.readouterr().out == "tiny.conv.1: 1 layers\n"
    assert (
        error_of(capsys, "partial", "tiny.cfg", "tiny.weights", "out", "7") == "partial: tiny.cfg has 2 layers, not 7"
    )
    assert error_of(capsys, "partial", "tiny.cfg", "tiny.weights", "out", "0").startswith(
        "partial: N must be a number of layers"
    )


def test_info_says_why_there_is_no_gpu(capsys):
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert out.split()[:2] == ["gpudarknet", __version__] and "\nbackend " in out and "\nGPU " in out


def test_weights_lists_pretrained_weights(capsys):
    assert main(["weights"]) == 0
    assert "yolov4-tiny" in capsys.readouterr().out
    assert error_of(capsys, "weights", "yolov4-tinny") == (
        "no pretrained weights 'yolov4-tinny'; did you mean 'yolov4-tiny'?; available: darknet19, darknet53, resnet50, yolov2,"
        " yolov2-tiny, yolov2-voc, yolov3, yolov3-spp, yolov3-tiny, yolov4, yolov4-csp, yolov4-tiny, yolov7-tiny"
    )
    assert error_of(capsys, "detect", "yolov4-tiny", "yolov4-tiny.weights", "tiny.png") == (
        "yolov4-tiny.weights: no such file; use the name yolov4-tiny, which downloads it on first use"
    )


def test_help_and_version(capsys):
    for words in ([], ["help"], ["--help"]):
        assert main(words) == 0
        assert "classifier predict" in capsys.readouterr().out
    for words in (["detector", "test", "-h"], ["help", "detector", "test"]):
        assert main(words) == 0
        assert "-ext_output" in capsys.readouterr().out
    assert main(["help", "detector", "map"]) == 0
    assert "letter_box in [net] decides" in " ".join(capsys.readouterr().out.split())
    for words in (["version"], ["--version"]):
        assert main(words) == 0
        assert capsys.readouterr().out == f"gpudarknet {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("detect tiny.cfg tiny.weights tiny.png -treshold .3", "detect: no flag '-treshold'; did you mean '-thresh'?"),
        ("table tiny.cfg --zzz", "table: no flag '--zzz'; it has none"),
        ("detect tiny.cfg tiny.weights -thresh", "detect: -thresh needs a value"),
        ("detect tiny.cfg tiny.weights -csv=", "detect: -csv needs a value, got an empty one"),
        ("detect tiny.cfg tiny.weights -thresh much", "detect: -thresh needs a number from 0 to 1, got 'much'"),
        ("detect tiny.cfg tiny.weights -thresh nan", "detect: -thresh needs a number from 0 to 1, got 'nan'"),
        ("detect tiny.cfg tiny.weights -i 1.5", "detect: -i needs an integer, got '1.5'"),
        ("detect tiny.cfg tiny.weights -dont_show=yes", "detect: -dont_show is 0 or 1, got 'yes'"),
        ("detect tiny.cfg tiny.weights -mjpeg_port", "detect: -mjpeg_port needs a value"),
        ("detect tiny.cfg tiny.weights -mjpeg_port -map", "detect: -mjpeg_port needs an integer, got '-map'"),
        ("table tiny.cfg -dont_show", "table: no flag '-dont_show'; it has none"),
        (
            "detect tiny.cfg",
            "detect: x.weights is missing; usage: gpudarknet detect x.cfg x.weights [source ...] [flags]",
        ),
        ("table a b", "table: unexpected argument 'b'; usage: gpudarknet table x.cfg"),
        ("detector", "detector: needs a subcommand; it has test"),
        ("tabel x", "no command 'tabel'; did you mean 'table'?"),
        ("zzz", "no command 'zzz'; `gpudarknet help` lists all"),
        ("yolo train x.cfg", "no command 'yolo'; use `gpudarknet detector train`"),
        ("train x.data", "no command 'train'; use `gpudarknet detector train` or `gpudarknet classifier train`"),
        ("rnn generate x.cfg", "no command 'rnn'; `gpudarknet help` lists all"),
        ("map x.data x.cfg x.weights", "no command 'map'; use `gpudarknet detector map`"),
        (
            "detector train x.data x.cfg -seed -1",
            "detector train: -seed needs an integer from 0 to 9223372036854775807, got",
        ),
        (
            "detector train x.data x.cfg -workers -1",
            "detector train: -workers needs an integer that is not negative, got '-1'",
        ),
        ("detector train x.data x.cfg -chart -map", "detector train: -chart needs a value"),
        ("detect tiny.cfg tiny.weights -thresh 25", "detect: -thresh needs a number from 0 to 1, got '25'"),
        (
            "detect tiny.cfg tiny.weights tiny.png -backend gpu",
            "backend: unknown backend 'gpu'; choose one of auto, cupy, numpy, onnxruntime, openvino, fastest",
        ),
        (
            "detect tiny.cfg tiny.weights tiny.png -out missing/r.json",
            "missing/r.json: cannot be written (No such file or directory); use a file in an existing folder",
        ),
    ],
)
def test_wrong_usage_is_one_line(capsys, words, message):
    assert error_of(capsys, *words.split()).startswith(message)


NOISE = bytes(np.random.default_rng(3).integers(0, 256, 4000, np.uint8))
HOSTILE = {
    "tiny.cfg": {
        "missing": None,
        "empty": b"",
        "binary": NOISE,
        "noise without zeros": NOISE.replace(b"\0", b"\1"),
        "comment only": b"# nothing\n",
        "truncated": tiny.CFG[:60].encode(),
        "unclosed": b"[net\nwidth=3\n",
        "no net": tiny.CFG.split("\n\n")[1].encode(),
        "unknown section": tiny.CFG.replace("[yolo]", "[yolov9]").encode(),
        "huge input": tiny.CFG.replace("width=64", "width=1000000000").encode(),
        "endless number": tiny.CFG.replace("width=64", "width=" + "9" * 6000).encode(),
        "no pixels": tiny.CFG.replace("width=64", "width=0").encode(),
        "negative filters": tiny.CFG.replace("filters=7", "filters=-7").encode(),
        "huge filters": tiny.CFG.replace("filters=7", "filters=2000000000").encode(),
        "zero stride": tiny.CFG.replace("stride=16", "stride=0").encode(),
        "negative size": tiny.CFG.replace("size=1", "size=-1").encode(),
        "huge size": tiny.CFG.replace("size=1", "size=99999").encode(),
        "no classes": tiny.CFG.replace("classes=2", "classes=0").encode(),
        "mask outside": tiny.CFG.replace("mask=0", "mask=9").encode(),
        "mask huge": tiny.CFG.replace("mask=0", "mask=" + ",".join("0" * 3000)).encode(),
        "wrong filters": tiny.CFG.replace("filters=7", "filters=8").encode(),
        "huge num": tiny.CFG.replace("num=1", "num=1000000000000").encode(),
        "later route": tiny.CFG.replace("[yolo]", "[route]\nlayers=5\n[yolo]").encode(),
        "no boxes": tiny.CFG.split("[yolo]")[0].encode(),
        "heads that differ": (tiny.CFG + "[convolutional]\nfilters=6\nactivation=linear\n"
                              "[yolo]\nmask=0\nanchors=2,2\nclasses=1\nnum=1\n").encode(),
    },
    "tiny.weights": {
        "missing": None,
        "empty": b"",
        "binary": NOISE,
        "header only in part": b"\0\0\0\0\2\0\0\0\5",
        "text": tiny.CFG.encode(),
        "truncated": b"\0\0\0\0\2\0\0\0\5\0\0\0" + bytes(8 + 20),
    },
    "tiny.names": {"missing": None, "empty": b"", "blank": b"\n\n\n", "binary": NOISE, "too few": b"cat\n"},
    "tiny.data": {
        "missing": None,
        "empty": b"",
        "binary": NOISE,
        "no names": b"classes=2\n",
        "names missing": b"names=nowhere.names\n",
        "names are a folder": b"names=/\n",
        "not key=value": b"this is a text\n",
        "other keys": b"a=b\n",
    },
    "tiny.png": {"missing": None, "empty": b"", "binary": NOISE, "text": b"[net]\n", "truncated": "cut", "folder": "folder"},
}  # fmt: skip


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in HOSTILE.items() for case in cases])
def test_hostile_files_cause_a_one_line_error(capsys, name, case):
    path, content = Path(name), HOSTILE[name][case]
    whole = path.read_bytes()
    path.unlink()
    if content == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    message = error_of(capsys, *RUN, "-out", "result.json", "-save_labels")
    assert message.startswith(("tiny", "nowhere", "/")), message


def test_a_folder_is_not_a_file(capsys, folder):
    (folder / "d").mkdir()
    for place in (2, 3, 4, 5):
        words = list(RUN)
        words[place] = "d"
        assert error_of(capsys, *words).startswith("d: ")


def test_file_contents_cannot_control_the_terminal(capsys):
    Path("tiny.cfg").write_text("[net]\n[\x1b[31mred\x1b[0m]\n")
    assert "\x1b" not in error_of(capsys, *RUN)


def test_warnings_are_one_line_each(capsys):
    Path("tiny.cfg").write_text(tiny.CFG.replace("stride=16", "stride=16\nfliters=3"))
    Path("tiny.weights").write_bytes(Path("tiny.weights").read_bytes() + bytes(8))
    assert main(RUN) == 0
    assert capsys.readouterr().err == (
        "warning: tiny.cfg:10: [convolutional] has no key 'fliters'; did you mean 'filters'?\n"
        "warning: tiny.weights: 2 values remain after the last layer; is it the file of another cfg?\n"
    )


def test_interruption_is_quiet(capsys, monkeypatch):
    def interrupt(words):
        raise KeyboardInterrupt

    monkeypatch.setattr("gpudarknet.cli.run", interrupt)
    assert main(["info"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def anywhere(monkeypatch):
    """Let Python find the package from any folder."""
    root = str(Path(gpudarknet.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]))


def test_the_command_runs_as_a_module(anywhere):
    done = subprocess.run([sys.executable, "-m", "gpudarknet", "version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"gpudarknet {__version__}\n"


def test_closed_standard_input_is_an_empty_one(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert main(RUN[:-1]) == 0
    sys.stdin.close()
    assert capsys.readouterr().out == "Enter Image Path: \n"


def test_a_closed_pipe_is_not_an_error(anywhere):
    command = f"{sys.executable} -m gpudarknet table yolov4 | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == "" and done.stdout.startswith("   layer")
