"""From the book's ``vocab.json`` to a fast tokenizer that reads raw English as the book reads SNLI.

The book (d2l.ai, sections 15.4 and 15.7) never tokenizes SNLI: it takes the leaves of the parse that comes
with every sentence, lower-cases them and looks them up. Stanford's PTBTokenizer (CoreNLP) made those
leaves, by the rules of the Penn Treebank: ``do n't``, ``'s``, ``-LRB-`` for a bracket, two backticks and
two apostrophes for quotes. A user has no parse, only "I don't know.", so the rules are applied here. They
run inside the Rust ``tokenizers`` library and are stored in ``tokenizer.json``; no Python code travels with
a model.

Three tables hold the rules, each row with an example: ``REWRITES`` change characters (normalizer),
``TOKENS`` say what a token looks like (pre-tokenizer), ``JOINS`` put a decoded text together again
(decoder). Text that is tokenized already passes unchanged: the leaves of a parse, joined by single spaces,
come out as they went in, in lower case too. That is why no row of ``TOKENS`` tells an upper-case letter
from its lower-case one, and why no row joins what a space separates.

The patterns run on Oniguruma, which backtracks: whatever can be long repeats possessively (``++``, ``*+``),
so that time is linear in the length of the text. Keep it so. And prefer the alternation ``\u2019|\u02bc``
to a class: Oniguruma has a fast search for the one, not for the other.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bert_snli.errors import BertSnliError

SPECIAL_TOKENS: dict[str, str] = {
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
    "cls_token": "<cls>",
    "sep_token": "<sep>",
}
MAX_VOCABULARY_BYTES = 8 * 2**20  # the book's 60,005 tokens take 0.7 MB


class Rewrite(NamedTuple):
    """Whatever matches ``pattern`` becomes ``content``."""

    name: str
    pattern: str
    content: str


class TokenRule(NamedTuple):
    """What matches ``pattern``, where the token before ended, is one token."""

    name: str
    pattern: str


# The parts of words
_LETTER = r"[\p{L}\p{M}]"
_CHAR = r"[\p{L}\p{M}\p{N}]"  # of a word
_PLAIN = rf"[{_CHAR}&&[^nN]]"
_END = rf"(?!{_CHAR})"
_N = rf"[nN](?!'[tT]{_END})"  # an n, but not that of n't
_RUN = rf"(?={_PLAIN}|{_N}){_PLAIN}*+(?:{_N}{_PLAIN}*+)*+"  # "don" of "donkey", "do" of "don't"
_CLITIC = r"(?i:s|m|d|ll|re|ve)(?!\p{L})"

# Abbreviations keep their period. Those of the first group may end a sentence and then get a second one.
_MAY_END = (
    "jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri|"
    r"calif|conn|fla|minn|okla|penn|tenn|inc|co|corp|ltd|univ|assn|est|ext|tel|sq|jr|esq|ph\.d|ed\.d|bros|bldg|etc|al"
)
# American states that are words as well: a period belongs to them only where a second one follows.
_STATES = "Ala|Ariz|Ark|Colo|Del|Ill|Ind|Mass|Mich|Miss|Mo|Ore|Pa|Tex|Va|Wash"
_GO_ON = (
    "mr|mrs|ms|mx|dr|drs|prof|rev|hon|pres|gov|sen|rep|gen|col|maj|capt|lt|sgt|cpl|pvt|adm|sr|messrs|"
    "st|ste|mt|ft|ave|blvd|rd|rt|dept|natl|vs|cf|ph"
)
_BEFORE_NUMBER = "no|nos|fig|figs|sec|pp|para|approx|ca"
_PERIOD = (
    rf"\.(?:(?<=\b(?i:{_MAY_END}|{_GO_ON})\.)(?!\.)"  # Mr.
    rf"|(?<=\b(?i:{_BEFORE_NUMBER})\.)(?=\s?\d)"  # no. 7
    rf"|(?<=\b(?i:{_STATES})\.)(?=\s\.(?!\S))"  # Miss. .
    r"|(?<=\p{L}\.)(?=\s?[,;:]))"  # any word in ".,": CoreNLP takes it for an abbreviation
)
# Between two runs in one word: well-known, U.S.-based, his/her, d2l.ai, 10,000-meter, ma'am.
_INSIDE = rf"[.!?](?={_LETTER})|(?<=\d)[.,:](?=\d)|(?<=\p{{L}}[aeiouyAEIOUY])'(?=[aeiouAEIOU])"
_QUOTED = r"[\p{L}\p{N}$]"


def word_pattern(joints: str) -> str:
    """A word, made of runs of characters between which ``joints`` may stand, beside what always may."""
    return rf"{_RUN}(?:(?:{joints}|{_INSIDE}){_RUN})*+(?:{_PERIOD})?+"


REWRITES: tuple[Rewrite, ...] = (
    # it\u2019s -> it's
    Rewrite("apostrophe", "\u2019|\u02bc|\u00b4", "'"),
    # ''old -> `` old, one mark after the other, so that each keeps its place
    Rewrite("first of two opening single quotes", rf"'(?='{_QUOTED})", " `"),
    Rewrite("second of two opening single quotes", rf"(?<=`)'(?={_QUOTED})", "` "),
    # an "old" dog -> an `` old '' dog
    Rewrite("opening double quote", rf'"(?={_QUOTED})', " `` "),
    Rewrite("closing double quote", '"|\u201d|\u00bb', " '' "),
    # an \u201cold\u201d dog -> an `` old '' dog
    Rewrite("curly double quote", "\u201c|\u201e|\u00ab", " `` "),
    # an 'old' dog -> an ` old ' dog; nothing changes in
    # it's, don't, get 'em, rock 'n' roll, o'clock, L'Aquila, ma'am
    Rewrite(
        "opening single quote",
        rf"'(?=\p{{L}}\S|[aiuAIU]\s)(?!{_CLITIC}|[nN](?!\p{{L}}))(?!(?i:t|em|tis|twas|til|till|cause)\b)"
        r"(?!(?<=\p{L}[aeiouyAEIOUY]')[aeiouAEIOU])(?!(?<=\b[b-hj-zB-HJ-Z]')\p{L}{2})",
        " ` ",
    ),
    Rewrite("curly single quote", "\u2018|\u201a", " ` "),
    # one (1) -> one -LRB- 1 -RRB-
    Rewrite("opening bracket", r"\(", " -LRB- "),
    Rewrite("closing bracket", r"\)", " -RRB- "),
    Rewrite("opening square bracket", r"\[", " -LSB- "),
    Rewrite("closing square bracket", r"\]", " -RSB- "),
    Rewrite("opening brace", r"\{", " -LCB- "),
    Rewrite("closing brace", r"\}", " -RCB- "),
    # now\u2014or never -> now -- or never
    Rewrite("dash", "\u2013|\u2014|\u2015", " -- "),
    # well\u2026 -> well ...
    Rewrite("ellipsis", "\u2026", " ... "),
    # now---or never -> now--or never, from the middle: the first and the last keep their places, and so does the token
    Rewrite("surplus of a dash", "(?<=-)(?<!--)--?(?=-(?!-))", ""),
    # well..... -> well...; the U.S.... keeps its own
    Rewrite("surplus of an ellipsis", r"(?<=\.\.)(?:(?<!\b\p{L}\.\.)|(?<='\p{L}\.\.))\.+(?=\.)", ""),
    # pens, ink etc. -> pens , ink etc. .
    Rewrite(
        "abbreviation at the end",
        rf"\.(?<=\b(?:(?i:{_MAY_END})|{_STATES})\.)(?=\s*+\z|\s[\s\p{{Lu}}])",
        ". .",
    ),
)

TOKENS: tuple[TokenRule, ...] = (
    # https://d2l.ai/?q=a.
    TokenRule("web address", r"(?i:https?|ftp)://(?:[.,:;!?']*+[^\s\"<>|.,:;!?'])++"),
    # can not  gon na
    TokenRule(
        "two words in one",
        rf"(?i:can(?=not{_END})|(?:gon|wan)(?=na{_END})|got(?=ta{_END})|(?:gim|lem)(?=me{_END}))",
    ),
    # 9.99  10,000  and the 7:30 of 7:30pm
    TokenRule("number", rf"\d++(?:[.,:]\d++)++(?!-{_CHAR})|[-+]\d++(?:[.,:]\d++)*+|\.\d++"),
    # U.S.  p.m.  B.
    TokenRule("initials", rf"\p{{L}}\.(?:\p{{L}}\.)*+(?!-?{_CHAR})"),
    # R&B
    TokenRule("letters joined by &", rf"\p{{L}}{{1,2}}&\p{{L}}(?!{_CHAR})"),
    # o'clock  L'Aquila  y' (of y'all)  ol' (Joe)  d' (Azur)
    TokenRule(
        "word with apostrophe",
        rf"[b-hj-xzB-HJ-XZ]'(?!{_CLITIC})\p{{L}}{{2,}}+|[yY]'(?!{_CLITIC})(?=\s?\p{{L}})|(?i:ol|[dlj])'(?!\p{{L}})",
    ),
    # US$
    TokenRule("currency", r"(?i:us|hk|nz|[ac])\$(?=\s?\d)"),
    # n't
    TokenRule("negation", rf"[nN]'[tT]{_END}"),
    # donkey  well-known  his/her  d2l.ai  Mr.
    TokenRule("word", word_pattern(r"\.?-|[_/@]")),
    # 's  'll
    TokenRule("clitic", rf"'{_CLITIC}"),
    # 'em  'n'  '60s  't (of 'tis)
    TokenRule(
        "apostrophe and word",
        rf"'(?:(?i:em|till?|cause|\d\ds?){_END}|[nN]'|[nN]{_END}|[tT](?=\s?(?i:is|was){_END}))",
    ),
    # -LRB-
    TokenRule("bracket", r"-(?i:[LR][RSC]B)-"),
    # @name  #tag
    TokenRule("name or tag", r"[@#]\p{L}\w*+"),
    # ``  ''  ...  --  ?!
    TokenRule("repeated mark", r"``|''|\.{3}|-++|[!?]++|\*++|#++|_++|=++|@++|<<|>>"),
    # any other character, with its accents
    TokenRule("mark", r"[^\s\0\u200b\ufeff]\p{M}*+"),
)

JOINS: tuple[Rewrite, ...] = (
    # ink etc. . -> ink etc.
    Rewrite("abbreviation at the end", r"(?<=\p{L}\.) \.(?=\s|\z)", ""),
    # do n't go , Bob 's -> don't go, Bob's
    Rewrite("what leans to the left", r" (?=(?:[.,:;!?%]++|(?i:n't|'(?:s|m|d|ll|re|ve)?|-r[rsc]b-))(?:\s|\z))", ""),
    # `` old '' -> "old"
    Rewrite("opening double quote", "`` ?", '"'),
    Rewrite("closing double quote", " ?''", '"'),
    Rewrite("opening single quote", "` ", "'"),
    # -lrb- 1 -rrb- -> (1)
    Rewrite("opening bracket", "-(?i:lrb)- ?", "("),
    Rewrite("closing bracket", "-(?i:rrb)-", ")"),
    Rewrite("opening square bracket", "-(?i:lsb)- ?", "["),
    Rewrite("closing square bracket", "-(?i:rsb)-", "]"),
    Rewrite("opening brace", "-(?i:lcb)- ?", "{"),
    Rewrite("closing brace", "-(?i:rcb)-", "}"),
    # $ 5, # 5, gon na, can not -> $5, #5, gonna, cannot
    Rewrite(
        "sign and number",
        r"(?<=[$#]) (?=\d)|(?<=\bgon|\bwan) (?=na\b)|(?<=\bgot) (?=ta\b)|(?<=\bcan) (?=not\b)",
        "",
    ),
)


def read_vocabulary(path: str | os.PathLike[str]) -> list[str]:
    """Read the book's ``vocab.json``: a JSON list of tokens, in which the index of a token is its id.

    Raises:
        BertSnliError: the file is missing, or not a list of distinct strings that holds every special token.
    """
    name = os.fspath(path)
    try:
        with open(name, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_size > MAX_VOCABULARY_BYTES:
                raise BertSnliError(f"{name}: too large for a vocabulary; give the book's vocab.json")
            vocabulary = json.load(file)
    except OSError as error:
        raise BertSnliError(f"{name}: {error.strerror}; give the path of the book's vocab.json") from error
    except UnicodeDecodeError as error:
        raise BertSnliError(f"{name}: not UTF-8 at byte {error.start}; save the vocabulary as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise BertSnliError(f"{name}: not JSON ({error}); give the book's vocab.json") from error
    problem = _problem_with(vocabulary)
    if problem:
        raise BertSnliError(f"{name}: {problem}")
    return list(vocabulary)


def _problem_with(vocabulary: object) -> str | None:
    """What is wrong with a vocabulary and what to do, in one line; ``None`` if nothing is."""
    if not isinstance(vocabulary, (list, tuple)):
        return f"the vocabulary is a {type(vocabulary).__name__}; make it a list of tokens in the order of ids"
    if not vocabulary:
        return "the vocabulary is empty; give the one that the model was pretrained with"
    first_index: dict[str, int] = {}
    for index, token in enumerate(vocabulary):
        if not isinstance(token, str):
            return f"entry {index} of the vocabulary is {token!r}; make every entry a string"
        if any("\ud800" <= character <= "\udfff" for character in token):
            return f"entry {index} of the vocabulary is {token!r}, half of a character; save the vocabulary as UTF-8"
        if token in first_index:
            return f"the token {token!r} has two ids, {first_index[token]} and {index}; remove one entry"
        first_index[token] = index
    missing = [token for token in SPECIAL_TOKENS.values() if token not in first_index]
    if missing:
        return f"the special token {missing[0]} is not in the vocabulary; give the model's own, which has it"
    return None


def build_tokenizer(
    vocabulary: Sequence[str], *, model_max_length: int, do_lower_case: bool = True, oov_fallback: bool = False
) -> PreTrainedTokenizerFast:
    """Make the tokenizer of a book model. A pair is ``<cls> A <sep> B <sep>``, in segments 0 and 1.

    Args:
        vocabulary: the tokens in the order of their ids, as :func:`read_vocabulary` returns them.
        model_max_length: the number of positions that the model has (512 in the book's).
        do_lower_case: the book lower-cases SNLI, except in its edition before 2020.
        oov_fallback: look for known words in what would be unknown (see :func:`with_fallback`); not the book's way.

    Returns:
        A tokenizer whose rules are all in ``tokenizer.json``; ``AutoTokenizer`` opens it without custom code.

    Raises:
        BertSnliError: ``vocabulary`` has duplicates, no special token, or entries that are not strings.
    """
    problem = _problem_with(list(vocabulary))
    if problem:
        raise BertSnliError(problem)
    ids = {token: index for index, token in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokens, simplify = with_fallback(ids, do_lower_case) if oov_fallback else (TOKENS, ())
    lower_case: list[normalizers.Normalizer] = [normalizers.Lowercase()] if do_lower_case else []
    backend.normalizer = normalizers.Sequence([*_replace(REWRITES), *lower_case, *_replace(simplify)])
    any_token = "|".join(f"(?:{rule.pattern})" for rule in tokens)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(any_token), behavior="removed", invert=True)
    cls, sep = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, ids[cls]), (sep, ids[sep])],
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix=" ", cleanup=False),  # a space before every token but the first
            decoders.Fuse(),
            *(decoders.Replace(Regex(rule.pattern), rule.content) for rule in JOINS),
        ]
    )
    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast  # its constructor has no types
    return make(
        tokenizer_object=backend,
        model_max_length=model_max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],  # else v5 drops the segments
        padding_side="right",
        truncation_side="right",
        pad_token_type_id=0,
        clean_up_tokenization_spaces=False,  # JOINS do it
        **SPECIAL_TOKENS,
    )


def _replace(rules: Sequence[Rewrite]) -> list[normalizers.Normalizer]:
    return [normalizers.Replace(Regex(rule.pattern), rule.content) for rule in rules]


# What may stand for a mark that a vocabulary lacks: those of other corpora write quotes, brackets and dashes otherwise.
STAND_INS = {
    "``": '"',
    "''": '"',
    "`": "'",
    "-lrb-": "(",
    "-rrb-": ")",
    "-lsb-": "[",
    "-rsb-": "]",
    "-lcb-": "{",
    "-rcb-": "}",
    "--": "\u2013",
    "...": "\u2026",
}
ACCENTED = [chr(code) for code in (*range(0xC0, 0x250), *range(0x1E00, 0x1F00))]
_ACCENTS = "\u0300-\u036f"


def with_fallback(
    vocabulary: Mapping[str, int], do_lower_case: bool
) -> tuple[tuple[TokenRule, ...], tuple[Rewrite, ...]]:
    """``TOKENS`` and further rewrites that find known words in unknown ones; a word of ``vocabulary`` stays as it is.

    A word with hyphens or slashes is split at them unless the vocabulary has it whole; a mark that the vocabulary
    lacks becomes one that it has; accents that no word of the vocabulary bears are dropped.
    """
    whole = [word for word in vocabulary if re.search(r"\w\.?[-/]\w", word)]
    first = [TokenRule("known word with hyphens", rf"{_any_of(whole)}(?![-/]?{_CHAR})")] if whole else []
    rules = (TokenRule("word", word_pattern("[_@]")) if rule.name == "word" else rule for rule in TOKENS)
    marks = []
    for mark, stand_in in STAND_INS.items():
        mark = mark if do_lower_case else mark.upper()
        if mark not in vocabulary and stand_in in vocabulary:
            # Not within a longer run of the same character, which is another mark.
            alone = rf"(?<!{re.escape(mark[0])}){re.escape(mark)}(?!{re.escape(mark[-1])})"
            marks.append(Rewrite(f"stand-in for {mark}", alone, stand_in))
    borne = set("".join(vocabulary))
    bare: dict[str, str] = {}
    for letter in ACCENTED:
        base = unicodedata.normalize("NFD", letter)[0]
        if base != letter and letter not in borne and not (do_lower_case and letter.isupper()):
            bare[base] = bare.get(base, "") + letter
    accents = [Rewrite(f"accents of {base}", f"[{letters}]", base) for base, letters in bare.items()]
    if not re.search(f"[{_ACCENTS}]", "".join(borne)):
        accents.append(Rewrite("accents that stand alone", rf"(?<=\p{{L}})[{_ACCENTS}]++", ""))
    return (*first, *rules), (*marks, *accents)


def _any_of(words: Sequence[str]) -> str:
    """A pattern of ``words`` in which common beginnings stand once: many alternatives would be tried one by one."""
    tree: dict = {}
    for word in words:
        node = tree
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}

    def pattern(node: dict) -> str:
        ways = [re.escape(character) + pattern(after) for character, after in node.items() if character]
        if not ways:
            return ""
        return f"(?:{'|'.join(ways)})" + "?" * ("" in node)

    beginnings = "".join(re.escape(character) for character in tree)
    return f"(?=[{beginnings}]){pattern(tree)}"
