"""The one decode function, for captioner and trainer alike: the same bytes are the same pixels everywhere.

Decoders differ in what they do silently: some rotate by EXIF and some do not, some return grey pixels for the missing
half of a truncated file. Here an image is upright, sRGB, complete, and 8 bits deep, or an `ImageError` says why not.
"""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import PIL
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from lens_core.contracts import ImageInfo
from lens_core.errors import ImageError
from lens_core.specs import pip_line

try:
    import pillow_heif
except ImportError:
    pillow_heif = None  # type: ignore[assignment]
else:
    pillow_heif.register_heif_opener()

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T", float, str, bytes)

__all__ = [
    "DECODER",
    "MAX_PIXELS",
    "SMALL_SIDE",
    "Candidate",
    "decode",
    "fit",
    "header",
    "is_animated",
    "scale_to",
    "to_jpeg",
]

MAX_PIXELS = 178_956_970
"""Larger images are refused before they are decoded: a few kilobytes can claim to be terabytes of pixels."""

DECODER = f"pillow {PIL.__version__}" + (f" heif {pillow_heif.__version__}" if pillow_heif else "")
"""What decodes here: what one version refuses another may read."""

SMALL_SIDE = 512
"""Longer side of the copy that filters measure on."""

_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP") + (("HEIF",) if pillow_heif else ())
"""What is opened; Pillow knows many more, among them some that run other programs, such as EPS."""

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_EXIF_ORIENTATION = 0x0112
_PNG_EXIF = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile type exif")


class Candidate:
    """An image under examination: its header is read at once, its pixels on demand and only once."""

    def __init__(self, name: str, data: bytes):
        self.name = name
        self.data = data
        self.measures: dict[str, float | str | bytes] = {}

    @functools.cached_property
    def info(self) -> ImageInfo:
        """Size and format by the header; raises `ImageError`."""
        return header(self.data)

    def pixels(self) -> np.ndarray:
        """uint8 [height, width, 3]; raises `ImageError`."""
        return self._pixels

    def small(self) -> np.ndarray:
        """uint8 [height, width, 3] with `SMALL_SIDE` pixels on the longer side; raises `ImageError`."""
        return self._small

    def measure(self, name: str, compute: Callable[[], T]) -> T:
        """What `compute` gives, computed once; see the contract."""
        if name not in self.measures:
            self.measures[name] = compute()
        return self.measures[name]  # type: ignore[return-value]

    @functools.cached_property
    def _pixels(self) -> np.ndarray:
        return decode(self.data)

    @functools.cached_property
    def _small(self) -> np.ndarray:
        return scale_to(self.pixels(), SMALL_SIDE)


def header(data: bytes) -> ImageInfo:
    """What the header says, without decoding: size as displayed, and format in lower case.

    Raises:
        ImageError: no image format is recognised, the header is damaged, or it claims too many pixels.
    """
    with _reading(), _open(data) as image:
        width, height = image.size
        if _lies_on_its_side(image, data):
            width, height = height, width
        return ImageInfo(width=width, height=height, format=(image.format or "unknown").lower())


def decode(data: bytes) -> np.ndarray:
    """Decode to upright sRGB: uint8 [height, width, 3].

    EXIF orientation is applied, an embedded colour profile converted, transparency laid over white, 16-bit depth
    scaled to 8, and of an animation the first frame taken (the filter `decodable` can drop animations instead). HEIF
    needs the extra `lens-core[heif]`; AVIF does not.

    Raises:
        ImageError: not an image, truncated, damaged, or too large; the message is the reason.
    """
    with _reading(), _open(data) as image:
        image.load()
        return np.asarray(_srgb(_eight_bit(ImageOps.exif_transpose(image))))


def fit(pixels_HW3: np.ndarray, height: int, width: int) -> np.ndarray:
    """Scale an image to cover `height` × `width` and cut the middle out: uint8 [height, width, 3]."""
    if pixels_HW3.shape[:2] == (height, width):
        return pixels_HW3
    image = Image.fromarray(pixels_HW3)
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))


def scale_to(pixels_HW3: np.ndarray, side: int) -> np.ndarray:
    """Scale an image, up or down, to `side` pixels on its longer side: uint8 [height, width, 3]."""
    height, width = pixels_HW3.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = Image.fromarray(pixels_HW3)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0))


def is_animated(data: bytes) -> bool:
    """Whether a GIF, WebP, PNG or AVIF has more than one frame; the pages of a TIFF are no animation.

    Raises:
        ImageError: it is not an image.
    """
    with _reading(), _open(data) as image:
        return image.format in {"AVIF", "GIF", "PNG", "WEBP"} and bool(getattr(image, "is_animated", False))


def to_jpeg(pixels_HW3: np.ndarray, *, max_side: int, quality: int) -> bytes:
    """A JPEG no larger than `max_side` on its longer side, as sent to captioning services; the same every time."""
    image = Image.fromarray(pixels_HW3)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Whatever goes wrong becomes an `ImageError`; what Pillow's readers warn of, they can mend."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError as error:
        raise ImageError("it is not an image") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"it claims more than {MAX_PIXELS:,} pixels") from error
    except (ImageError, MemoryError):  # a lack of memory says nothing of the image
        raise
    except Exception as error:
        # Damaged files make the readers raise what comes to hand: OSError, SyntaxError, TypeError, struct.error, …
        raise ImageError(_reason(error)) from error


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("it is empty")
    if pillow_heif is None and data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and b"avif" not in data[12:64]:
        raise ImageError(f"it is a HEIF image, for which a library is missing: {pip_line('lens-core[heif]')}")
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"it claims {image.width}x{image.height}, more than {MAX_PIXELS:,} pixels")
    return image


def _lies_on_its_side(image: Image.Image, data: bytes) -> bool:
    """Whether EXIF exchanges width and height, and Pillow has not done so yet."""
    if image.format == "TIFF":
        return False  # Pillow gives the size as displayed
    if image.format == "PNG" and not any(name in data for name in _PNG_EXIF):
        return False  # Pillow would decode all pixels to look for it behind them
    return image.getexif().get(_EXIF_ORIENTATION, 1) in {5, 6, 7, 8}


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        # Integer modes hold 16-bit samples, which Pillow would clip at 255 instead of scaling; float ones hold 0…1,
        # or say by their largest value that they hold 0…255 or 0…65535.
        tops = (1, 255) if image.mode == "F" else ()
        top = next((top for top in tops if values.max(initial=0) <= top), 65535)
        return Image.fromarray(np.clip(np.rint(values * (255 / top)), 0, 255).astype(np.uint8))
    return image


def _srgb(image: Image.Image) -> Image.Image:
    if image.mode == "P" or "transparency" in image.info:  # which may also be one colour of an RGB or grey image
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    alpha = None
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"}:
        alpha = image.convert("RGBA").getchannel("A")
        image = image.convert("LA").getchannel("L") if image.mode in {"LA", "La"} else image.convert("RGB")
    image = _converted(image)
    if alpha is not None:
        white = Image.new("RGB", image.size, "white")
        image = Image.composite(image, white, alpha)
    return image


def _converted(image: Image.Image) -> Image.Image:
    """To sRGB through the embedded profile, if there is a sound one that fits."""
    profile = image.info.get("icc_profile")
    if profile and image.mode in {"RGB", "L", "CMYK"}:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a broken profile, or one for another kind of pixels: viewers ignore it, and so do we
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    text = str(error).lower()
    if "truncated" in text or "unexpected end" in text or "premature" in text or "not enough" in text:
        return "it is truncated"
    return f"it is damaged ({' '.join(str(error).split()) or type(error).__name__})"
