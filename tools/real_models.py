"""Real models and data, as package registries hold them: what refq's figures are measured on.

    python tools/real_models.py glassllm -o work/glassllm
    python tools/real_models.py silero --wheel silero_vad-6.2.3-py3-none-any.whl -o work/silero

writes model.onnx, what to calibrate on (calibration.npz, or a folder calibration/ where batches have no
common first axis), and evaluation data alike, ready for `refq quantize --calibration` and `refq compare`.

cnn is the example that refq carries. glassllm (a language model of 0.85 M parameters in numpy) is the
installed package of that name made into ONNX, on pages of tests/data/alice.txt. silero (speech detection) is
the ONNX file of the package silero-vad, on synthetic speech in noise, which is seeded: figures repeat.
"""

import argparse
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from refq.models import example, metrics  # noqa: E402
from refq.models.compare import IGNORED  # noqa: E402
from refq.models.engine import Engine  # noqa: E402

TEXT = ROOT / "tests" / "data" / "alice.txt"
OPSET, IR = 17, 8           # of the language model: what the embedded example has
LENGTH = 128                # tokens of a sequence: all that the language model takes
CALIBRATION = 96            # sequences at the beginning of the text, for calibration; the rest is to judge
BATCH = 8                   # images or sequences at a time
WHEEL, MEMBER = "silero-vad==6.2.3", "silero_vad/data/silero_vad_16k_sequence.onnx"
RATE, HOP, CONTEXT, STATE = 16000, 512, 64, (1, 1, 128)
SECONDS = 6                 # of a recording
RECORDINGS = {"calibration": range(12), "evaluation": range(100, 124)}      # their seeds


class Feeds:
    """Batches of feeds as a reader: refq.models.data takes it, several times over."""

    def __init__(self, batches):
        self.batches, self._next = tuple(batches), 0

    def get_next(self):
        """The next dict of arrays by input name; None at the end."""
        if self._next == len(self.batches):
            return None
        self._next += 1
        return self.batches[self._next - 1]

    def rewind(self):
        self._next = 0


@dataclass(frozen=True, eq=False)
class Score:
    """Answers against what they should be.

    loss: float64, of each unit (image, sequence, recording) the mean over its rows of what `measure` names.
    rows: how many rows of each unit count. figures: name -> number, over all rows.
    """

    measure: str
    loss: np.ndarray
    rows: np.ndarray
    figures: dict[str, float]

    @property
    def mean(self) -> float:
        return float(self.loss @ self.rows / self.rows.sum())


@dataclass(frozen=True, eq=False)
class RealModel:
    """A model with data. unit: what one loss is of. calibration: a reader for quantize_model. evaluation:
    feeds by batch. labels: beside them, or None where answers are judged by the float model's. keep_float:
    layers that stay as they are.
    """

    name: str
    title: str
    unit: str
    output: str
    model: onnx.ModelProto
    calibration: Feeds
    evaluation: tuple[dict, ...]
    labels: tuple[np.ndarray, ...] | None
    judge: Callable = field(repr=False)
    keep_float: tuple[str, ...] = ()

    def outputs(self, model, engine=Engine, told: Callable = iter) -> list[np.ndarray]:
        """What `model`, this or a quantised one, answers to the evaluation data, by batch. told: what the
        batches go through, as tqdm."""
        running = engine(model)
        return [running.run(feeds, [self.output])[self.output] for feeds in told(self.evaluation)]

    def score(self, outputs, reference=None) -> Score:
        """outputs: as from `outputs`. reference: those of the float model, where there are no labels."""
        return self.judge(outputs, reference if self.labels is None else self.labels)


# -- judging -------------------------------------------------------------------------------------------------

