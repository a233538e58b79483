"""Build a fast tokenizer from d2l's ``vocab.json``. It splits raw English text like the parse trees of SNLI.

d2l uses the lower-cased tokens of SNLI's parse trees. Stanford's PTBTokenizer (CoreNLP) made them by the rules of the
Penn Treebank: ``do n't``, ``'s``, ``-LRB-`` for a bracket. Users have raw text, so this tokenizer applies the same
rules. They are stored in ``tokenizer.json`` and run in the Rust ``tokenizers`` library.

The tokens of a parse tree, joined by single spaces, must stay unchanged, also in lower case. Therefore the token
patterns do not depend on upper or lower case, and no token contains a space.

The patterns run on Oniguruma, which backtracks. Possessive repeats (``++``, ``*+``) keep the time linear in the length
of the text. The alternation ``\u2019|\u02bc`` is faster than a character class, as Oniguruma has a fast search for it.
"""

import json
import os
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bert_snli.errors import BertSnliError

SPECIAL_TOKENS: dict[str, str] = {
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
    "cls_token": "<cls>",
    "sep_token": "<sep>",
}
MAX_VOCABULARY_BYTES = 8 * 2**20  # d2l's 60,005 tokens take 0.7 MB

# Parts of words. n't is a separate token, so the n before 't does not belong to the word.
_LETTER = r"[\p{L}\p{M}]"
_ALNUM = r"[\p{L}\p{M}\p{N}]"
_NOT_N = rf"[{_ALNUM}&&[^nN]]"
_WORD_END = rf"(?!{_ALNUM})"
_N = rf"[nN](?!'[tT]{_WORD_END})"
_RUN = rf"(?={_NOT_N}|{_N}){_NOT_N}*+(?:{_N}{_NOT_N}*+)*+"  # "donkey", "do" of "don't"
_CLITIC = r"(?i:s|m|d|ll|re|ve)(?!\p{L})"

# Abbreviations keep their period. Those that may end a sentence get a second one there.
_ABBREVIATIONS_AT_END = (
    "jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri|"
    r"calif|conn|fla|minn|okla|penn|tenn|inc|co|corp|ltd|univ|assn|est|ext|tel|sq|jr|esq|ph\.d|ed\.d|bros|bldg|etc|al"
)
# US states that are also words: a period belongs to them only where a second one follows.
_STATES = "Ala|Ariz|Ark|Colo|Del|Ill|Ind|Mass|Mich|Miss|Mo|Ore|Pa|Tex|Va|Wash"
_ABBREVIATIONS_INSIDE = (
    "mr|mrs|ms|mx|dr|drs|prof|rev|hon|pres|gov|sen|rep|gen|col|maj|capt|lt|sgt|cpl|pvt|adm|sr|messrs|"
    "st|ste|mt|ft|ave|blvd|rd|rt|dept|natl|vs|cf|ph"
)
_ABBREVIATIONS_BEFORE_NUMBERS = "no|nos|fig|figs|sec|pp|para|approx|ca"
_PERIOD = (
    rf"\.(?:(?<=\b(?i:{_ABBREVIATIONS_AT_END}|{_ABBREVIATIONS_INSIDE})\.)(?!\.)"  # Mr.
    rf"|(?<=\b(?i:{_ABBREVIATIONS_BEFORE_NUMBERS})\.)(?=\s?\d)"  # no. 7
    rf"|(?<=\b(?i:{_STATES})\.)(?=\s\.(?!\S))"  # Miss. .
    r"|(?<=\p{L}\.)(?=\s?[,;:]))"  # any word in ".,": CoreNLP takes it for an abbreviation
)
# Between two runs in one word: well-known, U.S.-based, his/her, d2l.ai, 10,000-meter, ma'am.
_BETWEEN_RUNS = rf"[.!?](?={_LETTER})|(?<=\d)[.,:](?=\d)|(?<=\p{{L}}[aeiouyAEIOUY])'(?=[aeiouAEIOU])"
_QUOTED = r"[\p{L}\p{N}$]"
_WORD = rf"{_RUN}(?:(?:\.?-|[_/@]|{_BETWEEN_RUNS}){_RUN})*+(?:{_PERIOD})?+"

