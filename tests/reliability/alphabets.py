"""Tokenizers of every kind, and facts in many scripts, for fuzzing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import families
import transformers as tf
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

#: Texts that the small vocabularies are learned from.
TEXTS = (
    *families.SENTENCES,
    "Москва — столица России. Київ — столиця України.",
    "東京は日本の首都です。北京是中国的首都。서울은 한국의 수도입니다.",
    "القاهرة عاصمة مصر. ירושלים היא עיר. तेहरान ईरान में है।",
    "Ο Όλυμπος είναι βουνό. กรุงเทพเป็นเมืองหลวง. Việt Nam, Đà Nẵng.",
)
#: Letters by script; what real names are made of.
SCRIPTS = {
    "Latin": "abcdefgXYZäöüßéèñçøåłžšğıİ",
    "Vietnamese": "ạảấầẩẫậắằẳẵặẹẻẽếềểễệ",
    "Cyrillic": "абвгдежЯЖЩїєґ",
    "Greek": "αβγδεζΩΣςάώ",
    "Arabic": "ابتثجحخدمصرية",
    "Hebrew": "אבגדהוזחטישםן",
    "Devanagari": "कखगघचतनमभािीुूेैो्ं",
    "Thai": "กขคงจฉชซญดตถทธนบปพฟภมยรลวสหอะาิีึืุูเแโใไ",
    "Han": "東京日本国北中首都山川",
    "Kana and Hangul": "かなカナっー서울한국",
    "emoji": "😀🚀👍🏽❤️👩‍👩‍👧🇫🇷🏳️‍🌈",
    "marks": "\u0301\u0308\u0327\u200d\u200c\u200b\u2060\ufeff\u00ad",
    "signs": "'’\"“”.,;:!?-–—&%#@/\\()[]",
    "directions": "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2069",
    "digits": "0123456789٠١٢३४½²Ⅳ",
    "far planes": "𝔸𝕓𝒞𐍈𓀀𝟘",
}
SPACES = (" ", "  ", "\t", "\n", "\u00a0", "\u3000", "\u2009", " \n ")


def _word() -> st.SearchStrategy[str]:
    letters = st.sampled_from(sorted(SCRIPTS)).flatmap(
        lambda name: st.text(SCRIPTS[name], min_size=1, max_size=8)
    )
    return (
        letters | st.text(min_size=1, max_size=4) | st.sampled_from(["Bo", "Anna", "café", "<s>"])
    )


def _phrase(max_words: int) -> st.SearchStrategy[str]:
    pieces = st.lists(st.tuples(_word(), st.sampled_from(SPACES)), min_size=1, max_size=max_words)
    return pieces.map(lambda found: "".join(w + s for w, s in found[:-1]) + found[-1][0])


@st.composite
def facts(draw: st.DrawFn) -> dict[str, str]:
    """Fields of a request: the subject at the start, in the middle, at the end, twice or alone."""
    subject, before, after = draw(_phrase(3)), draw(_phrase(3)), draw(_phrase(3))
    gap = draw(st.sampled_from(("", *SPACES)))
    prompt = draw(
        st.sampled_from(
            (
                f"{{}}{gap}{after}",
                f"{before}{gap}{{}}",
                f"{before}{gap}{{}}{gap}{after}",
                "{}",
                f"{subject}{gap}{{}}{gap}{after}",
                f"{{}}{gap}{subject}{gap}{after}",
                f"{gap}{{}}{gap}",
                f"{before}{{}}{after}",
            )
        )
    )
    return {"prompt": prompt, "subject": subject, "target_new": draw(_phrase(2))}


# ---------------------------------------------------------------------- tokenizers


def _trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _bpe(**options: Any) -> Any:
    special = ["<pad>", "<end>", "<s>", "<unk>"]
    return trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, show_progress=False, **options
    )


def byte_level(*, prefix: bool = False, begins: bool = False) -> Tokenizer:
    """As GPT-2's; with a blank put first as some RoBERTa-like ones do, or a BOS as Llama 3's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = _trained(made, _bpe(initial_alphabet=alphabet))
    return _begun(made) if begins else made


def sentencepiece(*, first: str = "always", falls_back: bool = True) -> Tokenizer:
    """As Llama 2's and Gemma's: blanks are letters, unknown ones fall back to bytes, BOS first."""
    made = Tokenizer(models.BPE(byte_fallback=falls_back, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=first)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    made = _trained(made, _bpe())
    if falls_back:
        made.add_tokens([AddedToken(f"<0x{i:02X}>", normalized=False) for i in range(256)])
    return _begun(made)


def unigram() -> Tokenizer:
    """As T5's and XLNet's, with their normalization; unknown letters are lost in one token."""
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("\u200b", "")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<end>", "<s>", "<unk>"],
        unk_token="<unk>",
        show_progress=False,
    )
    made = _trained(made, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", made.token_to_id("<end>"))]
    )
    return made


def word_pieces() -> Tokenizer:
    """As BERT's: lower case, no accents, a token around every text."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=["<pad>", "<end>", "<s>", "<unk>"], show_progress=False
    )
    made = _trained(made, trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A <end>",
        special_tokens=[(t, made.token_to_id(t)) for t in ("<s>", "<end>")],
    )
    return made


def _begun(tokenizer: Tokenizer) -> Tokenizer:
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return tokenizer


#: Kind → tokenizer.
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level with a blank first": lambda: byte_level(prefix=True),
    "byte-level with BOS": lambda: byte_level(begins=True),
    "sentencepiece with bytes": sentencepiece,
    "sentencepiece, first only": lambda: sentencepiece(first="first"),
    "sentencepiece without bytes": lambda: sentencepiece(falls_back=False),
    "unigram, normalized": unigram,
    "word pieces": word_pieces,
}


def fast(name: str) -> tf.PreTrainedTokenizerFast:
    """The tokenizer as transformers has it."""
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS[name](), pad_token="<pad>", eos_token="<end>", unk_token="<unk>"
    )
