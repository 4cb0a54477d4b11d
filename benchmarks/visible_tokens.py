"""A tokenizer whose tokens are visible text, for models of random weights: a client counts an answer by its chunks.

The demo's control tokens come first, then the 256 bytes, of which every text can be made, then words. A byte is often
no text alone; `BEFORE_WORDS` says how many tokens an answer should not have.
"""

from itertools import islice, product

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

_CONTROL = ("<pad>", "<s>", "</s>", "<image>")
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_SPACE = "\u0120"
"""As a byte-level vocabulary writes it."""
BEFORE_WORDS = len(_CONTROL) + 256


def visible_tokens(count: int) -> Tokenizer:
    """Of that many tokens. Without merges: a text that is encoded has a token for each of its bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    syllables = ["".join(letters) for letters in product(_CONSONANTS, _VOWELS)]
    words = (_SPACE + "".join(parts) for parts in product(syllables, repeat=3))
    tokens = [*_CONTROL, *letters, *islice(words, count - BEFORE_WORDS)]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _CONTROL])
    return tokenizer