def classes(outputs, labels) -> Score:
    """Of logits [..., classes]: negative log-likelihood in nats, share of labels that come first, and for
    text perplexity. A label of IGNORED does not count."""
    loss, rows, right = [], [], 0
    for logits, wanted in zip(outputs, labels, strict=True):
        counts = wanted != IGNORED
        chosen = np.where(counts, wanted, 0)[..., None]
        nll = -np.take_along_axis(metrics.log_softmax(logits), chosen, axis=-1)[..., 0]
        each = counts.reshape(len(counts), -1)
        rows.append(each.sum(axis=1))
        loss.append((nll * counts).reshape(each.shape).sum(axis=1) / rows[-1])
        right += int(np.count_nonzero((logits.argmax(axis=-1) == wanted) & counts))
    score = Score("NLL", np.concatenate(loss), np.concatenate(rows), {})
    score.figures.update(nll=score.mean, top1=right / int(score.rows.sum()))
    if labels[0].ndim == 2:
        score.figures["perplexity"] = float(np.exp(score.mean))
    return score


def probabilities(outputs, reference) -> Score:
    """Of numbers between 0 and 1: squared distance from the float model's."""
    loss = [np.mean((ours.astype(np.float64) - theirs) ** 2)
            for ours, theirs in zip(outputs, reference, strict=True)]
    score = Score("squared difference", np.array(loss), np.array([len(ours) for ours in outputs]), {})
    score.figures["rmse"] = float(np.sqrt(score.mean))
    return score


# -- the embedded example ------------------------------------------------------------------------------------

def cnn() -> RealModel:
    """The Fashion-MNIST CNN that refq carries."""
    found = example.load()
    feeds = [[{"image": part} for part in parts(images)] for images in (found.calibration, found.images)]
    return RealModel("cnn", "Fashion-MNIST CNN, 224,714 parameters", "image", "logits",
                     onnx.load(found.model_path), Feeds(feeds[0]), tuple(feeds[1]),
                     tuple(parts(found.labels)), classes)


def parts(array):
    """An array in batches."""
    return [array[start:start + BATCH] for start in range(0, len(array), BATCH)]


# -- the language model --------------------------------------------------------------------------------------

def glassllm(sequences: int = CALIBRATION) -> RealModel:
    """The English model of the package glassllm, in ONNX, on Alice's Adventures in Wonderland. The table of
    tokens stays float where they are looked up; the last layer, which shares it, gets weights of its own.

    sequences: for calibration; more than 96 overlap. Raises ImportError without the package.
    """
    from glassllm import load_pretrained
    language_model, tokenizer = load_pretrained("en")
    calibration, _ = tokens("calibration", tokenizer, sequences)
    evaluation, labels = tokens("evaluation", tokenizer)
    title = "glassllm 0.1.0, a decoder of 852,608 parameters, its lookup of tokens in float"
    return RealModel("glassllm", title, "sequence", "logits", decoder(language_model),
                     Feeds({"tokens": part} for part in parts(calibration)),
                     tuple({"tokens": part} for part in parts(evaluation)), tuple(parts(labels)), classes,
                     ("embed",))


def glassllm_tied() -> RealModel:
    """The same, wholly quantised: lookup and last layer share one weight, which is cast directly."""
    title = "glassllm as above, and the table that lookup and last layer share cast directly, whatever the method"
    return replace(glassllm(), name="glassllm_tied", title=title, keep_float=())


def text() -> str:
    """The book in the characters that glassllm was trained on: it knows curly quotes and long dashes only."""
    book = TEXT.read_text(encoding="ascii")
    book = re.sub(r"(?<=[A-Za-z,.!?;:-])'", "\u2019", book).replace("`", "\u201c").replace("'", "\u2019")
    book = re.sub(r"\u2019(?=[\s]|$)", "\u201d", book.replace("--", "\u2014"))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+", " ", re.sub(r"\n[ \t]+", "\n", book)))


