"""The tokenizer tests of `transformers` on our tokenizer, lower-casing and not."""

from __future__ import annotations

import tempfile
import unittest

from transformers import PreTrainedTokenizerFast

from bert_snli.tokenization import SPECIAL_TOKENS, build_tokenizer
from tests.conformance.upstream import TokenizersBackendTesterMixin, TokenizerTesterMixin, skip_tests

# The words of the texts that the tests encode.
WORDS = (
    "this is the first sentence . second one -lrb- contains # -rrb- over symbols and numbers 12 3 but not wonderful no "
    "inspiration example with subtoken amazing full of along an awesome pair hello world a test do n't "
    "This But Wonderful Amazing Along Hello -LRB- -RRB-"
).split()
VOCABULARY = [*SPECIAL_TOKENS.values(), *WORDS]
NOT_APPLICABLE = {
    "test_integration_from_extractor": "the vocabulary alone does not make our tokenizer",
    "test_prepare_seq2seq_batch": "no model generates",
}


class TokenizerTestMixin(TokenizerTesterMixin, TokenizersBackendTesterMixin):
    tokenizer_class = rust_tokenizer_class = PreTrainedTokenizerFast
    do_lower_case: bool
    integration_test_input_string = "This (first) sentence. Don't  contain 3 pairs"

    @classmethod
    def setUpClass(cls):
        # Replaces the inherited method, which reads a text that is not in the source distribution.
        cls.tmpdirname = tempfile.mkdtemp()
        tokenizer = build_tokenizer(VOCABULARY, model_max_length=512, do_lower_case=cls.do_lower_case)
        tokenizer.save_pretrained(cls.tmpdirname)
        cls.from_pretrained_id = [cls.tmpdirname]
        cls.tokenizers_list = [(cls.tokenizer_class, cls.tmpdirname, {})]
        cls.integration_expected_token_ids = [VOCABULARY.index(token) for token in cls.integration_expected_tokens]


@skip_tests(NOT_APPLICABLE)
class LowerCaseTokenizerTest(TokenizerTestMixin, unittest.TestCase):
    do_lower_case = True
    integration_expected_tokens = "this -lrb- first -rrb- sentence . do n't <unk> 3 <unk>".split()
    integration_expected_decoded_text = "this -lrb- first -rrb- sentence. don't <unk> 3 <unk>"


@skip_tests(NOT_APPLICABLE)
class CasedTokenizerTest(TokenizerTestMixin, unittest.TestCase):
    do_lower_case = False
    integration_expected_tokens = "This -LRB- first -RRB- sentence . <unk> n't <unk> 3 <unk>".split()
    integration_expected_decoded_text = "This -LRB- first -RRB- sentence. <unk>n't <unk> 3 <unk>"
