"""Random texts for the tests of tokenizers, and the hypothesis settings of these tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from support.tokenizer_files import MARKERS, SPACE

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
any_text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)
# Texts that consist of special pieces of a vocabulary, so that special pieces stand next to each other.
crafted_text = st.lists(
    st.sampled_from([" ", "  ", "\n", "\n\n", "\t", "the ", "door", "<", ">", SPACE, "é", "日", "😀", "\0"])
    | st.sampled_from(["<bos>", "<eos>", "<pad>", "<unk>", *MARKERS])
    | any_text,
    max_size=12,
).map("".join)
