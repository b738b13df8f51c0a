"""Pictures as a person sees them. Every picture of a row and every mask is opened here.

- A picture is turned as its EXIF orientation says, as viewers show it and people annotate it.
- Transparent pixels show white.
- Of an animated picture the first frame is taken.
- Formats that can run programs (EPS) or are no pixels (SVG) are refused.
- So are images of more than MOST_PIXELS pixels, or of more than LONGEST_SIDE on a side, before they are decoded. Others
  take at most 12 bytes for each pixel, and for each byte of their file. A JPEG has at most MOST_SCANS scans.
- Greys of 16 bits are scaled to 8. Pixels that are floats or 32-bit integers have no known range and are refused.
"""

import re
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visurf_ray.aliases import Json
from visurf_ray.data.remote import is_address, local_path, machine_of
from visurf_ray.data.stored import Stored, decode_text, is_encoded
from visurf_ray.errors import DataError, lacks_memory, refused_as, short

Picture = str | Path | bytes | Stored | Image.Image

ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
KEYS = ("bytes", "path", "image", "url", "image_url")  # of dictionaries that are a picture; the first one given counts
_VIDEOS = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})

MOST_PIXELS = 178_956_970  # as Pillow, which refuses larger images unless a module of the user has changed its limit
LONGEST_SIDE = 65_535  # as in JPEG
MOST_SCANS = 100  # of a JPEG, as in libtiff; progressive ones have about ten
# Pillow warns of images above half of MOST_PIXELS.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Pillow has code for many more; EPS runs Ghostscript, which runs programs that are in the file.
_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "TGA", "TIFF", "WEBP")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112  # EXIF's tag


def load_picture(picture: Picture, where: str) -> Image.Image:
    """Return a picture in RGB, as a person sees it.

    Args:
        picture: A path, encoded bytes, or an image that is decoded and turned already.
        where: File and row, for error messages.

    Raises:
        DataError: The picture is missing or damaged, or its format or its kind of pixels is unknown.
    """
    if isinstance(picture, Image.Image):
        return picture if picture.mode == "RGB" else _in_rgb(picture, where)
    image = _decoded(picture, where)
    return _turned(_in_rgb(image, where), _orientation(image))


def picture_size(path: Path, where: str) -> tuple[int, int]:
    """Return width and height of a picture as viewers show it. Raises DataError if it cannot be opened."""
    image = _opened(path, where)
    width, height = image.size
    if image.format == "TIFF":  # Pillow itself turns these, and tells the size after that
        return width, height
    return (height, width) if _orientation(image) >= 5 else (width, height)


def load_mask(picture: Picture, where: str) -> NDArray[np.bool_]:
    """Return the mask (H, W) in a picture: all pixels that are neither black nor transparent. Turned like a picture.

    Raises:
        DataError: The picture is missing or damaged.
    """
    image = _decoded(picture, where)
    image = _turned(image, _orientation(image))
    if image.mode in ("P", "PA", "LA", "RGBA") or image.has_transparency_data:
        bands = (np.asarray(band) for _, band in _bands(image))
        return np.concatenate([pixels[..., :3].any(axis=-1) & (pixels[..., 3] > 0) for pixels in bands])
    if image.mode in ("CMYK", "YCbCr", "HSV"):
        image = image.convert("RGB")
    pixels = np.asarray(image)
    return np.asarray(pixels.any(axis=-1) if pixels.ndim == 3 else pixels != 0)