NORMALIZER_RULES: tuple[tuple[str, str], ...] = (  # (pattern, replacement)
    # apostrophes: it\u2019s -> it's
    ("\u2019|\u02bc|\u00b4", "'"),
    # two apostrophes that open a quotation: ''old -> `` old. Each is replaced on its own, so that offsets are exact.
    (rf"'(?='{_QUOTED})", " `"),
    (rf"(?<=`)'(?={_QUOTED})", "` "),
    # double quotes: an "old" dog -> an `` old '' dog
    (rf'"(?={_QUOTED})', " `` "),
    ('"|\u201d|\u00bb', " '' "),
    ("\u201c|\u201e|\u00ab", " `` "),
    # opening single quotes: an 'old' dog -> an ` old ' dog. Nothing changes in
    # it's, don't, get 'em, rock 'n' roll, o'clock, L'Aquila, ma'am.
    (
        rf"'(?=\p{{L}}\S|[aiuAIU]\s)(?!{_CLITIC}|[nN](?!\p{{L}}))(?!(?i:t|em|tis|twas|til|till|cause)\b)"
        r"(?!(?<=\p{L}[aeiouyAEIOUY]')[aeiouAEIOU])(?!(?<=\b[b-hj-zB-HJ-Z]')\p{L}{2})",
        " ` ",
    ),
    ("\u2018|\u201a", " ` "),
    # brackets: one (1) -> one -LRB- 1 -RRB-
    (r"\(", " -LRB- "),
    (r"\)", " -RRB- "),
    (r"\[", " -LSB- "),
    (r"\]", " -RSB- "),
    (r"\{", " -LCB- "),
    (r"\}", " -RCB- "),
    # dashes: now\u2014or never -> now -- or never
    ("\u2013|\u2014|\u2015", " -- "),
    # ellipses: well\u2026 -> well ...
    ("\u2026", " ... "),
    # more than two hyphens: now---or never -> now--or never. The first and the last stay, so that offsets are exact.
    ("(?<=-)(?<!--)--?(?=-(?!-))", ""),
    # more than three periods: well..... -> well...; the U.S.... keeps the period of U.S.
    (r"(?<=\.\.)(?:(?<!\b\p{L}\.\.)|(?<='\p{L}\.\.))\.+(?=\.)", ""),
    # abbreviation at the end of a sentence: pens, ink etc. -> pens , ink etc. .
    (rf"\.(?<=\b(?:(?i:{_ABBREVIATIONS_AT_END})|{_STATES})\.)(?=\s*+\z|\s[\s\p{{Lu}}])", ". ."),
)

TOKEN_PATTERNS: tuple[str, ...] = (  # the first pattern that matches at a position gives the token
    # web address: https://d2l.ai/?q=a.
    r"(?i:https?|ftp)://(?:[.,:;!?']*+[^\s\"<>|.,:;!?'])++",
    # two words in one: can not, gon na
    rf"(?i:can(?=not{_WORD_END})|(?:gon|wan)(?=na{_WORD_END})|got(?=ta{_WORD_END})|(?:gim|lem)(?=me{_WORD_END}))",
    # number: 9.99, 10,000, the 7:30 of 7:30pm
    rf"\d++(?:[.,:]\d++)++(?!-{_ALNUM})|[-+]\d++(?:[.,:]\d++)*+|\.\d++",
    # initials: U.S., p.m., B.
    rf"\p{{L}}\.(?:\p{{L}}\.)*+(?!-?{_ALNUM})",
    # letters joined by &: R&B
    rf"\p{{L}}{{1,2}}&\p{{L}}(?!{_ALNUM})",
    # word with an apostrophe: o'clock, L'Aquila, y' (of y'all), ol' (Joe), d' (Azur)
    rf"[b-hj-xzB-HJ-XZ]'(?!{_CLITIC})\p{{L}}{{2,}}+|[yY]'(?!{_CLITIC})(?=\s?\p{{L}})|(?i:ol|[dlj])'(?!\p{{L}})",
    # currency: US$
    r"(?i:us|hk|nz|[ac])\$(?=\s?\d)",
    # negation: n't
    rf"[nN]'[tT]{_WORD_END}",
    # word: donkey, well-known, his/her, d2l.ai, Mr.
    _WORD,
    # clitic: 's, 'll
    rf"'{_CLITIC}",
    # apostrophe and word: 'em, 'n', '60s, 't (of 'tis)
    rf"'(?:(?i:em|till?|cause|\d\ds?){_WORD_END}|[nN]'|[nN]{_WORD_END}|[tT](?=\s?(?i:is|was){_WORD_END}))",
    # bracket: -LRB-
    r"-(?i:[LR][RSC]B)-",
    # user name or tag: @name, #tag
    r"[@#]\p{L}\w*+",
    # repeated mark: ``, '', ..., --, ?!
    r"``|''|\.{3}|-++|[!?]++|\*++|#++|_++|=++|@++|<<|>>",
    # any other character, with its accents
    r"[^\s\0\u200b\ufeff]\p{M}*+",
)


