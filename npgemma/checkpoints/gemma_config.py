"""The section of config.json that describes a Gemma 1, 2 or 3 decoder, read with each family's own defaults."""

from dataclasses import asdict, dataclass, replace
from typing import Protocol

from npgemma.checkpoints.config_keys import TANH_GELU, check_common
from npgemma.errors import BadModel
from npgemma.io.strict_json import Section, words

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class GemmaConfig:
    """The decoder, with transformers' names; the defaults are those of Gemma 2B in PaliGemma.

    What a family lacks is None. `query_pre_attn_scalar` is head_dim if None. `layer_types` says of each layer whether
    it has the `sliding_window`, 'sliding_attention', or not, 'full_attention'; empty, they are those of the family.
    `rope_local_base_freq` is the theta of layers with a window, whose positions `rope_factor` does not stretch; if it
    is None, all layers rotate alike.
    """

    hidden_size: int = 2048
    intermediate_size: int = 16384
    num_hidden_layers: int = 18
    num_attention_heads: int = 8
    num_key_value_heads: int = 1
    head_dim: int = 256
    vocab_size: int = 257216
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    model_type: str = "gemma"
    query_pre_attn_scalar: int | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    rope_local_base_freq: float | None = None
    rope_factor: float = 1.0

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """The kind of each layer."""
        return self.layer_types or family_kinds(self.model_type, self.num_hidden_layers)


class DecoderConfig(Protocol):
    """What the config of every model with a Gemma decoder says."""

    @property
    def text(self) -> GemmaConfig: ...
    @property
    def bos_token_id(self) -> int: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...


GEMMA_2 = GemmaConfig(
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_key_value_heads=4,
    vocab_size=256000,
    model_type="gemma2",
    query_pre_attn_scalar=256,
    attn_logit_softcapping=50.0,
    final_logit_softcapping=30.0,
    sliding_window=4096,
)
GEMMA_3 = replace(
    GEMMA_2,
    vocab_size=262208,
    max_position_embeddings=131072,
    rope_theta=1e6,
    model_type="gemma3_text",
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
    rope_local_base_freq=10000.0,
)
# What a config that leaves a key out means by it: transformers' defaults, and PaliGemma's own.
LANGUAGE_MODELS = {
    "gemma": GemmaConfig(
        hidden_size=3072,
        intermediate_size=24576,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=256000,
    ),
    "gemma2": GEMMA_2,
    "gemma3_text": GEMMA_3,
}
IN_PALIGEMMA = {"gemma": GemmaConfig(), "gemma2": replace(GEMMA_2, vocab_size=257216)}
# One layer in so many has no window.
PERIODS = {"gemma": 1, "gemma2": 2, "gemma3_text": 6}

# Keys that do not matter to the decoder. transformers reads tie_word_embeddings outside this section only, and never
# reads the last two, which its own files and Gemma 2's contain.
HARMLESS = words("""
    bos_token_id eos_token_id pad_token_id tie_word_embeddings use_cache attention_dropout initializer_range
    _sliding_window_pattern sliding_window_size
""")
# With a factor of 1, these rotary positions are the plain ones, up to max_position_embeddings.
SCALED_BY_FACTOR = ("dynamic", "llama3")
ROTATION_HARMLESS = words("""
    type rope_type factor rope_theta original_max_position_embeddings low_freq_factor high_freq_factor
""")


def family_kinds(model_type: str, layers: int) -> tuple[str, ...]:
    """No layer of Gemma 1 has a window; of Gemma 2 every other, and of Gemma 3 five in six have one."""
    return kinds_by_period(PERIODS[model_type], layers)


def kinds_by_period(period: int, layers: int) -> tuple[str, ...]:
    """One layer in `period` has no window."""
    return tuple(SLIDING if (i + 1) % period else FULL for i in range(layers))


