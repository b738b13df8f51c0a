"""Pictures that are made to exhaust memory or time, to run programs or to read other files.

All are opened in one process, which measures each: a picture is refused with its row, or opened, and takes at most 12
bytes of memory for each pixel and each byte of its file, and seconds of processor time.
"""

import errno
import json
import os
import runpy
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image, ImageFile

from tests.unit.conftest import encoded, picture
from visurf_ray.data import pictures
from visurf_ray.data.pictures import LONGEST_SIDE, MOST_PIXELS, load_picture, picture_size
from visurf_ray.errors import DataError

SIDE = 4000
MIB = 2**20
FREE = 32 * MIB  # for what does not grow with the picture
SECONDS = 10.0  # of processor time; these take less than 2 s

_OPEN_ALL = """
import json, sys, time
from pathlib import Path
from unittest.mock import Mock
from visurf_ray.data.pictures import load_mask, load_picture

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

for path in sorted(Path(sys.argv[1]).iterdir()):
    for read in (load_picture, load_mask):
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of what follows
        before, begin, found = memory("VmRSS"), time.process_time(), None
        try:
            found = read(path, "row 7")
            result = "opened"
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        del found
        took = time.process_time() - begin
        print(json.dumps([path.name, read.__name__, result, memory("VmHWM") - before, took]), flush=True)
"""


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def zeros(count: int) -> bytes:
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(min(MIB, count - at))) for at in range(0, count, MIB)) + packer.flush()


def png(
    width: int, height: int, data: bytes, *chunks: bytes, depth: int = 8, colour: int = 0, late: bytes = b""
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", data) + late + chunk(b"IEND", b"")


def full(channels: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    return png(SIDE, SIDE, zeros((SIDE * channels * depth // 8 + 1) * SIDE), *chunks, depth=depth, colour=colour)


def tiff(
    width: int, height: int, *more: tuple[int, int, int, int], packed: int = 1, data: bytes = b"", after: int = 0
) -> bytes:
    """A TIFF with its first directory at 8, of grey pixels in one strip at 1000."""
    own = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, packed), (262, 3, 1, 1)]
    own += [
        (273, 4, 1, 1000),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, len(data) or min(width * height, 2**31)),
    ]
    entries = sorted({entry[0]: entry for entry in [*own, *more]}.values())
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = struct.pack("<2sHI", b"II", 42, 8) + directory + struct.pack("<I", after)
    return head.ljust(1000, b"\0") + data


def with_exif(body: bytes) -> bytes:
    plain = encoded(picture(), "JPEG")
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 8) + b"Exif\0\0" + body + plain[2:]


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(picture(), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def many_scans(count: int, between: bytes = b"") -> bytes:
    data = encoded(Image.effect_noise((256, 256), 3).convert("RGB"), "JPEG", progressive=True)
    place = data.rindex(b"\xff\xda")
    return data[:place] + (between + data[place:-2]) * count + b"\xff\xd9"


def many_frames_webp(count: int) -> bytes:
    data = encoded(picture(), "WEBP", save_all=True, append_images=[picture(100, 60).rotate(180)])
    place = data.rindex(b"ANMF")
    body = data[12:place] + data[place:] * count
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def bmp(width: int, height: int, data: bytes, packed: int = 1) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, packed, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + info + bytes(1024) + data


ONE_FRAME = b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0"
GIF = b"GIF89a%s\x80\0\0\0\0\0\xff\xff\xff"
CONTROL, NEXT = (chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, 8, 8, 0, 0, 1, 1, 0, 0)) for number in (0, 1))
FRAME = NEXT + chunk(b"fdAT", b"\0\0\0\2" + zeros(72))
BILLION = b'<!DOCTYPE a [<!ENTITY l0 "lol">%s]><a>&l9;</a>' % b"".join(
    b'<!ENTITY l%d "%s">' % (level, b"&l%d;" % (level - 1) * 10) for level in range(1, 10)
)

