"""Small real tokenizers of the two kinds that models have, as an artifact holds them; the model's end is token 2."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

CONTROL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
WORDS = ("yes", "no", " yes", " no", '{"', '":', "}", "[", "1", "12", "ab", " ab", "true", "null", "\n ", "é")
END = 2


def byte_level(folder: Path) -> Path:
    """As GPT-2's: bytes are characters of an alphabet of their own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [space.pre_tokenize_str(word)[0][0] for word in WORDS if " " not in word.strip() and "\n" not in word]
    return _saved(folder, [*alphabet, *words], decoders.ByteLevel())


def of_words(folder: Path) -> Path:
    """As Llama's: a word has the space before it, which the answer's first token loses; the rest are bytes."""
    pieces = [word.replace(" ", "▁") for word in ("\n", " ", *map(chr, range(33, 127)), *WORDS)]
    decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _saved(folder, [*(f"<0x{byte:02X}>" for byte in range(256)), *pieces], decoder)


def _saved(folder: Path, pieces: list[str], decoder: decoders.Decoder) -> Path:
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*CONTROL, *pieces]))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
