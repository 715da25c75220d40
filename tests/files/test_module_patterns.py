"""PEFT's patterns of module names, compared with Python's regular expressions, and patterns on which Python's
regular expressions hang."""

from __future__ import annotations

import contextlib
import re
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemlet.adapters.name_patterns import ModulePatterns, PatternError
from support.pace import assert_quick

NAME = "model.language_model.layers.12.self_attn.q_proj"
# The pattern that unsloth writes for the models of all families at once.
_BLOCKS = "self_attn|attention|attn|mlp|feed_forward|ffn|dense"
_LINEARS = "k_proj|v_proj|q_proj|out_proj|fc1|fc2|o_proj|gate_proj|up_proj|down_proj"
UNSLOTH = (
    rf"(?:.*?(?:language|text).*?(?:{_BLOCKS}).*?(?:{_LINEARS}).*?)"
    rf"|(?:\bmodel\.layers\.[\d]{{1,}}\.(?:{_BLOCKS})\.(?:(?:{_LINEARS})))"
)


@pytest.mark.parametrize(
    "pattern",
    [
        UNSLOTH,
        r".*\.(q|v)_proj",
        r".*language_model.*\.(q_proj|v_proj)",
        r".*q_proj|.*down_proj",
        r"model\.language_model\.layers\.(1[0-5]|[0-9])\..*",
        r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:k_proj|q_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.mlp)",
        r"(?!.*vision).*_proj$",
        r"^(?=.*12).*[^a-p0-9]_pro[jk]",
        r"(?P<start>\w+\.)+\d{2}\.(\w+\.){1,2}[a-z]_proj",
        r"model.language_model.layers.\d*.self_attn.q_proj",
        r".*\.self_attn\.[\w\-.]+",
        r"",
        r"q_proj",
        r"\w*\.layers.*|x{0}",
    ],
)
@pytest.mark.parametrize(
    "name", [NAME, "model.layers.3.mlp.down_proj", "model.vision_tower.layers.12.q_proj", ""]
)
def test_real_patterns_match_what_re_matches(pattern: str, name: str) -> None:
    patterns = ModulePatterns()
    assert patterns.fullmatch(pattern, name) == bool(re.fullmatch(pattern, name))
    assert patterns.suffix_match(pattern, name) == bool(re.fullmatch(rf"(.*\.)?({pattern})", name))


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (r"(?i).*\.(Q|down)_proj", NAME),
        (r"(?i).*\.(Q|down)_proj", NAME.upper()),
        (r".*(?i:Q_PROJ)", NAME),
        (r".*(?i:Q_)PROJ", NAME),
        (r"(?i).*(?-i:Q_)PROJ", NAME),
        (r"(?i).*(?-i:q_)PROJ", NAME),
        (r"(?i)[A-F]+", "abcDEF"),
        (r"(?i)[^A-F]+", "abc"),
        (r"(?i)[^A-F]+", "xyz.1"),
        (r"(?i)[^a]", "A"),
        (r"(?i)[abc][^x]", "BX"),
        (r"(?i)\W\d[\D]", ".1a"),
        (r"(?i:(?=A)a)|b", "B"),
        (r"(?i:a)b", "AB"),
    ],
)
def test_case_is_ignored_where_the_pattern_says_so(pattern: str, name: str) -> None:
    patterns = ModulePatterns()
    assert patterns.fullmatch(pattern, name) == bool(re.fullmatch(pattern, name))
    assert not patterns.fullmatch("A", "a")  # the next pattern works as before


def test_flags_that_are_not_followed_are_refused() -> None:
    patterns = ModulePatterns()
    for pattern in (
        r"(?a)\w",
        "(?s).*",
        "(?m)^q",
        "(?a:\\w)",
        "(?i)\u017f",
        "(?i)[\u212a]",
        "(?i)[!-\u212a]",
    ):
        with pytest.raises(PatternError, match=r"\(\?i\)|ASCII|subpattern"):
            patterns.fullmatch(pattern, "skq")
    with pytest.raises(PatternError, match="at the start"):  # PEFT fails at the same place
        patterns.suffix_match("(?i)Q_PROJ", NAME)
    assert patterns.suffix_match("(?i:Q)_proj", NAME)


