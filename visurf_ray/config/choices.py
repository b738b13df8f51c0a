"""The choices of the configuration: one enum for each setting that has names for values; `conf/` says what they mean.

OmegaConf takes and prints the names of the members, which therefore equal the values.
"""

from enum import StrEnum


class Dtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class HeadDtype(StrEnum):
    """Of the output head's products: float32, or the model's own dtype."""

    float32 = "float32"
    model = "model"


class CoordinateUnit(StrEnum):
    """The unit of coordinates that a model has learnt; see `model.coordinates`."""

    auto = "auto"
    pixels = "pixels"
    thousandths = "thousandths"


class Resize(StrEnum):
    """What shape images get before the model's processor."""

    smart = "smart"
    square = "square"


class QuestionForm(StrEnum):
    as_is = "as_is"
    normalised = "normalised"


class Packing(StrEnum):
    """What a forward pass of the learner computes; see `learner.packing`."""

    auto = "auto"
    prefix = "prefix"
    rows = "rows"


class Layout(StrEnum):
    """Where rollout workers and learner ranks live: on GPUs or cores of their own, or together on shared GPUs."""

    disaggregated = "disaggregated"
    colocated = "colocated"


class LabelStyle(StrEnum):
    spaced = "spaced"
    compact = "compact"
    quoted = "quoted"
    auto = "auto"


class LabelTerm(StrEnum):
    ppo = "ppo"
    shaped = "shaped"
    ce = "ce"
    dft = "dft"
    chord = "chord"
    srft = "srft"


IMITATION = frozenset({LabelTerm.ce, LabelTerm.dft, LabelTerm.chord})  # labels have no advantage
SUPERVISED = IMITATION | {LabelTerm.srft}  # labels have a cross-entropy, and so teach in every group


class LabelThinking(StrEnum):
    none = "none"
    empty = "empty"


class ComparedWith(StrEnum):
    """Whose rewards an advantage compares with."""

    group = "group"
    rollouts = "rollouts"


class Aggregation(StrEnum):
    sequence = "sequence"
    token = "token"
    constant = "constant"


class RatioLevel(StrEnum):
    token = "token"
    sequence = "sequence"


class Clip(StrEnum):
    ppo = "ppo"
    cispo = "cispo"
    sapo = "sapo"


class Route(StrEnum):
    """What a group teaches: rollouts and label together, or one of the two."""

    both = "both"
    hpt = "hpt"


class Overlong(StrEnum):
    off = "off"
    punish = "punish"
    filter = "filter"


class ImportanceLevel(StrEnum):
    off = "off"
    token = "token"
    sequence = "sequence"


class OnExcess(StrEnum):
    clip = "clip"
    mask = "mask"


class Schedule(StrEnum):
    """How the learning rate changes over the steps of a stage."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class OnBadBox(StrEnum):
    stop = "stop"
    fix = "fix"
    drop = "drop"


class OnBad(StrEnum):
    stop = "stop"
    drop = "drop"


class OnLong(StrEnum):
    stop = "stop"
    drop = "drop"


class OnError(StrEnum):
    stop = "stop"
    skip = "skip"


class WandbMode(StrEnum):
    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"
