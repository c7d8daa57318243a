"""The charsets that pages declare, after the WHATWG Encoding Standard."""

from webencodings.labels import LABELS

# Encodings of the standard whose Python codec has another name, or knows fewer
# characters than browsers do.
CODECS = {
    "big5": "big5hkscs",
    "euc-kr": "cp949",
    "gbk": "gb18030",
    "iso-8859-8-i": "iso-8859-8",
    "macintosh": "mac-roman",
    "shift_jis": "cp932",
    "windows-874": "cp874",
    "x-mac-cyrillic": "mac-cyrillic",
    "x-user-defined": "cp1252",
}


def codec_of(label: str) -> str | None:
    """Returns the name of Python's codec for a label of the standard.

    None means that the standard lacks the label, or that browsers refuse to decode it,
    as "iso-2022-kr".
    """
    name = LABELS.get(label.strip("\"' \t\r\n\f").lower())
    return None if name in (None, "replacement") else CODECS.get(name, name)