# What each is, and whether it opens: True, False, or None where both are right.
CASES: dict[str, tuple[Callable[[], bytes], bool | None]] = {
    # As large as their headers say: their memory is measured.
    "full-grey.png": (lambda: full(1), True),
    "full-grey-alpha.png": (lambda: full(2, colour=4), True),
    "full-rgba.png": (lambda: full(4, colour=6), True),
    "full-16-bits.png": (lambda: full(1, depth=16), True),
    "full-16-bits-key.png": (lambda: full(1, chunk(b"tRNS", b"\0\1"), depth=16), True),
    "full-palette.png": (lambda: full(1, chunk(b"PLTE", bytes(768)), chunk(b"tRNS", bytes(256)), colour=3), True),
    "palette-of-none.png": (lambda: png(8, 8, zeros(72), colour=3), None),
    "palette-too-short.png": (
        lambda: png(
            8, 8, zlib.compress(b"\0\xff\xff\xff\xff\xff\xff\xff\xff" * 8), chunk(b"PLTE", b"\0\0\0"), colour=3
        ),
        None,
    ),
    "full.jpg": (lambda: jpeg_of(SIDE, SIDE), True),
    "full.tif": (lambda: tiff(SIDE, SIDE, packed=8, data=zeros(SIDE * SIDE)), True),
    "full.bmp": (lambda: bmp(SIDE, SIDE, b"\1\1\0\0" * SIDE), True),
    "full.gif": (lambda: GIF % struct.pack("<HH", SIDE, SIDE) + ONE_FRAME + b";", True),
    # Larger than they may be, by their headers.
    "huge.png": (lambda: png(200_000, 200_000, zeros(1000)), False),
    "huge.jpg": (lambda: jpeg_of(65_535, 65_535), False),
    "huge.gif": (lambda: GIF % b"\xff\xff\xff\xff" + ONE_FRAME + b";", False),
    "huge.tif": (lambda: tiff(200_000, 200_000), False),
    "huge.bmp": (lambda: bmp(200_000, 200_000, b""), False),
    "huge-tiles.tif": (
        lambda: tiff(64, 64, (322, 4, 1, 2**30), (323, 4, 1, 2**30), (324, 4, 1, 1000), packed=8),
        False,
    ),
    "huge.ppm": (lambda: b"P6 200000 200000 255\n", False),
    "huge-number.ppm": (lambda: b"P6 " + b"9" * MIB + b" 1 255\n", False),
    "wide.png": (lambda: png(10**6, 1, zeros(10**6 + 1)), False),
    "tall.png": (lambda: png(1, 10**6, zeros(2 * 10**6)), False),
    "wide.bmp": (lambda: bmp(170_000_000, 1, b"\0\2\xff\xff" * 100), False),
    # More data than pixels.
    "data.png": (lambda: png(64, 64, zeros(200 * MIB)), None),
    "data.tif": (lambda: tiff(64, 64, packed=8, data=zeros(200 * MIB)), None),
    "text.png": (lambda: png(8, 8, zeros(72), chunk(b"zTXt", b"a\0\0" + zeros(200 * MIB))), False),
    "texts.png": (lambda: png(8, 8, zeros(72), *[chunk(b"zTXt", b"a\0\0" + zeros(MIB // 2))] * 500), False),
    "international.png": (lambda: png(8, 8, zeros(72), chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(200 * MIB))), False),
    "profile.png": (lambda: png(8, 8, zeros(72), chunk(b"iCCP", b"a\0\0" + zeros(200 * MIB))), False),
    "late.png": (lambda: png(8, 8, zeros(72), late=chunk(b"zTXt", b"a\0\0" + zeros(200 * MIB))), False),
    "entities.png": (lambda: png(8, 8, zeros(72), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + BILLION)), True),
    # Many frames, of which the first counts.
    "frames.apng": (
        lambda: png(8, 8, zeros(72), chunk(b"acTL", struct.pack(">II", 10**6, 0)), CONTROL, late=FRAME * 100_000),
        True,
    ),
    "frames.gif": (lambda: GIF % b"\1\0\1\0" + ONE_FRAME * 10**6 + b";", True),
    "frames.webp": (lambda: many_frames_webp(20_000), True),
    "frames.tif": (lambda: tiff(8, 8, data=bytes(64), after=8), True),  # the next directory is the same
    "frames.mpo": (lambda: encoded(picture(), "MPO", save_all=True, append_images=[picture()] * 20), True),
    "comments.gif": (lambda: GIF % b"\1\0\1\0" + b"!\xfe" + b"\1a" * 10**5 + b"\0" + ONE_FRAME + b";", None),
    # Metadata.
    "exif-loop.jpg": (lambda: with_exif(tiff(8, 8, (34665, 4, 1, 8), (34853, 4, 1, 8), after=8)[:900]), True),
    "exif-counts.jpg": (lambda: with_exif(tiff(8, 8, *[(0x9286 + i, 7, 2**32 - 1, 8) for i in range(9)])[:900]), True),
    "exif.png": (
        lambda: png(8, 8, zeros(72), chunk(b"eXIf", tiff(8, 8, (274, 3, 10**7, 1000), data=bytes(2 * 10**7)))),
        None,
    ),
    "directories.tif": (lambda: tiff(8, 8, (34665, 4, 1, 8), (330, 4, 1, 8), data=bytes(64)), True),
    "counts.tif": (lambda: tiff(8, 8, (700, 1, 2**32 - 1, 1000), data=bytes(64)), None),
    "outside.tif": (lambda: tiff(8, 8, (273, 4, 1, 2**31 - 1)), False),
    "strips.tif": (
        lambda: tiff(SIDE, SIDE, (273, 4, 2**30 - 1, 1000), (279, 4, 2**30 - 1, 1000), (278, 4, 1, 1)),
        False,
    ),
    "scans.jpg": (lambda: many_scans(1000), False),
    "few-scans.jpg": (lambda: many_scans(1), True),
    # The bytes of many scans, which are not scans of the first image.
    "video.jpg": (lambda: encoded(picture(), "JPEG") + os.urandom(10 * MIB), True),
    "thumbnails.mpo": (lambda: encoded(picture(), "MPO", save_all=True, append_images=[picture()] * 150), True),
    "comment.jpg": (lambda: encoded(picture(), "JPEG", comment=b"\xff\xda" * 1000), True),
    "mpo-without-end.jpg": (lambda: encoded(picture(), "MPO", save_all=True, append_images=[picture()])[:400], False),
    # Torn.
    **{
        f"torn.{kind.lower()}": (lambda kind=kind: encoded(picture(), kind)[:-200], None)
        for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF", "PPM")
    },
    # No pictures, or programs.
    "zeros": (lambda: bytes(1000), False),
    "a.svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", False),
    "a.eps": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%id) (w) file\n%%EOF\n",
        False,
    ),
    "eps.png": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", False),
    "a.pdf": (lambda: b"%PDF-1.4\n", False),
    "a.wmf": (lambda: b"\xd7\xcd\xc6\x9a\0\0" + bytes(100), False),
    "a.psd": (lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(100), False),
    "a.fits": (lambda: b"SIMPLE  =                    T".ljust(2880), False),
}


