"""Words, pictures and sounds of the synthetic items: each drawn from a few factor values plus noise that says nothing about taste."""

import io

import numpy as np

TOPICS: dict[str, tuple[str, str]] = {
    "sea": ("at sea", "harbour tide sail anchor wave coral captain lagoon gull deck current reef"),
    "forest": ("in the forest", "oak moss fern trail owl acorn thicket badger pine clearing mushroom bark"),
    "kitchen": ("in the kitchen", "oven dough spice simmer recipe butter ladle pastry broth knife basil skillet"),
    "space": ("in space", "orbit rocket comet lunar galaxy astronaut crater nebula telescope probe gravity module"),
    "city": ("in the city", "avenue tram skyline traffic plaza rooftop subway crowd neon district corner taxi"),
    "desert": ("in the desert", "dune camel oasis sandstorm cactus mirage caravan canyon drought nomad scorpion mesa"),
    "castle": ("at the castle", "knight tower moat throne banner squire dungeon crown armour siege rampart herald"),
    "library": ("in the library", "shelf novel archive chapter reader margin poem volume catalogue parchment essay folio"),
    "stadium": ("at the stadium", "goal referee striker sprint trophy coach relay pitch medal league whistle tackle"),
    "garden": ("in the garden", "tulip compost hedge blossom pruning trellis seedling rake orchard petal greenhouse lavender"),
    "workshop": ("in the workshop", "chisel hammer lathe plank rivet solder bench gear varnish clamp sawdust wrench"),
    "mountain": ("in the mountains", "summit glacier ridge avalanche climber rope boulder altitude cairn ledge chalet slope"),
}
"""Topic -> where it takes place (for titles) and the words it is told with."""

FILLER_WORDS = """
    the a of and with about for from after before into over again always once still often
    story day night people friend morning hour week part way moment place name thing idea voice
    finds brings keeps leaves meets turns begins tells follows remembers shares returns
    new old small long quiet early late simple strange familiar bright
"""
DISTRACTOR_WORDS = """
    red green blue yellow circle wide tall cross striped dotted major minor fast slow flute bell
"""
"""They name pictures and sounds but are drawn without looking at either: a model that trusts them is wrong."""
TITLE_ADJECTIVES = """
    Quiet Hidden Second Golden Last Early Gentle Distant Curious Endless Forgotten Lucky Patient Restless Sudden Winter
"""
TITLE_NOUNS = """
    Evening Journey Promise Letter Holiday Secret Lesson Meeting Morning Season Wager Visit Reunion Errand Riddle Farewell
"""

SHAPES = ("circle", "wide", "tall", "cross")
COLOURS: dict[str, tuple[float, float, float]] = {"red": (0.85, 0.15, 0.15), "green": (0.15, 0.7, 0.2), "blue": (0.2, 0.3, 0.9), "yellow": (0.9, 0.8, 0.1)}
TEXTURES = ("plain", "stripes", "checks", "rings")
IMAGE_FACTORS = {"shape": SHAPES, "colour": tuple(COLOURS), "texture": TEXTURES}

CHORDS_HZ: dict[str, tuple[float, ...]] = {"low": (220, 277, 330), "open": (220, 440, 659), "high": (494, 587, 740), "wide": (294, 587, 880)}
TEMPOS_HZ = {"slow": 2.0, "walking": 3.5, "quick": 6.0, "rapid": 10.0}
TIMBRES: dict[str, tuple[tuple[float, float], ...]] = {
    "flute": ((1, 1.0), (2, 0.05)),
    "clarinet": ((1, 1.0), (3, 0.6), (5, 0.4)),
    "brass": ((1, 0.7), (2, 0.7), (3, 0.6), (4, 0.5), (5, 0.4)),
    "bell": ((1, 0.8), (2.76, 0.6), (5.4, 0.5)),
}
"""Timbre -> (frequency multiple, amplitude) of its partials."""
AUDIO_FACTORS = {"chord": tuple(CHORDS_HZ), "tempo": tuple(TEMPOS_HZ), "timbre": tuple(TIMBRES)}


def write_title(generator: np.random.Generator, topic: str) -> str:
    """A readable title: it names the main topic and says nothing about picture or sound."""
    return f"{generator.choice(TITLE_ADJECTIVES.split())} {generator.choice(TITLE_NOUNS.split())} {TOPICS[topic][0]}"


def write_text(generator: np.random.Generator, topic_shares: np.ndarray, num_words: int, topic_word_share: float, distractor_word_share: float) -> str:
    """`num_words` words: topic words by `topic_shares` (in the order of TOPICS, sum 1), distractor words, the rest filler."""
    topic_words, distractors, fillers = [words.split() for _, words in TOPICS.values()], DISTRACTOR_WORDS.split(), FILLER_WORDS.split()
    kinds = generator.random(num_words)
    topics = generator.choice(len(topic_words), size=num_words, p=topic_shares)
    places = generator.random(num_words)
    words = []
    for kind, topic, place in zip(kinds, topics, places, strict=True):
        if kind < topic_word_share:
            pool = topic_words[topic]
        elif kind < topic_word_share + distractor_word_share:
            pool = distractors
        else:
            pool = fillers
        words.append(pool[int(place * len(pool))])
    return " ".join(words)