def tokens(part: str, tokenizer, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, labels), both int64 [sequences, 128], of "calibration", the beginning of the text, or of
    "evaluation", all the rest. A label is the next token of the part; it is IGNORED at the end, and where the
    vocabulary has no word for the text. count: of sequences, spread over the part; None: as many as lie there
    without overlap."""
    book = np.array(tokenizer.encode(text()), np.int64)
    edge = CALIBRATION * LENGTH
    own = {"calibration": book[:edge], "evaluation": book[edge:]}[part]
    following = np.append(own[1:], IGNORED)
    following[following == tokenizer.unk_id] = IGNORED
    most = len(own) // LENGTH
    count = count or most
    starts = np.arange(count) * ((most - 1) * LENGTH) // max(count - 1, 1)
    places = starts[:, None] + np.arange(LENGTH)
    return own[places], following[places]


def decoder(language_model) -> onnx.ModelProto:
    """A glassllm model as ONNX: `tokens` int64 [batch, 128] -> `logits` [batch, 128, vocabulary]. The table
    of tokens is also, turned over, the last layer's weight."""
    return _Decoder(language_model).proto()


class _Decoder:
    """The graph as it grows. Every node is named after its place, its output the same."""

    def __init__(self, language_model):
        self.source, self.config = language_model, language_model.cfg
        self.nodes, self.weights = [], []

    def proto(self) -> onnx.ModelProto:
        config = self.config
        self.weight("tokens.weight", self.source.E.data)
        self.weight("eps", np.float32(config.eps))
        self.weight("scale", np.float32(np.sqrt(config.d_model // config.n_heads)))
        self.tables()
        x = self.node("Gather", "embed", "tokens.weight", "tokens")
        for number, block in enumerate(self.source.blocks):
            x = self.block(f"layers.{number}", block, x)
        x = self.norm("norm", self.source.norm_f, x)
        table = self.node("Transpose", "head.weight", "tokens.weight", perm=[1, 0])
        self.nodes.append(helper.make_node("MatMul", [x, table], ["logits"], "head"))
        values = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", LENGTH]),
                  helper.make_tensor_value_info("logits", TensorProto.FLOAT,
                                                ["batch", LENGTH, config.vocab_size])]
        graph = helper.make_graph(self.nodes, "glassllm", values[:1], values[1:], self.weights)
        model = helper.make_model(graph, producer_name="refq", ir_version=IR,
                                  opset_imports=[helper.make_opsetid("", OPSET)])
        onnx.checker.check_model(model, full_check=True)
        return model

    def node(self, op: str, name: str, *inputs, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def weight(self, name: str, array) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def tables(self) -> None:
        """What all layers share: shapes, the rotation of pairs of features by place, and the causal mask."""
        attention, heads = self.source.blocks[0].attn, self.config.n_kv_heads
        self.weight("shape.query", np.array([0, LENGTH, heads, -1, attention.d_k]))
        self.weight("shape.key", np.array([0, LENGTH, heads, 1, attention.d_k]))
        self.weight("shape.joined", np.array([0, LENGTH, self.config.d_model]))
        self.weight("rope.partner", np.arange(attention.d_k) ^ 1)
        cos, sin = (np.repeat(table, 2, axis=1) for table in (attention.cos, attention.sin))
        sin[:, ::2] *= -1
        self.weight("rope.cos", cos[:LENGTH])
        self.weight("rope.sin", sin[:LENGTH])
        self.weight("mask", np.triu(np.full((LENGTH, LENGTH), -np.inf, np.float32), 1))

    def norm(self, name: str, norm, x: str) -> str:
        square = self.node("Mul", f"{name}.square", x, x)
        mean = self.node("ReduceMean", f"{name}.mean", square, axes=[-1], keepdims=1)
        root = self.node("Sqrt", f"{name}.root", self.node("Add", f"{name}.raised", mean, "eps"))
        unit = self.node("Div", f"{name}.unit", x, root)
        return self.node("Mul", name, unit, self.weight(f"{name}.weight", norm.gamma.data))

    def linear(self, name: str, weight, x: str) -> str:
        return self.node("MatMul", name, x, self.weight(f"{name}.weight", weight.data))

    def block(self, name: str, block, x: str) -> str:
        own = self.attention(f"{name}.attn", block.attn, self.norm(f"{name}.norm1", block.norm1, x))
        x = self.node("Add", f"{name}.middle", x, own)
        own = self.mlp(f"{name}.mlp", block.ffn, self.norm(f"{name}.norm2", block.norm2, x))
        return self.node("Add", f"{name}.output", x, own)

    def attention(self, name: str, attention, x: str) -> str:
        """Heads that share keys and values lie along an axis of their own, along which those broadcast."""
        query, key, value = (self.linear(f"{name}.{letter}", weight, x) for letter, weight in
                             zip("qkv", (attention.W_Q, attention.W_K, attention.W_V)))
        query = self.rotated(query, self.heads(query, "query", [0, 2, 3, 1, 4]))
        key = self.rotated(key, self.heads(key, "key", [0, 2, 3, 1, 4]))
        turned = self.node("Transpose", f"{name}.k.turned", key, perm=[0, 1, 2, 4, 3])
        scores = self.node("MatMul", f"{name}.products", query, turned)
        scores = self.node("Div", f"{name}.scores", scores, "scale")
        shares = self.node("Add", f"{name}.masked", scores, "mask")
        shares = self.node("Softmax", f"{name}.shares", shares, axis=-1)
        mixed = self.node("MatMul", f"{name}.mixed", shares, self.heads(value, "key", [0, 2, 3, 1, 4]))
        mixed = self.node("Transpose", f"{name}.places", mixed, perm=[0, 3, 1, 2, 4])
        return self.linear(f"{name}.o", attention.W_O,
                           self.node("Reshape", f"{name}.joined", mixed, "shape.joined"))

    def heads(self, x: str, shape: str, order) -> str:
        return self.node("Transpose", f"{x}.heads", self.node("Reshape", f"{x}.split", x, f"shape.{shape}"),
                         perm=order)

    def rotated(self, name: str, x: str) -> str:
        """Feature pairs (0, 1), (2, 3) ... turned by an angle that grows with the place."""
        kept = self.node("Mul", f"{name}.cos", x, "rope.cos")
        other = self.node("Gather", f"{name}.partner", x, "rope.partner", axis=-1)
        return self.node("Add", f"{name}.rope", kept, self.node("Mul", f"{name}.sin", other, "rope.sin"))

    def mlp(self, name: str, mlp, x: str) -> str:
        gate, up = self.linear(f"{name}.gate", mlp.W1, x), self.linear(f"{name}.up", mlp.W3, x)
        swish = self.node("Mul", f"{name}.silu", gate, self.node("Sigmoid", f"{name}.sigmoid", gate))
        return self.linear(f"{name}.down", mlp.W2, self.node("Mul", f"{name}.product", swish, up))


# -- the speech detector -------------------------------------------------------------------------------------

def silero(wheel: Path) -> RealModel:
    """The 16 kHz model out of a wheel of silero-vad, on synthetic recordings. The graph sees a whole
    recording: its frames lie along the LSTM's time axis."""
    with zipfile.ZipFile(wheel) as archive:
        model = onnx.load_from_string(archive.read(MEMBER))
    calibration, evaluation = ([frames(recording(seed)) for seed in seeds] for seeds in RECORDINGS.values())
    return RealModel("silero", "silero-vad 6.2.3 (16 kHz, sequences), 309,633 parameters", "recording",
                     "speech_probs", model, Feeds(calibration), tuple(evaluation), None, probabilities)


def silero_wheel(cache: Path) -> Path:
    """The wheel in the folder `cache`, fetched once by pip."""
    name = WHEEL.replace("-", "_").replace("==", "-")
    if not any(cache.glob(f"{name}-*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", str(cache), WHEEL], check=True)
    return next(cache.glob(f"{name}-*.whl"))


def frames(audio: np.ndarray) -> dict:
    """Samples at 16 kHz -> feeds: frames of 512 samples after the 64 before them, and a state of zeros."""
    count = len(audio) // HOP
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), audio])
    rows = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + HOP)[::HOP][:count]
    return {"input": np.ascontiguousarray(rows), "h": np.zeros(STATE, np.float32),
            "c": np.zeros(STATE, np.float32)}


