"""Texts that are hard to tokenize, and plain ones to learn vocabularies from."""

import random
import unicodedata

PLAIN = [
    "a photo of a red cat on the wooden table",
    "two dogs run along the beach at sunset, 4k wallpaper",
    "it's the old town's clock; we'll see what they've kept, i'm sure you'd agree",
    "the quick brown fox jumps over the lazy dog",
    "black and white picture of people walking in the rain, 1987",
    "eine große straße in der stadt mit fußgängern und bäumen",
    "une photo d'un chat noir près de la fenêtre, été 2021",
    "una niña pequeña con un paraguas amarillo bajo la lluvia",
    "красный кот сидит на столе возле окна",
    "ένας σκύλος τρέχει στην παραλία το βράδυ",
    "猫がテーブルの上に座っています。赤い花と青い空",
    "一只黑猫坐在木桌上，窗外下着雨",
    "빨간 고양이가 나무 탁자 위에 앉아 있다",
    "قطة سوداء تجلس على الطاولة قرب النافذة",
    "חתול שחור יושב על השולחן ליד החלון",
    "काली बिल्ली मेज़ पर बैठी है",
    "👍🏽 best day ever 😀😀 #sunset @beach http://example.com/a?b=c&d=1",
]
# Words that look like special tokens, in the tokenizers' spellings.
SPECIAL = [
    "<|startoftext|>",
    "<|endoftext|>",
    "<|EndOfText|>",
    "<pad>",
    "</s>",
    "<s>",
    "<unk>",
    "<bos>",
    "<eos>",
    "<mask>",
    "[PAD]",
    "[SEP]",
    "<0x00>",
    "<0x41>",
    "</w>",
    "##s",
    "\uff1c/s\uff1e",  # NFKC makes </s> of it
    "<pad></s><eos>",
]
PIECES = [
    *SPECIAL,
    # White space of all kinds, and what only looks like it.
    *" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u2009\u200a",
    *"\u2028\u2029\u202f\u205f\u3000\u180e\u200b\u2060\ufeff",
    "  ",
    "\r\n\r\n",
    "\u2581",
    "\u2581\u2581",
    # Controls, format characters, and points without a character.
    *"\x00\x01\x07\x08\x1b\x7f\x9f\xad\u200c\u200d\u200e\u200f\u202e\u2066\u2069",
    *"\ufffd\ufffe\uffff\ue000\U000e0041\U0010ffff\U0001fffe",
    # Combining marks, alone and in runs; NFC and NFKC cases.
    *"\u0301\u0308\u0345\u20dd\u0489",
    "e\u0301",
    "a\u0327\u0301\u0300",
    "q\u0307\u0323",
    "z\u0338\u0322\u031b\u0358\u0321",
    "\u1100\u1161\u11a8",
    "\uac00\u11a8",
    *"ÅÅKΩﬁﬃŉǆĳ½²①㎏℡ｱﾞＡ１％",
    "가각힣",
    # Letters whose lower case is special.
    *"İIıſẞßΣςσǅᾼŸÞƏ",
    "ὈΔΥΣΣΕΎΣ",
    "ΑΣ",
    # Emoji, with skin, joiners, flags and keycaps.
    "😀",
    "👩\u200d👩\u200d👧\u200d👦",
    "👍🏽",
    "🇩🇪🇫🇷",
    "1\ufe0f\u20e3",
    "❤\ufe0f",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
    # Scripts, right to left among them.
    "العربية",
    "שלום",
    "\u202bעברית\u202c abc",
    "नमस्ते",
    "ไทยไม่มีช่องว่าง",
    "日本語テキスト",
    "𠮷野家",
    "𝒽𝑒𝓁𝓁𝑜",
    "ᏣᎳᎩ",
    # Punctuation, apostrophes, numbers.
    "it's",
    "IT'S",
    "we'll've",
    "don’t",
    "'ſ",
    "'",
    "''",
    "...",
    "!?",
    "don't-stop_me.now",
    "3.14159",
    "1,000,000",
    "٣٤٥",
    "Ⅷ",
    "$%^&*()",
    "&amp;&lt;",
    "C:\\path\\n",
    "{}",
    "a" * 300,
    "ab" * 120,
    "Straße" * 30,
    "😀" * 40,
    "x" + "\u0301" * 50,
    "cat",
    "Red",
    "photo of",
    "DOG",
    "table",
    "é",
]


def hostile_texts(count: int = 1000, seed: int = 0) -> list[str]:
    """Returns texts, each different: the pieces alone, then drawn sequences of them.

    Some texts hold drawn characters, of those that Unicode 3.2 knows.
    """
    draw = random.Random(seed)
    known = [
        chr(p)
        for p in [*range(0xD800), *range(0xE000, 0x20000)]
        if unicodedata.ucd_3_2_0.category(chr(p)) != "Cn"
    ]
    found = dict.fromkeys(["", *PIECES, *PLAIN, *(text.upper() for text in PLAIN)])
    while len(found) < count:
        parts = draw.choices(PIECES, k=draw.randint(2, 9))
        if draw.random() < 0.3:
            parts += draw.choices(known, k=draw.randint(1, 12))
            draw.shuffle(parts)
        found["".join(parts) if draw.random() < 0.7 else " ".join(parts)] = None
    return [*found][:count]