def read_vocabulary(path: str | os.PathLike[str]) -> list[str]:
    """Read d2l's ``vocab.json``: a JSON list of tokens, in which the index of a token is its id."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_VOCABULARY_BYTES + 1)
    except OSError as error:
        raise BertSnliError(f"{path}: {error.strerror}; give the path of d2l's vocab.json") from error
    if len(content) > MAX_VOCABULARY_BYTES:
        raise BertSnliError(f"{path}: too large for a vocabulary; give d2l's vocab.json")
    try:
        vocabulary = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise BertSnliError(f"{path}: not JSON in UTF-8 ({error}); give d2l's vocab.json") from error
    _check_vocabulary(vocabulary, str(path))
    return vocabulary


def _check_vocabulary(vocabulary: object, where: str) -> dict[str, int]:
    """Return the id of each token."""
    if not isinstance(vocabulary, list | tuple) or not vocabulary:
        raise BertSnliError(f"{where}: empty or not a list; give a list of tokens in the order of their ids")
    ids: dict[str, int] = {}
    for index, token in enumerate(vocabulary):
        if not isinstance(token, str) or any("\ud800" <= character <= "\udfff" for character in token):
            raise BertSnliError(f"{where}: entry {index} is {token!r:.80}; make it a text that UTF-8 can encode")
        if token in ids:
            raise BertSnliError(f"{where}: the token {token!r} has two ids, {ids[token]} and {index}; remove one entry")
        ids[token] = index
    if missing := [token for token in SPECIAL_TOKENS.values() if token not in ids]:
        raise BertSnliError(f"{where}: the special token {missing[0]} is missing; give the vocabulary of the model")
    return ids


def build_tokenizer(
    vocabulary: Sequence[str], *, model_max_length: int, do_lower_case: bool = True
) -> PreTrainedTokenizerFast:
    """Build the tokenizer of a d2l model. A pair is ``<cls> A <sep> B <sep>``, with segments 0 and 1.

    Args:
        vocabulary: the tokens in the order of their ids, as :func:`read_vocabulary` returns them.
        model_max_length: the number of positions of the model (512 in d2l's models).
        do_lower_case: d2l lower-cases SNLI, except in its edition before 2020.

    Returns:
        A tokenizer whose rules are all in ``tokenizer.json``; ``AutoTokenizer`` loads it without custom code.

    Raises:
        BertSnliError: ``vocabulary`` has duplicates, lacks a special token, or has entries that are not strings.

    Example:
        >>> vocabulary = ["<unk>", "<pad>", "<mask>", "<cls>", "<sep>", "do", "n't", "go", "."]
        >>> tokenizer = build_tokenizer(vocabulary, model_max_length=512)
        >>> tokenizer.tokenize("Don't go home.")
        ['do', "n't", 'go', '<unk>', '.']
        >>> tokenizer("Go.", "Don't.")["token_type_ids"]
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    ids = _check_vocabulary(vocabulary, "vocabulary")
    backend = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL_TOKENS["unk_token"]))
    rules: list[normalizers.Normalizer] = [normalizers.Replace(Regex(old), new) for old, new in NORMALIZER_RULES]
    backend.normalizer = normalizers.Sequence([*rules, *([normalizers.Lowercase()] if do_lower_case else [])])
    any_token = "|".join(f"(?:{pattern})" for pattern in TOKEN_PATTERNS)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(any_token), behavior="removed", invert=True)
    cls, sep = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, ids[cls]), (sep, ids[sep])],
    )
    backend.decoder = decoders.WordPiece(prefix=" ")  # joins tokens by spaces, without those in "do n't ."
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=model_max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],  # without this, v5 drops the segments
        **SPECIAL_TOKENS,
    )


def is_uncased(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer lower-cases text."""
    return tokenizer.backend_tokenizer.normalizer.normalize_str("A") == "a"


def split_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Split raw text into tokens by the tokenizer's rules. Unlike ``tokenize``, it keeps unknown tokens."""
    backend = tokenizer.backend_tokenizer
    normalized = backend.normalizer.normalize_str(text)
    return [token for token, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)]
