"""Images and documents as Anthropic's Messages API takes them."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from .._messages import Audio, Document, Image, Video
from ._base import unsupported

if TYPE_CHECKING:
    from .._util import JSONObject

_PDF = "application/pdf"
_IMAGE_TYPES = {"image/jpeg", "image/png", "image/gif", "image/webp"}
_TEXT_TYPES = {"application/json", "application/xml", "application/yaml", "application/javascript"}


def media(block: Image | Document | Audio | Video) -> JSONObject:
    """Return an image or a document the API can read, or a text that says what was here."""
    match block:
        case Image() if source := _image_source(block):
            return {"type": "image", "source": source}
        case Document(name=name) if source := _document_source(block):
            return {"type": "document", "source": source} | ({"title": name} if name else {})
    return {"type": "text", "text": unsupported(block)}


def _image_source(image: Image) -> JSONObject | None:
    mime_type, data = _inline(image)
    if data is not None:
        source = {"type": "base64", "media_type": mime_type, "data": data}
        return source if mime_type in _IMAGE_TYPES else None
    return _remote(image.uri) if image.uri else None


def _document_source(document: Document) -> JSONObject | None:
    mime_type, data = _inline(document)
    if data is None:
        source = _remote(document.uri) if document.uri else None
        return None if source and source["type"] == "url" and mime_type != _PDF else source
    if mime_type == _PDF:
        return {"type": "base64", "media_type": _PDF, "data": data}
    if not mime_type.startswith("text/") and mime_type not in _TEXT_TYPES:
        return None
    try:
        text = base64.b64decode("".join(data.split()), validate=True).decode(errors="replace")
    except ValueError:
        return None
    return {"type": "text", "media_type": "text/plain", "data": text}


def _inline(media: Image | Document) -> tuple[str, str | None]:
    """Return the MIME type without parameters, and the base64 data if it is here, if only in a `data:` address."""
    mime_type, data = media.mime_type, media.data
    head, _, tail = (media.uri or "").partition(",")
    if data is None and head.startswith("data:") and head.endswith(";base64"):
        mime_type, data = head.removeprefix("data:").removesuffix(";base64") or mime_type, tail
    mime_type = mime_type.partition(";")[0].strip().lower()
    return ("image/jpeg" if mime_type == "image/jpg" else mime_type), data


def _remote(uri: str) -> JSONObject:
    """Return the source of what lies elsewhere: on the web, or, by its id, among the files uploaded to the API."""
    if uri.startswith(("http:", "https:")):
        return {"type": "url", "url": uri}
    return {"type": "file", "file_id": uri}