def read(s: Section, defaults: dict[str, GemmaConfig]) -> GemmaConfig:
    """The config of a section of config.json. BadModel, with file and key, for a value that npgemma cannot compute.

    `defaults` holds the config that each supported model_type has without further keys. A section without a model_type
    has the first.
    """
    check_common(s)
    s.ignore(HARMLESS)
    s.require("model_type", *defaults)
    s.require("hidden_activation", *TANH_GELU)
    s.require("hidden_act", *TANH_GELU, "gelu")  # Gemma's first configs say gelu for the tanh form
    s.require("attention_bias", False)
    d = defaults[s.get("model_type", next(iter(defaults)))]
    config = replace(
        d,
        hidden_size=s.count("hidden_size", d.hidden_size, 65536),
        intermediate_size=s.count("intermediate_size", d.intermediate_size, 1 << 20),
        num_hidden_layers=s.count("num_hidden_layers", d.num_hidden_layers, 512),
        num_attention_heads=s.count("num_attention_heads", d.num_attention_heads, 1024),
        num_key_value_heads=s.count("num_key_value_heads", d.num_key_value_heads, 1024),
        head_dim=s.count("head_dim", d.head_dim, 65536),
        vocab_size=s.count("vocab_size", d.vocab_size, 1 << 24),
        max_position_embeddings=s.count("max_position_embeddings", d.max_position_embeddings, 1 << 24),
        rms_norm_eps=s.positive("rms_norm_eps", d.rms_norm_eps),
    )
    queries, keys = config.num_attention_heads, config.num_key_value_heads
    if queries % keys:
        wrong = f"not a multiple of {s.named('num_key_value_heads', keys)}"
        raise s.fault("num_attention_heads", queries, wrong)
    if config.head_dim % 2:
        raise s.fault("head_dim", config.head_dim, "not even, as rotary positions need it, since they rotate pairs")
    config = read_rotation(s, config) if d.rope_local_base_freq is None else read_two_rotations(s, config)
    return config if d.sliding_window is None else read_windows(s, read_caps(s, config))


def read_caps(s: Section, d: GemmaConfig) -> GemmaConfig:
    """The factor of the scores and the caps of Gemma 2 and 3. null means no cap, a missing key the cap of `d`.

    Gemma 3 does not cap scores, whatever its config says: transformers has the key and no use for it.
    """
    cap = s.positive_or_null("attn_logit_softcapping", d.attn_logit_softcapping)
    return replace(
        d,
        query_pre_attn_scalar=s.count("query_pre_attn_scalar", d.query_pre_attn_scalar or d.head_dim, 65536),
        attn_logit_softcapping=None if d.attn_logit_softcapping is None else cap,
        final_logit_softcapping=s.positive_or_null("final_logit_softcapping", d.final_logit_softcapping),
    )


def read_windows(s: Section, d: GemmaConfig) -> GemmaConfig:
    """Which layers have a window, and how long it is. BadModel, with file and key, unless every layer has a known kind.

    A list goes before the pattern of the family, and before `sliding_window_pattern`, which older configs of Gemma 3
    state.
    """
    layers, period = d.num_hidden_layers, PERIODS[d.model_type]
    if d.model_type == "gemma3_text":
        period = s.count("sliding_window_pattern", period, 512)
    kinds = s.get("layer_types", list(kinds_by_period(period, layers)))
    if not isinstance(kinds, list) or len(kinds) != layers:
        found = f"a list of {len(kinds)}" if isinstance(kinds, list) else repr(kinds)
        wanted = f"a list with the kind of each of the {layers} layers (num_hidden_layers)"
        raise BadModel(f"{s.where}: layer_types is {found}, not {wanted}")
    for i, kind in enumerate(kinds):
        if kind not in (SLIDING, FULL):
            what = f"layer_types says {kind!r} for layer {i}; npgemma supports {SLIDING!r} and {FULL!r}"
            raise BadModel(f"{s.where}: {what}")
    if SLIDING in kinds and "sliding_window" in s.values and s.get("sliding_window") is None:
        which = f"layer {kinds.index(SLIDING)} has a window (layer_types, or by default)"
        raise BadModel(f"{s.where}: sliding_window is null, but {which}; state how many tokens it holds")
    own = () if tuple(kinds) == family_kinds(d.model_type, layers) else tuple(kinds)
    window = s.count("sliding_window", d.sliding_window or 1, 1 << 24)
    return replace(d, sliding_window=window, layer_types=own)


