"""Pictures as a person sees them: orientation, transparency, kinds of pixels, and every way to give a picture."""

import base64
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.unit.conftest import encoded, picture
from visurf_ray.data.pictures import find_pictures, load_mask, load_picture, picture_size, pictures_in
from visurf_ray.data.rows import read_rows
from visurf_ray.errors import DataError

ORIENTATION = 0x0112
TURNED = {  # how a camera stores a picture that viewers show upright, by the EXIF orientation that it writes
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def store(image: Image.Image, path: Path, orientation: int) -> Path:
    """Store the picture as a camera does that was held in another way."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turn = TURNED[orientation]
    (image if turn is None else image.transpose(turn)).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("ending", ["png", "webp", "tiff"])
def test_a_picture_is_turned_as_viewers_show_it(tmp_path, orientation, ending):
    shown = picture(40, 20)
    path = tmp_path / f"a.{ending}"
    if ending == "webp":
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        turn = TURNED[orientation]
        (shown if turn is None else shown.transpose(turn)).save(path, exif=exif, lossless=True)
    else:
        store(shown, path, orientation)
    assert picture_size(path, "here") == (40, 20)
    assert load_picture(path, "here").tobytes() == shown.tobytes()


def test_exif_in_a_jpeg_and_in_embedded_bytes(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    buffer = BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    assert load_picture(buffer.getvalue(), "here").size == (20, 40)


def test_an_orientation_after_the_pixels_of_a_png_counts(tmp_path):
    data = encoded(picture(40, 20))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    import zlib

    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    path = tmp_path / "late.png"
    path.write_bytes(data[:-12] + chunk + data[-12:])
    assert load_picture(path, "here").size == picture_size(path, "here") == (20, 40)


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_malformed_exif_and_unknown_orientations_are_no_turn(exif):
    buffer = BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=exif)
    assert load_picture(buffer.getvalue(), "here").size == (40, 20)
    unknown = Image.Exif()
    unknown[ORIENTATION] = 9
    buffer = BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=unknown)
    assert load_picture(buffer.getvalue(), "here").size == (40, 20)


def test_boxes_masks_and_polygons_are_those_of_the_shown_picture(tmp_path, make_task):
    """Sideways photos in a table, in ISIC's folders and in a ReasonSeg folder."""
    shown = picture(60, 100)
    store(shown, tmp_path / "a.png", 6)
    truth = [{"bbox_2d": [10, 50, 50, 90], "point_2d": [30, 95]}]  # beyond the stored height of 60
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "it", "solution": truth, "image": "a.png"}))
    task = make_task(str(tmp_path / "rows.jsonl"))
    (row,) = task.train_rows()
    task.check(row)

    folder = tmp_path / "seg"
    folder.mkdir()
    store(shown, folder / "b.png", 8)
    shape = {"label": "target", "points": [[10, 60], [20, 60], [20, 90], [10, 90]]}
    (folder / "b.json").write_text(json.dumps({"text": ["what?"], "shapes": [shape]}))
    task = make_task(str(folder), name="reasoning_segmentation")
    (row,) = task.train_rows()
    task.check(row)
    assert [target.bbox_2d for target in task.targets(row)] == [(10, 60, 21, 91)]

    folder = tmp_path / "skin"
    folder.mkdir()
    store(shown, folder / "ISIC_1.jpg", 6)
    mask = Image.new("L", (60, 100))
    ImageDraw.Draw(mask).rectangle([10, 60, 19, 89], fill=255)
    mask.save(folder / "ISIC_1_segmentation.png")
    task = make_task(str(folder), name="lesion")
    (row,) = task.train_rows()
    task.check(row)
    assert [target.bbox_2d for target in task.targets(row)] == [(10, 60, 20, 90)]
    store(mask, folder / "ISIC_1_segmentation.png", 5)
    assert [target.bbox_2d for target in task.targets(row)] == [(10, 60, 20, 90)], "masks are turned as well"


def transparent(mode: str) -> Image.Image:
    """Black ink on the left half, and nothing on the right one, whose hidden colour is black as well."""
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle([0, 0, 19, 19], fill=(0, 0, 0, 255))
    if mode == "P":
        paletted = Image.new("P", (40, 20), 1)
        paletted.putpalette([0, 0, 0, 0, 0, 0])
        ImageDraw.Draw(paletted).rectangle([0, 0, 19, 19], fill=0)
        paletted.info["transparency"] = 1
        return paletted
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGBA", "WEBP")]
)
def test_transparent_pixels_show_white(mode, kind):
    seen = load_picture(encoded(transparent(mode), kind), "here")
    assert seen.mode == "RGB" and seen.getpixel((3, 3)) == (0, 0, 0) and seen.getpixel((30, 3)) == (255, 255, 255)


