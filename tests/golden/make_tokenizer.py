"""Writes the results of Hugging Face's BERT tokenizer, for the tests and the library.

Usage: python tests/golden/make_tokenizer.py

Needs transformers 5.23 with tokenizers 0.23. Its texts need emoji 2.16 (names of emoji
in 14 languages) and babel 2.18 (CLDR's names in 300 locales). It writes

* align_jax/input/bert_characters.txt: the normalised form of each code point,
* tests/golden/tokenizer.json.gz: a vocabulary, texts and their ids.
"""

import collections
import gzip
import hashlib
import itertools
import json
import pathlib
import random
import unicodedata

import babel
import emoji
from babel import localedata
from tokenizers import normalizers
from transformers import BertTokenizer

ROOT = pathlib.Path(__file__).parents[2]
CHARACTERS = ROOT / "align_jax/input/bert_characters.txt"
GOLDEN = ROOT / "tests/golden/tokenizer.json.gz"

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MAX_TOKENS = 64
BLOCK = 0x1000  # code points of one digest
POINTS = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000]
HANGUL = range(0xAC00, 0xD7A4)
UNUSED = "Cn", "Co"  # categories: not assigned, private use

BACKEND = BertTokenizer(do_lower_case=True).backend_tokenizer
normalize = BACKEND.normalizer.normalize_str

NASTY = [
    # The empty text, and texts of only white space or dropped characters.
    "",
    " ",
    "\t\n\r ",
    "\u00a0\u2003\u3000\u2028\u2029\x85",
    "\x00",
    "\u200b\u200d\ufeff",
    # Controls, white space and format characters inside words.
    "a\x00b \x7f c\x1fd e\x85f g\ufffdh",
    "zero\u200bwidth join\u200der \ufeffbom so\u00adft",
    "tab\there line\nbreak\r\nand\x0bvt\x0cff",
    "nb\u00a0sp thin\u2009sp ls\u2028ps\u2029nel\x85x",
    "ideographic\u3000space ogham\u1680space mongolian\u180evowel",
    "a\u200eb\u200f \u202aleft\u202c \u2066i\u2069",
    "tag\U000e0041s \U000e007f private\ue000 \U000f0000x \U0010fffd",
    "non\ufdd0char \uffff \U0001ffff",
    # Case.
    "İstanbul IĞDIR ılık Iı iİ",
    "STRASSE Straße ẞ ß",
    "ΟΔΟΣ ΣΑΣ Σ ς σ ὈΔΥΣΣΕΎΣ",
    "ǅ ǆ Ǆ ǈ Ǌ Ǳ",
    "Ⅷ ⅷ Ⓐ ⓐ Ａｂｃ１２３",
    "ŉ ǰ ΐ և ﬁ ﬃ ﬓ ĳ Ĳ ŀ ſ",
    "Ꭰꭰ ᏸ Ა ა Ⴀ ⴀ",
    "Ω Ω K K Å Å µ μ",
    "𐐀𐐨 𞤀𞤢 𝐀𝒜𝔸",
    # Accents, composed and not; marks that stay.
    "café cafe\u0301 CAFÉ Ångström Łódź Đ đ Ø ø Æ œ",
    "Việt Nam ế ệ ữ Ế",
    "a\u0327\u0301 a\u0301\u0327 q\u0307\u0323 q\u0323\u0307",
    "z̸̢̛͎a̷͘l̵g̶o̴",
    "\u0301alone \u0301 x\u20dd \u20e3",
    "é" * 60,
    "한" * 40,
    "가각힣 한국어 ㄱㄴ ᄒᆞᆫ 조선글",
    # Arabic, Hebrew, Indic, Thai and other marks.
    "السَّلَامُ عَلَيْكُمْ، كيف؟ ٱلرَّحْمٰن ـــ",
    "שָׁלוֹם עֲלֵיכֶם־ ״צה״ל״ ׀",
    "فارسی می‌خواهم گچ‌کاری",
    "हिन्दी में क्षत्रिय। ज़ क़ ॐ",
    "தமிழ் மொழி ௧",
    "ภาษาไทย น้ำ กำลัง ๆ ฿",
    "မြန်မာ ဘာသာ၊",
    "ភាសាខ្មែរ។",
    "བོད་སྐད།",
    "বাংলা ড় ঢ় য়",
    "አማርኛ፡ ነው።",
    "ქართული ᲥᲐᲠᲗᲣᲚᲘ",
    "Հայերեն՝ և",
    "ᠮᠣᠩᠭᠣᠯ",
    "ⵜⴰⵎⴰⵣⵉⵖⵜ",
    # CJK with its compatibility and newer blocks, kana.
    "中文字符，测试。繁體「字」",
    "日本語のテスト、カタカナ・ﾊﾝｶｸ　パパ が か\u3099 〜",
    "豈更車 \u2f00 〇 々 ㊗ ㍻ ㌔ 𠀀𪜀𫝀𫠠\U0002ceb0\U00030000\U00031350丽",
    "ㄅㄆㄇ 注音",
    "猫cat犬dog",
    "㐂㐅鿿\u9ffd",
    # Emoji.
    "👨‍👩‍👧‍👦 family 👩🏽‍🚀 🏳️‍🌈 🏴‍☠️ ❤️‍🔥",
    "❤ ❤️ ☺︎ ☺️ ©️ ™ ® ℠ ✔️",
    "👍👍🏻👍🏿 1️⃣ #️⃣ *️⃣ 🔟",
    "🇫🇷🇯🇵🇺🇳 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "so😀joined 🫠🫨🩷🪿🫩🫆",
    "🀄🃏🈚️🉐㊙️",
    # Punctuation and symbols.
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "$5 + 3 < 9 = x > y ^ z ` | ~",
    "¡¿§¶†‡•…‰′″‹›«»“”‘’„‚–—―‿⁂※",
    "€£¥₩₹₿¢¤ ±×÷∞≠≤ ←→⇒ ■□▲○ ♥♪ ¬ ¦ ¨ ¯ ´ ¸",
    "² ³ ¹ ½ ¼ ⅓ ª º № ℃ ㎡ x² m³",
    "don't rock-n-roll e.g. U.S.A. 3.14 1,000 50% @user #tag a_b c++ C#",
    "http://example.com/a?b=c&d=e#f IMG_0001.JPG",
    "&amp; &lt;b&gt; <br/> %20",
    "؟،؛ ؝ ۔ ٪ ٫ 〈〉《》【】〔〕・ー〜 ｡｢｣､･ ！？（）",
    "᙭ ៖ ៘ ៙ ៚ ៛ ֊ ־ ᠆ ⸗ ⹃ ⹝ 𐄀 𑁇 𑇉 𝪈 𞥞",
    # Words of 99, 100 and 101 characters, in one and more bytes, and many words.
    "x" * 99,
    "x" * 100,
    "x" * 101,
    "é" * 100,
    "é" * 101,
    "e\u0301" * 100,
    "字" * 101,
    "я" * 100,
    "я" * 101,
    "😀" * 100,
    "😀" * 101,
    "가" * 34,
    "나" * 50,
    "각" * 34,
    "-" * 120,
    "a\u200b" * 100,
    "x" * 101 + " after " + "y" * 101 + ",z",
    "word " * 80,
    "a," * 62,
    "é" * 5000,
    "a " * 61,
    "a " * 62,
    "a " * 63,
    # Special tokens as text.
    "[SEP]",
    "a [SEP] b",
    "x[MASK]y",
    "[CLS][PAD][UNK]",
    "[pad] [Sep] [ SEP ] ##s ## # [unused1]",
    "[PAD] [PAD] [PAD]",
]