def read_rotation(s: Section, d: GemmaConfig) -> GemmaConfig:
    """The rotary positions of Gemma 1 and 2. BadModel, with file and key, for another kind of positions.

    As in transformers, `rope_scaling` (of version 4) goes before `rope_parameters` (of version 5), unless it is empty,
    and a theta in either before the older key next to them.
    """
    sections = s.section("rope_scaling"), s.section("rope_parameters")
    rotation = next((each for each in sections if each.values), sections[1])
    for each in sections:
        each.ignore(ROTATION_HARMLESS)
    s.require("partial_rotary_factor", 1)
    theta = rotation.positive("rope_theta", s.positive("rope_theta", d.rope_theta))
    return replace(d, rope_theta=theta, rope_factor=read_factor(rotation))


def read_two_rotations(s: Section, d: GemmaConfig) -> GemmaConfig:
    """The rotary positions of Gemma 3: one kind for layers without a window, another for those with one.

    Version 4 of transformers writes rope_theta, rope_local_base_freq and, for layers without a window, rope_scaling;
    version 5 writes rope_parameters with an object for each of the two. As in transformers, what rope_scaling says goes
    first, and a theta in rope_parameters before the older keys.
    """
    both, scaling = s.section("rope_parameters"), s.section("rope_scaling")
    for key in both.values:
        if key not in (SLIDING, FULL):
            what = f"rope_parameters has the key {key!r}; Gemma 3 has one object for {FULL!r} and one for {SLIDING!r}"
            raise BadModel(f"{s.where}: {what}")
    full, local = both.section(FULL), both.section(SLIDING)
    for each in (full, local, scaling):
        each.ignore(ROTATION_HARMLESS)
    s.require("partial_rotary_factor", 1)
    if (factor := read_factor(local)) != 1:
        raise local.fault("factor", factor, "which npgemma does not support for layers with a window; supported: 1")
    theta = full.positive("rope_theta", s.positive("rope_theta", d.rope_theta))
    return replace(
        d,
        rope_theta=scaling.positive("rope_theta", theta),
        rope_local_base_freq=local.positive(
            "rope_theta", s.positive("rope_local_base_freq", d.rope_local_base_freq or d.rope_theta)
        ),
        rope_factor=read_factor(scaling if scaling.values else full),
    )


def read_factor(rotation: Section) -> float:
    """How much the positions are stretched: the factor of 'linear' positions, 1 of plain ones.

    BadModel, with file and key, for positions that are neither.
    """
    key = "type" if rotation.get("rope_type") is None else "rope_type"
    kind = rotation.get(key, "default")
    rotation.require("partial_rotary_factor", 1)
    if kind == "linear":
        if rotation.get("factor") is None:
            raise BadModel(f"{rotation.where}: {key} is 'linear', and its factor is missing")
        return rotation.positive("factor", 1.0)
    if kind in SCALED_BY_FACTOR:
        factor = rotation.get("factor")
        if factor != 1:
            what = f"{key} is {kind!r} with the factor {factor!r}"
            raise BadModel(f"{rotation.where}: {what}; npgemma supports 'default', 'linear', or a factor of 1")
    else:
        rotation.require(key, "default", "linear")
    return 1.0


# The keys of GemmaConfig that config.json states under other names, or not at all.
SPELLED_OTHERWISE = ("rope_factor", "layer_types")


def config_json(c: GemmaConfig) -> dict[str, object]:
    """The section of config.json for Hugging Face: what `read` returns `c` for, in the spelling that all versions read.

    Keys that the family does not have are left out; a cap that it has, and this model has not, is null.
    """
    had = asdict(LANGUAGE_MODELS[c.model_type])
    found: dict[str, object] = {"model_type": c.model_type}
    for key, value in asdict(c).items():
        if key not in SPELLED_OTHERWISE and (value is not None or had[key] is not None):
            found[key] = value
    if c.query_pre_attn_scalar is not None and float(c.query_pre_attn_scalar).is_integer():
        found["query_pre_attn_scalar"] = int(c.query_pre_attn_scalar)  # transformers 5 refuses 256.0
    if c.sliding_window is not None:
        found["layer_types"] = list(c.layer_kinds)
    if c.rope_factor != 1:
        found["rope_scaling"] = {"rope_type": "linear", "factor": c.rope_factor}
    return found
