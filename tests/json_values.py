"""Any JSON value, with keys and words that configs use."""

from hypothesis import strategies as st

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-10, 70)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1e-320, 1e300, 10**40, 2**31, 2**63, 2**64, -(2**63)])
    | st.text(max_size=5)
    | st.sampled_from(["gemma", "gemma2", "gemma3_text", "paligemma", "gelu", "default", "\ud800", "\x1b[2J"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rope_theta", "rope_type", "hidden_size", "model_type", "x"]), inner)
    ),
    max_leaves=6,
)