@pytest.fixture(scope="module")
def pictures_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, (make, _) in CASES.items():
        (folder / name).write_bytes(make())
    return folder


@pytest.fixture(scope="module")
def opened(pictures_folder) -> dict[str, list[tuple[str, int, float]]]:
    """By name: what came of the picture and of its mask, their memory and their processor time."""
    environment = os.environ | {"PATH": ""}  # Ghostscript could not be run either, but would be looked for
    command = [sys.executable, "-W", "ignore", "-c", _OPEN_ALL, str(pictures_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
    found: dict[str, list[tuple[str, int, float]]] = {}
    for line in done.stdout.splitlines():
        name, _, result, memory, seconds = json.loads(line)
        found.setdefault(name, []).append((result, memory, seconds))
    assert found.keys() == CASES.keys(), f"the process has died: {done.stderr[-500:]}"
    return found


@pytest.mark.xdist_group("pictures")  # one process makes and opens them, and not each
@pytest.mark.parametrize("name", CASES)
def test_a_picture_is_refused_by_its_row_or_opened_and_costs_little(pictures_folder, opened, name):
    opens = CASES[name][1]
    size = (SIDE * SIDE if name.startswith("full") else 0) + (pictures_folder / name).stat().st_size
    for result, memory, seconds in opened[name]:
        assert result == "opened" or (result.startswith("DataError: row 7: ") and len(result) < 1000), result
        assert opens is None or (result == "opened") is opens, result
        assert memory <= 12 * size + FREE, f"{memory / MIB:.0f} MiB"
        assert seconds < SECONDS


def test_the_limits_are_named():
    for data in (png(LONGEST_SIDE + 1, 1, b""), png(1, LONGEST_SIDE + 1, b"")):
        with pytest.raises(DataError, match=r"row 7: the image has .*65,53.* pixels, but may have at most 178,956,970"):
            load_picture(data, "row 7")
    with pytest.raises(DataError, match=f"row 7: .*exceeds limit of {MOST_PIXELS} pixels"):
        load_picture(png(20_000, 20_000, b""), "row 7")
    with pytest.raises(DataError, match=r"row 7: the image is a JPEG of more than 100 scans"):
        load_picture(many_scans(1000), "row 7")


@pytest.mark.parametrize(
    "between", [b"a", b"\xff", b"\xff\0", b"\xff\xd0", b"\xff\2", b"\xff\xfe\0\3\xff", b"\xff\xe0\0\0"]
)
def test_scans_are_counted_whatever_stands_between_them(between):
    with pytest.raises(DataError, match="more than 100 scans"):
        load_picture(many_scans(101, between), "row 7")
    with suppress(DataError):  # libjpeg accepts some of these
        assert load_picture(many_scans(50, between), "row 7").size == (256, 256)


def test_a_jpeg_of_many_markers_is_read_in_little_time():
    begin = time.process_time()
    for repeated in (b"\xff\xd0", b"\xff\0", b"\xff", b"\xff\2"):
        with suppress(DataError):
            load_picture(many_scans(1)[:-2] + repeated * (10 * MIB // len(repeated)), "row 7")
    assert time.process_time() - begin < SECONDS


def test_a_torn_jpeg_is_refused_wherever_it_ends():
    data = encoded(picture(), "JPEG", progressive=True)
    for end in range(2, len(data) - 2, 7):
        with pytest.raises(DataError, match=r"^row 7: .*(cannot be read as an image|is damaged)"):
            load_picture(data[:end], "row 7")
    for last in (b"\xff", b"\xff\xda", b"\xff\xfe\xff", b"\xff\xfe\xff\xff"):
        with suppress(DataError):
            load_picture(data[:-2] + last, "row 7")


def test_a_users_module_does_not_change_the_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    module = runpy.run_path(pictures.__file__)
    assert module["load_picture"](encoded(picture()), "row 7").size == (100, 60)
    with pytest.raises(DataError, match="may have at most 178,956,970"):
        module["load_picture"](png(20_000, 20_000, b""), "row 7")


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Image, "open"), (ImageFile.ImageFile, "load"), (Image.Image, "getexif"), (Image.Image, "convert")],
)
@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")])
def test_a_lack_of_memory_does_not_look_like_damage(monkeypatch, owner, name, error):
    data = encoded(picture().convert("L"), "JPEG")
    monkeypatch.setattr(owner, name, Mock(side_effect=error))
    with pytest.raises(type(error)):
        load_picture(data, "row 7")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for read in (load_picture, picture_size):
        with pytest.raises(DataError, match=r"row 7: .*pipe\.png cannot be read as an image \(it is no file"):
            read(tmp_path / "pipe.png", "row 7")
    with pytest.raises(DataError, match=r"row 7: there is no image"):
        load_picture(tmp_path / "none.png", "row 7")
    with pytest.raises(DataError, match=r"row 7: .*it is no file"):
        load_picture(Path(tmp_path), "row 7")