def split_words(text: str) -> list[str]:
    """Returns the words of a text that WordPiece gets."""
    pairs = BACKEND.pre_tokenizer.pre_tokenize_str(normalize(text))
    return [word for word, _ in pairs]


def spell(point: int) -> str:
    """Returns the normalised form of a code point, with punctuation between spaces."""
    spelled = ""
    for character in normalize(chr(point)):
        words = split_words(f"a{character}b")
        if len(words) == 1:
            spelled += character
        else:
            spelled += " " if len(words) == 2 else f" {character} "
    assert f"a{spelled}b".split() == split_words(f"a{chr(point)}b"), hex(point)
    return spelled


def write_characters() -> dict[int, str]:
    """Writes `CHARACTERS`; returns the forms of all code points."""
    spelled = {point: spell(point) for point in POINTS}
    lines = [
        "# What BERT's uncased normalisation makes of each code point, measured by",
        "# tests/golden/make_tokenizer.py. First-last code point, tab, what each",
        "# becomes, hex (. is itself, 20 a space, - nothing). The others stay as they",
        "# are, but for Hangul syllables, which become their jamo.",
    ]
    runs: list[list] = []
    for point in range(0x110000):
        text = spelled.get(point, "")
        own = chr(point)
        if text == own or point in HANGUL:
            continue
        rule = " ".join("." if c == own else f"{ord(c):X}" for c in text) or "-"
        if runs and runs[-1][1:] == [point - 1, rule]:
            runs[-1][1] = point
        else:
            runs.append([point, point, rule])
    for first, last, rule in runs:
        span = f"{first:X}" if first == last else f"{first:X}-{last:X}"
        lines.append(f"{span}\t{rule}")
    CHARACTERS.write_text("\n".join(lines) + "\n")
    return spelled