def pictures_in(folder: Path) -> list[Path]:
    """Return the pictures in a folder by their endings, in upper or lower case, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)


def find_pictures(cell: Json, root: Path | str, where: str, *, outside: bool = False) -> list[Picture]:
    """Return the pictures in a cell of a table, not opened yet.

    Args:
        cell: A path, an address (`https://…`, `file://…`), a data URL, encoded bytes, a dictionary with one of these
            under `bytes`, `path`, `image`, `url` or `image_url`, or a list of these, which may be nested.
        root: The folder, or its address, that relative paths start from.
        where: File and row, for error messages.
        outside: Whether paths may lead out of `root`, and addresses to other machines than that of `root`.

    Raises:
        DataError: The cell holds anything else; the message names the keys.
    """
    return list(_found(cell, root, where, outside))


def inside(path: Path, root: Path, where: str, *, outside: bool = False) -> Path:
    """Return the path of a file that a data set names.

    Raises:
        DataError: It leads out of the folder `root`, through `..`, as an absolute path or over a link, and `outside` is
            false.
    """
    try:
        if outside or path.resolve().is_relative_to(root.resolve()):
            return path
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in it; links in a circle
        raise DataError(f"{where}: {short(repr(str(path)), 500)} is no path ({short(error)})") from error
    raise DataError(f"{where}: the path {short(path, 500)} leads out of the folder {root}; {_TRUST}")


_TRUST = "name a folder that holds it in task.image_root, or set task.outside_paths=true if you trust the data"


_BESIDE = re.compile("type|detail|text|file_name|(min|max)_pixels|resized_(height|width)|height|width|format")


def _found(cell: Json, root: Path | str, where: str, outside: bool) -> Iterator[Picture]:
    if isinstance(cell, list | tuple):
        for item in cell:
            yield from _found(item, root, where, outside)
    elif isinstance(cell, dict):
        given = {key: value for key, value in cell.items() if value is not None}
        if "video" in given or given.get("type") in ("video", "video_url"):
            raise DataError(f"{where}: {NO_VIDEO}")
        key = next((key for key in KEYS if given.get(key)), None)
        others = [key for key in given if key not in KEYS and not _BESIDE.fullmatch(key)]
        if others or (key is None and given):
            raise DataError(
                f"{where}: the image is a dictionary with the keys {short(', '.join(given))}: it must have one of "
                f"{', '.join(KEYS)}, with a path, an address, a data URL or encoded bytes"
            )
        if key is None:
            raise DataError(f"{where}: the image is empty")
        encoded = key == "bytes" and isinstance(given[key], str)
        yield from _found(_from_base64(given[key], where) if encoded else given[key], root, where, outside)
    elif isinstance(cell, bytes | Stored | Image.Image) and cell:
        yield cell
    elif isinstance(cell, str | Path) and str(cell).strip():
        yield _named(str(cell).strip(), root, where, outside)
    elif cell is None or cell in ("", b"") or isinstance(cell, str):
        raise DataError(f"{where}: the image is empty")
    else:
        raise DataError(
            f"{where}: the image must be a path, an address, a data URL or encoded bytes, not {short(repr(cell), 80)}"
        )


NO_VIDEO = "it has a video, and videos are not supported: extract frames and give them as images"


def _named(text: str, root: Path | str, where: str, outside: bool) -> Picture:
    """Return the picture that a text names or holds."""
    if is_encoded(text):
        return _from_base64(text, where)
    if Path(text.partition("?")[0]).suffix.lower() in _VIDEOS:
        raise DataError(f"{where}: {NO_VIDEO} ({short(text)})")
    if text.lower().startswith("file://"):
        text = str(local_path(text))
    if not outside and "::" in text and is_address(text if is_address(text) else str(root)):
        raise DataError(f"{where}: {short(text, 500)} is a chain of addresses; {_TRUST}")
    if is_address(text):
        if not outside and machine_of(text) != machine_of(str(root)):
            raise DataError(
                f"{where}: {short(text, 500)} would be fetched, but the data are not there; fetch it before the run, "
                "or set task.outside_paths=true if you trust the data"
            )
        return text
    if is_address(str(root)):
        if not outside and ".." in text.split("/"):
            raise DataError(f"{where}: the path {short(text, 500)} leads out of {root}; {_TRUST}")
        return f"{str(root).rstrip('/')}/{text}"
    return inside(Path(root) / Path(text).expanduser(), Path(root), where, outside=outside)


def _from_base64(text: str, where: str) -> bytes:
    try:
        return decode_text(text)
    except ValueError as error:
        raise DataError(f"{where}: {error}: {short(text, 60)}") from error


def _decoded(picture: Picture, where: str) -> Image.Image:
    """Return an opened picture with its pixels, neither turned nor converted."""
    image = _opened(picture, where)
    if _scans(image) > MOST_SCANS:
        raise DataError(
            f"{where}: the image{_name(picture)} is a JPEG of more than {MOST_SCANS} scans: save it as a JPEG that is "
            "not progressive"
        )
    with refused_as(f"{where}: the image{_name(picture)} is damaged"):  # Pillow raises what it likes
        image.load()
    return _bounded(image, picture, where)  # an icon may have another size than its header


def _opened(picture: Picture, where: str) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    name = _name(picture).strip() or "the embedded bytes"
    with refused_as(f"{where}: {name} cannot be read as an image"):  # Pillow raises what it likes for damaged files
        image = Image.open(_file(picture, where), formats=_FORMATS)
    return _bounded(image, picture, where)


def _file(picture: str | Path | bytes | Stored, where: str) -> Path | BytesIO:
    if isinstance(picture, Stored | bytes):
        return BytesIO(picture if isinstance(picture, bytes) else picture.read())
    try:
        path = local_path(picture) if is_address(str(picture)) else Path(picture)
    except DataError as error:  # the address cannot be fetched
        raise DataError(f"{where}: {error}") from error
    if not path.exists():
        raise DataError(f"{where}: there is no image {short(picture, 500)}")
    if not path.is_file():  # a pipe would be waited for
        raise DataError(f"{where}: {short(picture, 500)} cannot be read as an image (it is no file)")
    return path


def _scans(image: Image.Image) -> int:
    """Return how many scans the first image in an opened JPEG has, MOST_SCANS + 1 at most; 0 for other formats.

    Goes from marker to marker as libjpeg does. Thumbnails, further images and videos in the file do not count.
    """
    file = getattr(image, "fp", None)
    if image.format not in ("JPEG", "MPO") or file is None:
        return 0
    before = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(before)
    scans, place = 0, 0
    while scans <= MOST_SCANS and (marker := _MARKER.search(data, place)) and marker[1] != b"\xd9":
        scans += marker[1] == b"\xda"
        place = marker.end() + max(2, int.from_bytes(data[marker.end() : marker.end() + 2]))
    return scans


# The markers of a JPEG that begin a segment, whose length follows in two bytes, and the one that ends the image, FF D9.
# FF DA begins a scan. Its data have no such markers, but others: FF 00 and FF D0 to FF D7, which have no length.
_MARKER = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xdd\xe0-\xef\xfe])")


def _bounded(image: Image.Image, picture: Picture, where: str) -> Image.Image:
    """Return an image that is not decoded yet. Raises DataError if it is too large."""
    width, height = image.size
    if width * height <= MOST_PIXELS and max(width, height) <= LONGEST_SIDE:
        return image
    raise DataError(
        f"{where}: the image{_name(picture)} has {width:,} × {height:,} pixels, but may have at most {MOST_PIXELS:,}, "
        f"and {LONGEST_SIDE:,} on a side: scale it down"
    )


def _name(picture: Picture) -> str:
    return f" {short(picture, 500)}" if isinstance(picture, str | Path) else ""


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none or the EXIF data are malformed, as viewers do."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:
        if lacks_memory(error):
            raise
        return 1
    return found if found in _TURNS else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _in_rgb(image: Image.Image, where: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _scaled(image)
    if image.mode in ("I", "F"):
        kind = "floats" if image.mode == "F" else "32-bit integers"
        raise DataError(f"{where}: the image's pixels are {kind}, whose range is unknown: save it with 8 or 16 bits")
    with refused_as(f"{where}: an image of mode {image.mode} cannot be converted to RGB"):
        if image.mode in ("La", "RGBa"):  # colours that are multiplied by alpha
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
        return _on_white(image) if image.has_transparency_data else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Return an image with transparent pixels in RGB."""
    shown = Image.new("RGB", image.size, "white")
    for top, band in _bands(image):
        shown.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"), (0, top))
    return shown


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the first row and the RGBA image of each 256 rows: converted at once a large image takes gigabytes."""
    for top in range(0, image.height, 256):
        yield top, image.crop((0, top, image.width, min(image.height, top + 256))).convert("RGBA")


def _scaled(image: Image.Image) -> Image.Image:
    """Return an image of 16-bit greys in RGB. Pixels of the grey that means transparent are white."""
    greys = np.round(np.arange(2**16) / 257).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int) and 0 <= key < len(greys):
        greys[key] = 255
    return Image.fromarray(greys[np.asarray(image)]).convert("RGB")
