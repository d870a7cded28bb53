"""What is done to the command with bad will or bad luck: nothing is lost, nothing else is run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from helpers.media import SIZE, FakeSegmenter, make_mask, make_video, picture
from PIL import Image

import engine.commands.loop
from engine.cli import main
from engine.files import FolderLock
from engine.media.open import open_source
from engine.segmenter import Segmenter


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(Segmenter, "load", lambda options: FakeSegmenter())


@pytest.fixture
def run(tmp_path, capsys):
    """Run ``segment``; returns (exit code, stderr). The folder is ``tmp_path/out`` by default."""
    mask = make_mask(tmp_path / "mask.png")

    def run(source, *more, out="out", mask=mask):
        code = main(
            ["segment", str(source), "--mask", str(mask), "--out", str(tmp_path / out), *more]
        )
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def video(tmp_path):
    return make_video(tmp_path / "v.mp4", 12)


def images(folder, count=6, kind="png", first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(picture(first + index)).save(folder / f"{index}.{kind}")
    return folder


def refused(result, *words):
    code, err = result
    assert code == 2 and "Traceback" not in err, err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1
    for word in words:
        assert word in err


def masks(folder):
    return {p.name: p.read_bytes() for p in sorted((folder / "masks").glob("*.png"))}


def interrupt(monkeypatch, at):
    """Let the next run be stopped by Ctrl-C at a frame, with a resume point after every frame."""
    monkeypatch.setattr(engine.commands.loop, "RESUME_SECONDS", 0.0)
    step = FakeSegmenter.step

    def stop(self, frame):
        if self.frames == at:
            monkeypatch.setattr(FakeSegmenter, "step", step)
            raise KeyboardInterrupt
        return step(self, frame)

    monkeypatch.setattr(FakeSegmenter, "step", stop)


# The user's own files


def test_overwrite_spares_frames_that_lie_where_masks_go(run, tmp_path):
    frames = images(tmp_path / "a" / "masks")
    for path in list(frames.iterdir()):
        path.rename(path.with_name(f"0000{path.name}"))
    before = masks(tmp_path / "a")
    refused(run(frames, "--overwrite", out="a"), "would be removed", "--out")
    assert masks(tmp_path / "a") == before


def test_overwrite_spares_a_video_with_the_overlays_name(run, tmp_path):
    (tmp_path / "b").mkdir()
    video = make_video(tmp_path / "b" / "overlay.mp4", 5)
    before = video.read_bytes()
    refused(run(video, "--overwrite", "--no-overlay", out="b"), "would be removed")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    refused(run(video, "--overwrite", out="link"), "would be removed")
    assert video.read_bytes() == before


def test_overwrite_spares_its_own_mask(run, tmp_path, video):
    (tmp_path / "c" / "masks").mkdir(parents=True)
    mask = make_mask(tmp_path / "c" / "masks" / "00007.png")
    before = mask.read_bytes()
    refused(run(video, "--overwrite", out="c", mask=mask), "00007.png", "would be removed")
    assert mask.read_bytes() == before


def test_hidden_files_of_others_stay(run, tmp_path, video):
    out = tmp_path / "out"
    out.mkdir()
    for name in (".thesis.tar.part", ".write-test", "mine.part"):
        (out / name).write_text("mine")
    (out / ".folder.part").mkdir()
    shutil.copy(video, out / ".v.mp4.part")
    assert run(out / ".v.mp4.part")[0] == 0
    for name in (".thesis.tar.part", ".write-test", "mine.part"):
        assert (out / name).read_text() == "mine"
    assert (out / ".folder.part").is_dir() and (out / ".v.mp4.part").exists()


def test_a_planted_link_is_not_followed(run, tmp_path, video):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".summary.json.part").symlink_to(victim)
    assert run(video)[0] == 0
    assert victim.read_text() == "mine"


def test_two_runs_exclude_each_other(run, tmp_path, video):
    if sys.platform == "win32":
        pytest.skip("no locks on folders")
    assert run(video, "--end", "3")[0] == 0
    before = masks(tmp_path / "out")
    lock = FolderLock(tmp_path / "out")
    refused(run(video, "--overwrite"), "another run is writing")
    lock.close()
    assert masks(tmp_path / "out") == before
    assert run(video, "--overwrite")[0] == 0


# Images


def test_no_image_runs_ghostscript(run, tmp_path, monkeypatch, video):
    """Pillow hands EPS, whatever its name, to the program gs."""
    ran = tmp_path / "ran"
    gs = tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch '{ran}'\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}{os.pathsep}{os.environ['PATH']}")
    postscript = tmp_path / "frames" / "0.png"
    postscript.parent.mkdir()
    Image.fromarray(picture(0)).save(postscript, "EPS")
    refused(run(postscript.parent), "0.png", "not a readable image")
    refused(run(video, mask=postscript), "not a readable image", "save it as PNG")
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["DDS", "TGA", "ICO", "PCX", "SGI", "JPEG2000", "ICNS"])
def test_rare_formats_are_refused(run, tmp_path, video, kind):
    path = tmp_path / "m.png"
    Image.fromarray(picture(0, (64, 64))).save(path, kind)
    refused(run(video, mask=path), "m.png", "none of PNG")


def test_what_a_decoder_raises_is_one_line(run, tmp_path, video, monkeypatch):
    def fail(self):
        raise NotImplementedError("unheard-of compression")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    refused(run(video), "mask.png", "unheard-of compression")


def test_a_large_mask_is_refused_by_its_header(run, tmp_path, video, monkeypatch):
    Image.new("L", (6000, 6000), 1).save(tmp_path / "big.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("decoded"))
    refused(run(video, mask=tmp_path / "big.png"), "6000x6000", "64x48")
    Image.new("L", (9000, 9000), 1).save(tmp_path / "big.png")
    refused(run(video, "--resize-mask", mask=tmp_path / "big.png"), "too large")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e20])
def test_a_mask_of_no_numbers(run, tmp_path, video, value):
    values = np.zeros(SIZE, np.float32)
    values[5:20, 5:20], values[0, 0] = 1, value
    Image.fromarray(values).save(tmp_path / "m.tif")
    refused(run(video, mask=tmp_path / "m.tif"), "no numbers")


def test_a_palette_whose_first_colour_is_not_the_background(run, tmp_path, video):
    ids = np.ones(SIZE, np.uint8)
    ids[5:20, 5:20] = 0
    image = Image.fromarray(ids)
    image.putpalette([255, 0, 0, 0, 0, 0])  # the object is red and has index 0
    image.save(tmp_path / "m.png")
    code, err = run(video, mask=tmp_path / "m.png")
    assert code == 0 and "#ff0000 = 1" in err
    with Image.open(tmp_path / "out" / "masks" / "00000.png") as first:
        assert np.array(first)[10, 10] == 1 and np.array(first)[30, 30] == 0


# Names


@pytest.mark.parametrize(
    "name",
    ["12:30:05.mp4", "concat:x.mp4", "pipe:0", "http:x.mp4", "file:x.mp4", "data:,x", "a://b"],
)
def test_a_file_is_a_file_whatever_its_name(run, tmp_path, video, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    shutil.copy(video, name)
    assert run(name)[0] == 0
    assert len(masks(tmp_path / "out")) == 12


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_that_are_no_utf8(run, tmp_path, monkeypatch):
    video = make_video(tmp_path / "v.mp4", 12).rename(tmp_path / "caf\udce9.mp4")
    mask = make_mask(tmp_path / "m.png").rename(tmp_path / "m\udce9.png")
    interrupt(monkeypatch, 5)
    assert run(video, mask=mask, out="o\udce9")[0] == 130
    assert run(video, "--resume", mask=mask, out="o\udce9")[0] == 0
    told = json.loads((tmp_path / "o\udce9" / "summary.json").read_text())
    assert told["source"]["name"] == str(video) and told["frames"] == 12
    frames = images(tmp_path / "frames")
    (frames / "0.png").rename(frames / "0\udce9.png")
    assert run(frames, out="again")[0] == 0


# Playlists, pipes and addresses


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsecret.ts\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nlist.mp4\n",  # itself, for ever
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nsecret.ts\n",  # without an end
        "ffconcat version 1.0\nfile secret.ts\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    ],
)
@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.sdp"])
def test_a_playlist_opens_no_other_file(run, tmp_path, text, name):
    make_video(tmp_path / "secret.ts", 5)
    (tmp_path / name).write_text(text)
    refused(run(tmp_path / name), name, "not a video", "playlist")


def test_addresses_with_other_schemes(run):
    for name in (
        "file:///etc/passwd",
        "concat://a|b",
        "subfile,,start,0,end,9,,://x",
        "gopher://x",
    ):
        refused(run(name), "scheme", "https")


def test_an_address_cannot_name_local_files(run, tmp_path):
    """A playlist from a server that names a file here."""
    secret = make_video(tmp_path / "secret.ts", 5)
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    server = socket.create_server(("127.0.0.1", 0))
    answer = f"HTTP/1.0 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()

    def serve():
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                client.recv(4096)
                client.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    refused(run(f"http://127.0.0.1:{server.getsockname()[1]}/x.m3u8"))
    server.close()
    assert not masks(tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_named_pipes_are_not_waited_for(run, tmp_path, video):
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe.png")
    refused(run(tmp_path / "pipe.mp4"), "pipe", "give -")
    refused(run(video, mask=tmp_path / "pipe.png"), "not a file")
    os.mkfifo(images(tmp_path / "frames") / "9.png")
    refused(run(tmp_path / "frames"), "9.png")


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_a_video_on_standard_input(tmp_path, name):
    video = make_video(tmp_path / "v.mkv", 12)
    code = (
        "import sys; from engine.media.open import open_source; "
        "print(sum(1 for _ in open_source(sys.argv[1]).frames()))"
    )
    with subprocess.Popen(["cat", str(video)], stdout=subprocess.PIPE) as cat:
        done = subprocess.run(
            [sys.executable, "-c", code, name], stdin=cat.stdout, capture_output=True, text=True,
            cwd=ROOT, check=False, timeout=60,
        )  # fmt: skip
    assert done.stdout.strip() == "12", done.stderr


# Resuming


@pytest.mark.parametrize("kind", ["bmp", "ppm", "video"])
def test_resume_knows_other_pictures_of_the_same_size(run, tmp_path, monkeypatch, kind):
    if kind == "video":
        source = make_video(tmp_path / "v.avi", 12, codec="rawvideo")
    else:
        source = images(tmp_path / "frames", 12, kind)
    interrupt(monkeypatch, 5)
    assert run(source)[0] == 130
    if kind == "video":
        size = source.stat().st_size
        content = bytearray(source.read_bytes())
        content[size // 2 : size // 2 + 40_000] = bytes(40_000)
        source.write_bytes(content)
    else:
        sizes = [p.stat().st_size for p in sorted(source.iterdir())]
        images(source, 12, kind, first=50)
        assert sizes == [p.stat().st_size for p in sorted(source.iterdir())]
    refused(run(source, "--resume"), "input differ")


def test_results_inside_the_folder_of_the_frames(run, tmp_path, monkeypatch):
    frames = images(tmp_path / "out", 12)
    interrupt(monkeypatch, 5)
    assert run(frames)[0] == 130
    assert run(frames, "--resume")[0] == 0
    assert len(masks(tmp_path / "out")) == 12


def test_a_smaller_end_costs_nothing(run, tmp_path, monkeypatch, video):
    interrupt(monkeypatch, 8)
    assert run(video)[0] == 130
    before = masks(tmp_path / "out")
    refused(run(video, "--resume", "--end", "5"), "larger --end")
    assert masks(tmp_path / "out") == before
    assert run(video, "--resume")[0] == 0
    assert len(masks(tmp_path / "out")) == 12


@pytest.mark.parametrize("how", ["gone", "empty", "other size", "colour", "bomb"])
@pytest.mark.parametrize("more", [[], ["--no-overlay"]])
def test_a_spoiled_mask_is_seen(run, tmp_path, monkeypatch, video, how, more):
    interrupt(monkeypatch, 8)
    assert run(video, *more)[0] == 130
    mask = tmp_path / "out" / "masks" / "00003.png"
    made = mask.read_bytes()
    if how == "gone":
        mask.unlink()
    elif how == "empty":
        mask.write_bytes(b"")
    else:
        size = {"other size": (9, 9), "colour": SIZE[::-1], "bomb": (20000, 20000)}[how]
        Image.new("RGB" if how == "colour" else "1", size).save(mask)
    refused(run(video, "--resume", *more), "00003.png", "--overwrite")
    mask.write_bytes(made)
    assert run(video, "--resume", *more)[0] == 0
    assert len(masks(tmp_path / "out")) == 12


@pytest.mark.parametrize("how", ["empty", "cut", "flipped", "other"])
def test_a_spoiled_resume_point(run, tmp_path, monkeypatch, video, how):
    interrupt(monkeypatch, 8)
    assert run(video)[0] == 130
    before = masks(tmp_path / "out")
    point = tmp_path / "out" / ".resume.npz"
    content = bytearray(point.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    if how == "other":
        np.savez(point, header=np.zeros(3, np.uint8))
    else:
        point.write_bytes({"empty": b"", "cut": content[:-1], "flipped": bytes(content)}[how])
    refused(run(video, "--resume"), ".resume.npz", "damaged", "--overwrite")
    assert masks(tmp_path / "out") == before


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"status": "complete"}', '{"status": "complete", "options": null}', "[" * 99999],
)
def test_a_spoiled_summary(run, tmp_path, video, text):
    assert run(video)[0] == 0
    (tmp_path / "out" / "summary.json").write_text(text)
    refused(run(video, "--resume"), "--overwrite")


# Numbers and signals


@pytest.mark.parametrize("option", ["--every", "--end", "--start", "--threads", "--size"])
@pytest.mark.parametrize("value", ["1" + "0" * 18, "1" + "0" * 400, "1" + "0" * 5000])
def test_absurd_numbers(tmp_path, video, capsys, option, value):
    with pytest.raises(SystemExit) as stopped:
        main(
            ["segment", str(video), "--mask", "m.png", "--out", str(tmp_path / "o"), option, value]
        )
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert "whole number" in err and "Traceback" not in err


@pytest.mark.parametrize("out", ["x" * 300, "a\0b"])
def test_impossible_names_of_the_output(run, video, out):
    refused(run(video, out=out), "cannot write")


def test_impossible_names_of_the_input(run):
    refused(run("x" * 300), "cannot be read")
    refused(run("a\0b"), "cannot be read")


_SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from helpers.media import FakeSegmenter
from engine.cli import main
from engine.segmenter import Segmenter

class Slow(FakeSegmenter):
    def step(self, frame):
        print("step", flush=True)
        time.sleep(0.2)
        return super().step(frame)

Segmenter.load = lambda options: Slow()
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_ends_the_run_in_order(run, tmp_path, video, number, times):
    command = ["segment", video, "--mask", tmp_path / "mask.png", "--out", tmp_path / "out"]
    script = _SLOW.format(tests=str(ROOT / "tests"))
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, command)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A job in a shell's background begins with SIGINT ignored, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:  # fmt: skip
        for _ in range(3):
            assert process.stdout.readline() == "step\n"
        for _ in range(times):
            process.send_signal(number)
            time.sleep(0.02)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in err
    out = tmp_path / "out"
    assert json.loads((out / "summary.json").read_text())["status"] == "interrupted"
    assert not list(out.rglob("*.part"))
    assert run(video, "--resume")[0] == 0
    assert len(masks(out)) == 12


def test_the_cover_of_a_video_is_not_the_video(tmp_path):
    import av

    path = tmp_path / "cover.mkv"
    whole = make_video(tmp_path / "v.mkv", 6)
    with av.open(str(whole)) as source, av.open(str(path), "w") as out:
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        stream = out.add_stream_from_template(source.streams.video[0], opaque=True)
        for packet in cover.encode(av.VideoFrame(32, 32, "rgb24")) + cover.encode(None):
            out.mux(packet)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    source = open_source(path)
    assert source.size == SIZE and len(list(source.frames())) == 6
