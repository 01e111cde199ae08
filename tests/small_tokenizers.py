"""Small tokenizers of every kind, trained on a few sentences."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

KINDS = ("byte-level", "byte-fallback", "suffix", "word-piece", "unigram", "word-level")
TEXTS = [
    "the cat sat on the mat and the dog sat on the cat",
    "whenever there is a lot of weather, the whether-or-not question is whatever",
    "naming things, naïve façade, 日本語 and numbers 12345 12346",
    "there was another mother and her brother; they bothered neither the other nor themselves",
] * 3


def trained(kind: str, size: int = 420) -> Tokenizer:
    """A tokenizer of one of :data:`KINDS`."""
    quiet = {"show_progress": False, "vocab_size": size}
    if kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, **quiet)
    elif kind == "byte-fallback":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        known = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
        trainer = trainers.BpeTrainer(special_tokens=known, **quiet)
    elif kind == "suffix":
        more = {"continuing_subword_prefix": "##", "end_of_word_suffix": "</w>"}
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", **more))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.BpeTrainer(special_tokens=["<unk>", "<s>", "</s>"], **more, **quiet)
    elif kind == "word-piece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer, tokenizer.normalizer = pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()
        known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(special_tokens=known, **quiet)
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", **quiet)
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>", "</s>"], **quiet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    first, last = {"word-piece": ("[CLS]", "[SEP]"), "unigram": ("", "</s>")}.get(kind, ("<s>", "</s>"))
    ends = [(token, tokenizer.token_to_id(token)) for token in (first, last) if token]
    single = f"{first} $A {last}".strip()
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    return tokenizer