def test_a_colour_that_means_transparent_shows_white():
    for mode, key in (("RGB", (7, 8, 9)), ("L", 7), ("I;16", 700)):
        image = Image.new(mode, (4, 4), key if mode == "RGB" else 0)
        if mode == "I;16":
            image = Image.fromarray(np.full((4, 4), key, np.uint16))
        elif mode == "L":
            image = Image.new("L", (4, 4), key)
        buffer = BytesIO()
        image.save(buffer, "PNG", transparency=key)
        assert load_picture(buffer.getvalue(), "here").getpixel((1, 1)) == (255, 255, 255), mode


def test_half_transparent_pixels_are_mixed_with_white():
    seen = load_picture(encoded(Image.new("RGBA", (4, 4), (200, 0, 0, 51))), "here")
    assert seen.getpixel((0, 0)) == (244, 204, 204)


@pytest.mark.parametrize(
    ("image", "kind", "colour"),
    [
        (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
        (Image.new("L", (4, 4), 77), "PNG", (77, 77, 77)),
        (Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "TIFF", (0, 255, 255)),
        (Image.fromarray(np.full((4, 4), 257 * 100, np.uint16)), "PNG", (100, 100, 100)),
        (Image.fromarray(np.full((4, 4), 65535, np.uint16)), "TIFF", (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 257 * 30, np.uint16)), "PPM", (30, 30, 30)),
        (Image.new("RGB", (4, 4), (1, 2, 3)).quantize(4), "PNG", (1, 2, 3)),
    ],
)
def test_every_kind_of_pixels_is_seen_as_it_is(image, kind, colour):
    assert load_picture(encoded(image, kind), "here").getpixel((2, 2)) == colour


@pytest.mark.parametrize(
    "pixels", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70000, np.int32)], ids=["float", "32-bit"]
)
def test_pixels_of_unknown_range_are_refused_by_row(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.tiff")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "it", "solution": "[]", "image": "a.tiff"}))
    with pytest.raises(DataError, match=r"rows\.jsonl, row 0: the image's pixels are .*range is unknown"):
        read_rows(str(tmp_path / "rows.jsonl"))[0].open_image()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_shows_its_first_frame(kind):
    buffer = BytesIO()
    first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 200))
    options = {"lossless": True} if kind == "WEBP" else {}
    first.save(buffer, kind, save_all=True, append_images=[second], duration=100, **options)
    assert load_picture(buffer.getvalue(), "here").getpixel((4, 4)) == (200, 0, 0)