@pytest.mark.parametrize(
    "key", ["q_proj", "self_attn.q_proj", "layers.1.q", "lay.rs", "12.self_attn.q_proj", "proj"]
)
def test_plain_keys_are_endings_at_a_dot(key: str) -> None:
    assert ModulePatterns().suffix_match(key, NAME) == bool(re.match(rf"(.*\.)?({key})$", NAME))


ATOMS = st.sampled_from(["a", "b", r"\.", ".", "[ab]", "[^a]", r"\d", r"\w", r"\b", "^", "$", "1"])
TREES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,2}", "*?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
        st.tuples(st.sampled_from(["?=", "?!"]), inner).map(lambda pair: f"({pair[0]}{pair[1]})"),
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(pattern=TREES, name=st.text("ab.1", max_size=8))
def test_any_pattern_matches_what_re_matches(pattern: str, name: str) -> None:
    patterns = ModulePatterns()
    assert patterns.fullmatch(pattern, name) == bool(re.fullmatch(pattern, name))
    assert patterns.suffix_match(pattern, name) == bool(re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name))


@settings(max_examples=300, deadline=None)
@given(pattern=st.text("ab.()[]{}*+?|\\^$-!=:<>P,1dwsb", max_size=14))
def test_any_text_is_matched_as_re_matches_it_or_refused(pattern: str) -> None:
    name = "a.b1"  # the names are short, because Python's re may take very long
    try:
        found = ModulePatterns().fullmatch(pattern, name)
    except PatternError:
        return
    with warnings.catch_warnings(), contextlib.suppress(re.error):  # re refuses to repeat an anchor
        warnings.simplefilter("ignore", FutureWarning)
        assert found == bool(re.fullmatch(pattern, name))


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+b",
        r"(.*)*x",
        r"(?:.*.*)*=",
        r"(?:(?:(?:(?:(?:\w*)*)*)*)*)*!",
        r"((((a?){30}){30}){30}){30}b",
        r"(?=.*(?=.*(?=.*(?=.*(?=.*b)))))",
        ".*" * 900 + "b",
        "(?:a|a|){30}" * 150 + "b",
        "[" + "".join(map(chr, range(200, 2000))) + "]*b",
    ],
)
def test_patterns_that_hang_re_are_quick(pattern: str) -> None:
    def work() -> None:
        patterns = ModulePatterns()
        with contextlib.suppress(PatternError):
            for number in range(100):
                assert not patterns.fullmatch(pattern, "a" * 150 + str(number))

    assert_quick(work, 15)  # it takes 5


def test_the_work_of_all_patterns_together_is_bounded() -> None:
    def work() -> None:
        patterns = ModulePatterns()

        def match_all() -> None:
            for number in range(8192):
                patterns.suffix_match("(a|b|c)" * 250 + str(number), NAME)

        with pytest.raises(PatternError, match="too long"):
            match_all()

    assert_quick(work, 15)


def test_the_patterns_of_the_largest_model_are_quick() -> None:
    """62 layers, each with more kinds of matrices than any real layer."""
    patterns = ModulePatterns()
    kinds = ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj", "router.proj", "per_layer_input_gate")
    names = [f"model.language_model.layers.{layer}.{kind}" for layer in range(62) for kind in kinds * 3]
    found = [patterns.fullmatch(UNSLOTH, name) for name in names]
    assert found == [re.fullmatch(UNSLOTH, name) is not None for name in names]


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        ")",
        "a)",
        "[",
        "[]",
        "[b-a]",
        "*a",
        "a**",
        "a{2,1}",
        r"(m)\1",
        ".*(?<=a)b",
        "(?ia)a",
        "\\",
        "a" * 3000,
        "(" * 50,
    ],
)
def test_unsupported_patterns_are_refused(pattern: str) -> None:
    with pytest.raises(PatternError):
        ModulePatterns().fullmatch(pattern, NAME)