# First three formants in Hz of ten vowels, means over men: Peterson and Barney (1952)
VOWELS = ((270, 2290, 3010), (390, 1990, 2550), (530, 1840, 2480), (660, 1720, 2410), (730, 1090, 2440),
          (570, 840, 2410), (440, 1020, 2240), (300, 870, 2240), (640, 1190, 2390), (490, 1350, 1690))
WIDTHS = (60, 90, 150, 200, 250)        # of the formants, in Hz; two more lie at 3500 and 4500
HISSES = ((3500, 7500), (1800, 5500), (1000, 7500))     # of s, sh and f: bands in Hz
CONTROL = 80                            # samples between points at which the voice is set


def recording(seed: int) -> np.ndarray:
    """Six seconds of somebody talking with breaks, in a room's noise with bursts: float32, within -1..1."""
    rng = np.random.default_rng(seed)
    size = SECONDS * RATE
    audio = noise(rng, size, (50, 7500), slope=-0.5) * 10 ** rng.uniform(-3.0, -1.7)
    for _ in range(rng.integers(1, 5)):                     # knocks and hisses that are no speech
        length, start = rng.integers(RATE // 50, RATE // 2), rng.integers(0, size - RATE // 2)
        low = rng.uniform(50, 3000)
        burst = noise(rng, length, (low, low * rng.uniform(1.5, 8))) * np.hanning(length)
        audio[start:start + length] += burst * 10 ** rng.uniform(-2.0, -0.6)
    place, voice = rng.integers(0, RATE), Voice(rng)
    while place < size - RATE // 2:
        words = voice.phrase(rng.integers(3, 9))[:size - place]
        audio[place:place + len(words)] += words
        place += len(words) + rng.integers(RATE // 5, 2 * RATE)
    return np.clip(audio, -1, 1).astype(np.float32)


def noise(rng, size: int, band, slope: float = 0.0) -> np.ndarray:
    """Noise of a root mean square of 1 in a band of Hz, whose spectrum goes like frequency to the slope."""
    spectrum = np.fft.rfft(rng.standard_normal(size))
    hertz = np.fft.rfftfreq(size, 1 / RATE)
    spectrum *= ((hertz >= band[0]) & (hertz <= band[1])) * np.maximum(hertz, band[0]) ** slope
    wave = np.fft.irfft(spectrum, size)
    return wave / np.sqrt(np.mean(wave ** 2) + 1e-12)


class Voice:
    """A speaker: harmonics of a pitch, weighed by formants that glide from vowel to vowel."""

    def __init__(self, rng):
        self.rng, self.pitch, self.tract = rng, rng.uniform(85, 230), rng.uniform(0.95, 1.2)
        self.level = 10 ** rng.uniform(-1.6, -0.7)

    def phrase(self, syllables: int) -> np.ndarray:
        """Syllables of a consonant and a vowel, the pitch falling towards the end."""
        sounds, rng = [], self.rng
        fall = np.linspace(rng.uniform(1.0, 1.25), rng.uniform(0.75, 0.95), syllables + 1)
        for before, after in pairwise(fall):
            sounds += [self.consonant(), self.vowel(before, after)]
        return self.level * np.concatenate(sounds)

    def consonant(self) -> np.ndarray:
        """A hiss, or the silence of a stop with its burst."""
        rng, length = self.rng, int(self.rng.integers(RATE // 25, RATE // 8))
        if rng.random() < 0.5:
            return 0.25 * noise(rng, length, HISSES[rng.integers(len(HISSES))]) * np.hanning(length)
        sound = np.zeros(length)
        size = RATE // 100
        sound[-size:] = 0.4 * noise(rng, size, (500, 6000)) * np.linspace(1, 0, size)
        return sound

    def vowel(self, before: float, after: float) -> np.ndarray:
        """A glide between two vowels."""
        rng = self.rng
        points = int(rng.integers(RATE // 9, RATE // 3)) // CONTROL
        length, at = points * CONTROL, np.arange(points) * CONTROL
        way = np.linspace(0, 1, points)[:, None]
        first, last = (np.array((*VOWELS[rng.integers(len(VOWELS))], 3500, 4500)) for _ in range(2))
        formants = self.tract * (first + way * (last - first))
        pitch = self.pitch * np.linspace(before, after, length) * (1 + 0.01 * noise(rng, length, (5, 30)))
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        wave = np.zeros(length)
        for harmonic in range(1, int(7500 / pitch.max()) + 1):
            strength = harmonic ** -1.0 * resonance(harmonic * pitch[at], formants)
            wave += np.interp(np.arange(length), at, strength) * np.sin(harmonic * phase)
        edge = np.minimum(1, np.minimum(np.arange(length), np.arange(length)[::-1]) / (RATE / 50))
        return wave * edge / np.sqrt(np.mean(wave ** 2))


def resonance(hertz, formants) -> np.ndarray:
    """How much formants [points, 5] pass of the frequencies [points]."""
    strength = np.ones(len(hertz))
    for centre, width in zip(formants.T, WIDTHS):
        strength *= centre ** 2 / np.hypot(centre ** 2 - hertz ** 2, width * hertz)
    return strength


# -- files ---------------------------------------------------------------------------------------------------

MODELS = ("cnn", "glassllm", "glassllm_tied", "silero")


def load(name: str, wheel: Path | None = None, cache: Path | None = None) -> RealModel:
    """The model of that name. wheel: silero-vad's; without it pip fetches one into the folder `cache`."""
    if name == "silero":
        return silero(wheel or silero_wheel(cache or Path(".")))
    return {"cnn": cnn, "glassllm": glassllm, "glassllm_tied": glassllm_tied}[name]()


def save(real: RealModel, folder: Path) -> None:
    """Write model.onnx, and calibration and evaluation data with labels: an .npz, or a folder of them."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(real.model, folder / "model.onnx")
    labels = [{"labels": part} for part in real.labels or [()] * len(real.evaluation)]
    labelled = [feeds | (own if real.labels else {}) for feeds, own in zip(real.evaluation, labels)]
    for part, batches in (("calibration", real.calibration.batches), ("evaluation", labelled)):
        if len(batches[0]) - bool(real.labels and part == "evaluation") == 1:
            arrays = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
            np.savez(folder / f"{part}.npz", **arrays)
            continue
        (folder / part).mkdir(exist_ok=True)
        for number, batch in enumerate(batches):
            np.savez(folder / part / f"{number:03}.npz", **batch)


def arguments(argv):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = options.add_argument
    add("model", choices=MODELS)
    add("-o", "--output", type=Path, required=True, help="the folder to write to")
    add("--wheel", type=Path, help="of silero-vad; else pip fetches it into the output folder")
    add("--sequences", type=int, default=CALIBRATION,
        help=f"of glassllm's calibration data (default {CALIBRATION}; more overlap)")
    return options.parse_args(argv)


def main(argv=None) -> int:
    options = arguments(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    real = glassllm(options.sequences) if options.model == "glassllm" else \
        load(options.model, options.wheel, options.output)
    save(real, options.output)
    answers = real.outputs(real.model)
    score = real.score(answers, answers)
    print(f"{real.title}: {score.rows.size} {real.unit}s; "
          + ", ".join(f"{name} {value:.4f}" for name, value in score.figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