def digests() -> list[str]:
    """Returns a digest per block of the words of a{c}b for every code point c in it."""
    blocks = []
    for start in range(0, 0x110000, BLOCK):
        points = [p for p in range(start, start + BLOCK) if not 0xD800 <= p < 0xE000]
        lines = [" ".join(split_words(f"a{chr(p)}b")) for p in points]
        blocks.append(hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8])
    return blocks


def sorted_marks(spelled: dict[int, str]) -> list[str]:
    """Returns the kept marks that Hugging Face sorts among their neighbours."""
    # U+0345 has the highest combining class: marks of all other classes go before it.
    nfd = normalizers.NFD().normalize_str
    kept = sorted(set("".join(spelled.values())))
    return [c for c in kept if nfd(f"a\u0345{c}") != f"a\u0345{c}"]


def collect_texts(marks: list[str]) -> list[str]:
    """Returns hand-written, real and random texts."""
    draw = random.Random(0)
    texts = list(NASTY)
    data = {c: d for c, d in emoji.EMOJI_DATA.items() if d["status"] <= 2}
    for language in emoji.LANGUAGES:
        emoji.config.load_language(language)
        named = [(c, d[language]) for c, d in data.items() if language in d]
        for character, name in draw.sample(named, 35):
            texts.append(f"{name.strip(':').replace('_', ' ')} {character}")
    pictures = list(data)
    texts += ["".join(draw.sample(pictures, 6)) for _ in range(60)]
    for identifier in sorted(localedata.locale_identifiers()):
        locale = babel.Locale.parse(identifier)
        if locale.territory or locale.variant:
            continue
        names = [*locale.languages.values(), *locale.territories.values()]
        names += [*locale.months["format"]["wide"].values()]
        for _ in range(2):
            texts.append(", ".join(draw.sample(names, min(5, len(names)))))
    seen = sorted(set("".join(texts)) - set(marks))
    assigned = [
        chr(p) for p in POINTS if unicodedata.category(chr(p)) not in ("Cn", "Co")
    ]
    assigned = sorted(set(assigned) - set(marks))
    for _ in range(300):
        pool = seen if draw.random() < 0.7 else assigned
        drawn = draw.choices(pool, k=draw.randint(1, 40))
        texts.append("".join(c + " " * (draw.random() < 0.15) for c in drawn))
    return list(dict.fromkeys(texts))


def assemble_vocabulary(texts: list[str]) -> list[str]:
    """Returns nearly all characters of the texts, and their most frequent pieces."""
    words = collections.Counter(w for text in texts for w in split_words(text))
    characters = sorted(set("".join(words)))
    known = [c for c in characters if c.isascii() or ord(c) % 16]  # others: [UNK]
    pieces: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        if len(word) <= 20:
            for end in range(2, len(word) + 1):
                pieces[word[:end]] += count
            for start in range(1, len(word) - 1):
                pieces["##" + word[start:]] += count
    frequent = sorted(pieces, key=lambda piece: (-pieces[piece], piece))[:2000]
    vocabulary = SPECIAL + known + ["##" + c for c in known] + frequent
    return list(dict.fromkeys(vocabulary))


def main():
    """Writes both files."""
    spelled = write_characters()
    marks = sorted_marks(spelled)
    for first, second in itertools.product(marks, marks):
        kept = split_words(f"a{first}{second}")
        assert kept in ([f"a{first}{second}"], [f"a{second}{first}"])
    texts = collect_texts(marks)
    vocabulary = {t: i for i, t in enumerate(assemble_vocabulary(texts))}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True)

    def encode(split_special_tokens: bool):
        return tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=MAX_TOKENS,
            split_special_tokens=split_special_tokens,
        )

    encoded = encode(split_special_tokens=True)
    ids, by_default = encoded["input_ids"], encode(False)["input_ids"]
    for text, row, default in zip(texts, ids, by_default, strict=True):
        assert (row != default) == any(token in text for token in SPECIAL), text
    for row, mask in zip(ids, encoded["attention_mask"], strict=True):
        assert mask == [int(token != 0) for token in row]
    golden = {
        "tokenizer.json": json.loads(tokenizer.backend_tokenizer.to_str()),
        "max_tokens": MAX_TOKENS,
        "texts": texts,
        "ids": [[token for token in row if token] for row in ids],
        "block_digests": digests(),
        "sorted_marks": marks,
    }
    content = json.dumps(golden, ensure_ascii=False, separators=(",", ":")).encode()
    GOLDEN.write_bytes(gzip.compress(content, mtime=0))
    unknown = sum(row.count(1) for row in ids)
    print(f"{len(texts)} texts, {len(vocabulary)} tokens, {unknown} ids are [UNK]")


if __name__ == "__main__":
    main()