def draw_image(generator: np.random.Generator, factors: np.ndarray, side: int, noise: float, num_distractors: int) -> np.ndarray:
    """One textured, coloured shape at a random place, size and angle over a tinted gradient, small grey distractor strokes and pixel noise.

    factors: int (3,), positions in SHAPES, COLOURS, TEXTURES. noise: standard deviation of a pixel, 1 is the full range. Returns uint8 (side, side, 3).
    """
    shape, colour, texture = factors
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float64) / side
    corner, slope = generator.uniform(0.3, 0.7) + generator.uniform(-0.08, 0.08, 3), generator.uniform(-0.1, 0.1, (2, 3))
    picture = corner + rows[..., None] * slope[0] + columns[..., None] * slope[1]
    for _ in range(num_distractors):
        row, column, height, width = generator.uniform((0, 0, 0.02, 0.02), (1, 1, 0.12, 0.12))
        picture[(np.abs(rows - row) < height) & (np.abs(columns - column) < width)] = generator.uniform(0.1, 0.9)
    centre_row, centre_column = generator.uniform(0.36, 0.64, 2)
    size, angle = generator.uniform(0.26, 0.36), generator.uniform(-0.3, 0.3)
    down, right = (rows - centre_row) / size, (columns - centre_column) / size
    down, right = np.cos(angle) * down - np.sin(angle) * right, np.sin(angle) * down + np.cos(angle) * right
    inside = _inside_shape(SHAPES[shape], down, right)
    is_dark = _dark_parts(TEXTURES[texture], down, right, generator.uniform(0, 1))
    light = 1 - 0.6 * is_dark
    paint = np.clip(np.array(list(COLOURS.values())[colour]) + generator.uniform(-0.08, 0.08, 3), 0, 1)
    picture = np.where(inside[..., None], paint * light[..., None], picture) * generator.uniform(0.85, 1.1)
    picture += noise * generator.standard_normal(picture.shape)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)


def _inside_shape(name: str, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether a point belongs to the shape; coordinates are in units of its half height."""
    if name == "circle":
        return down**2 + right**2 < 1
    is_wide, is_tall = (np.maximum(np.abs(long) / 1.2, np.abs(short) / 0.5) < 1 for long, short in ((right, down), (down, right)))
    if name == "cross":
        return (np.minimum(np.abs(down), np.abs(right)) < 0.36) & (np.maximum(np.abs(down), np.abs(right)) < 1.1)
    return is_wide if name == "wide" else is_tall


def _dark_parts(name: str, down: np.ndarray, right: np.ndarray, phase: float) -> np.ndarray:
    """Where a texture darkens its shape, bool; `phase` in [0, 1) moves the pattern."""
    wave = 2.2
    if name == "plain":
        return np.zeros_like(down, dtype=bool)
    if name == "stripes":
        return (wave * (right + down) / np.sqrt(2) + phase) % 1 < 0.5
    if name == "checks":
        return ((wave * 0.8 * right + phase) % 1 < 0.5) ^ ((wave * 0.8 * down + phase) % 1 < 0.5)
    return (wave * np.hypot(down, right) + phase) % 1 < 0.5


def play_sound(generator: np.random.Generator, factors: np.ndarray, num_samples: int, sample_rate_hz: int, noise: float, distractor_gain: float) -> np.ndarray:
    """A chord struck again and again in one timbre, with random phases, gain, tuning and octave doubling, a distractor tone and white noise.

    factors: int (3,), positions in CHORDS_HZ, TEMPOS_HZ, TIMBRES. noise: standard deviation relative to the chord's; distractor_gain: amplitude of the
    steady distractor tone relative to the chord's notes. Partials above half the sample rate are left out. Returns float64 (num_samples,) in [-1, 1].
    """
    chord, tempo, timbre = factors
    seconds = np.arange(num_samples) / sample_rate_hz
    notes_hz = np.array(list(CHORDS_HZ.values())[chord]) * 2 ** generator.uniform(-0.02, 0.02)
    octave_note = notes_hz[generator.integers(len(notes_hz))] * 2
    loudness = np.append(generator.uniform(0.7, 1.0, len(notes_hz)), generator.uniform(0, 0.4))
    partials = np.array(list(TIMBRES.values())[timbre])
    frequencies = np.outer(np.append(notes_hz, octave_note), partials[:, 0]).ravel()
    amplitudes = np.outer(loudness, partials[:, 1]).ravel() * (frequencies < sample_rate_hz / 2)
    phases = generator.uniform(0, 2 * np.pi, len(frequencies))
    tones = np.zeros(num_samples)
    for frequency, amplitude, phase in zip(frequencies, amplitudes, phases, strict=True):
        if amplitude > 0:
            tones += amplitude * np.sin(2 * np.pi * frequency * seconds + phase)
    beats = seconds * list(TEMPOS_HZ.values())[tempo] * generator.uniform(0.95, 1.05) + generator.uniform(0, 1)
    # The decay is a share of the beat, so a short excerpt already tells the tempo.
    sound = tones * np.exp(-4.0 * (beats % 1))
    sound /= sound.std()
    distractor_hz, distractor_phase = generator.uniform(150, 0.45 * sample_rate_hz), generator.uniform(0, 2 * np.pi)
    sound += distractor_gain * np.sin(2 * np.pi * distractor_hz * seconds + distractor_phase)
    sound += noise * generator.standard_normal(num_samples)
    return sound / np.abs(sound).max() * generator.uniform(0.3, 0.95)


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """JPEG bytes of uint8 (H, W, 3)."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=90)
    return stream.getvalue()


def encode_flac(samples: np.ndarray, sample_rate_hz: int) -> bytes:
    """16-bit FLAC bytes of mono samples in [-1, 1]."""
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, samples, sample_rate_hz, format="FLAC", subtype="PCM_16")
    return stream.getvalue()