def test_masks_of_every_kind():
    drawn = np.zeros((20, 30), bool)
    drawn[5:10, 8:20] = True
    palette = Image.fromarray(drawn.astype(np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    white = Image.new("RGBA", (30, 20), (255, 255, 255, 0))
    white.putalpha(Image.fromarray(drawn.astype(np.uint8) * 255))
    blue = np.zeros((20, 30, 3), np.uint8)
    blue[drawn] = (0, 0, 1)
    for image in (
        palette,
        white,
        Image.fromarray(blue),
        Image.fromarray(drawn.astype(np.uint16)),
        Image.fromarray(drawn),
        Image.fromarray(drawn.astype(np.uint8)),
    ):
        assert (load_mask(encoded(image), "here") == drawn).all(), image.mode
    assert (load_mask(encoded(Image.fromarray(drawn.astype(np.float32)), "TIFF"), "here") == drawn).all()


def test_pictures_in_a_folder_are_known_by_their_endings(tmp_path):
    for name in ("b.JPG", "a.jpeg", "c.Png", "d.webp", "e.txt", "f.json", "g.TIF"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in pictures_in(tmp_path)] == ["a.jpeg", "b.JPG", "c.Png", "d.webp", "g.TIF"]


# Ways to give a picture


DATA = encoded(picture(40, 20))
TEXT = base64.b64encode(DATA).decode()
URL = f"data:image/png;base64,{TEXT}"


@pytest.mark.parametrize(
    "cell",
    [
        "a.png",
        "PATH",
        "file://PATH",
        {"image": "a.png"},
        {"path": "PATH", "bytes": None},
        {"path": None, "bytes": TEXT},
        {"url": "file://PATH"},
        {"url": URL},
        {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
        {"type": "image", "image": URL, "max_pixels": 1000},
        URL,
        URL.replace("data:image/png", "DATA:image/PNG"),
        URL.rstrip("="),
        URL.replace("+", "-").replace("/", "_").replace("image_png", "image/png"),
        f"data:image/png;base64,{TEXT[:76]}\n{TEXT[76:]}\n",
        TEXT,
        ["a.png"],
        [["a.png"]],
        [[{"image": ["a.png"]}]],
    ],
    ids=lambda cell: str(cell)[:40],
)
@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_every_way_to_give_a_picture_in_json(tmp_path, cell, ending):
    (tmp_path / "a.png").write_bytes(DATA)
    text = json.dumps({"problem": "it", "solution": "[]", "image": cell}).replace("PATH", str(tmp_path / "a.png"))
    source = tmp_path / f"rows.{ending}"
    source.write_text(f"[{text}]" if ending == "json" else f"\n{text}\n")
    (row,) = read_rows(str(source))
    assert row.open_image().size == (40, 20)
    assert not any(isinstance(image, str) and len(image) > 1000 for image in row.images)


def test_a_column_of_every_way_at_once(tmp_path):
    (tmp_path / "a.png").write_bytes(DATA)
    cells = ["a.png", ["a.png"], {"image": "a.png"}, URL, [{"bytes": TEXT}], {"url": URL}]
    lines = [json.dumps({"problem": "it", "solution": "[]", "images": cell}) for cell in cells]
    (tmp_path / "rows.jsonl").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    assert [row.open_image().size for row in read_rows(str(tmp_path / "rows.jsonl"))] == [(40, 20)] * 6


@pytest.mark.parametrize(
    "column",
    [
        [URL, "a.png"],
        [DATA, DATA],
        [{"bytes": DATA, "path": None}, {"bytes": None, "path": "a.png"}],
        [{"image": "a.png"}, {"image": URL}],
        [[{"bytes": DATA}], [{"bytes": DATA}]],
        [[URL], ["a.png"]],
    ],
    ids=["text", "bytes", "structs", "dictionaries", "lists of structs", "lists of texts"],
)
def test_every_way_to_give_a_picture_in_parquet(tmp_path, column):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.png").write_bytes(DATA)
    table = pa.table({"problem": ["it", "it"], "solution": ["[]", "[]"], "image": column})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert [row.open_image().size for row in read_rows(str(tmp_path / "rows.parquet"))] == [(40, 20)] * 2


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ({"picture": "a.png"}, "keys picture"),
        ({"image": "a.png", "mask": "b.png"}, "keys image, mask"),
        ({}, "image is empty"),
        ({"image": None}, "image is empty"),
        ("", "image is empty"),
        (7, "must be a path"),
        ([1, 2, 3], "must be a path"),
        (True, "must be a path"),
        ({"video": "a.mp4"}, "videos are not supported"),
        ("a.mp4", "videos are not supported"),
        ({"type": "video_url", "url": "https://here/a"}, "videos are not supported"),
        ("data:image/png;base64,!!!", "not base64"),
        ("data:image/png,raw", "data URL must begin"),
        ("data:video/mp4;base64,AAAA", "video"),
        ({"image": "x" * 10**6}, "cannot be read as an image|there is no image"),
        ("data:image/png;base64," + "!" * 10**6, "not base64"),
        ({"k" * 10**6: 1}, "keys k"),
        ([{"image_url": {"url": "x" * 10**6}}], "cannot be read as an image|there is no image"),
        ("data:image/png;base64," + "A" * 10**6, "cannot be read as an image"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_anything_else_is_refused_by_row_in_few_words(tmp_path, cell, complaint):
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"id": 3, "problem": "it", "solution": "[]", "image": cell}))
    with pytest.raises(DataError, match=rf"rows\.jsonl, row 0 \(id 3\): .*({complaint})") as caught:
        read_rows(str(source))[0].open_image()
    assert len(str(caught.value)) < 1500


def test_paths_below_an_address_and_the_home(tmp_path, monkeypatch):
    assert find_pictures("a/b.png", "https://here/data", "") == ["https://here/data/a/b.png"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_pictures("~/b.png", Path("/data"), "", outside=True) == [tmp_path / "b.png"]
    assert find_pictures(["a.png", ["b.png"]], Path("/data"), "") == [Path("/data/a.png"), Path("/data/b.png")]


def test_a_table_whose_pictures_have_another_name_is_refused(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"problem": "it", "solution": "[]", "img": "a.png"}))
    with pytest.raises(
        DataError, match=rf"{re.escape(str(source))}, row 0: its pictures must be in image or images, not in img"
    ):
        read_rows(str(source))


def test_a_column_of_videos_is_refused(tmp_path):
    source = tmp_path / "rows.jsonl"
    row = {"problem": "<video>it", "solution": "[]", "images": [], "videos": ["a.mp4"]}
    source.write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"row 0: .*videos are not supported"):
        read_rows(str(source))
