"""Two decoders, each trained on a text of its own, merged into one that knows both.

    python two_texts.py

The decoder is a plain function with causal attention. The texts are made here: lines of
digits and lines of letters, each of which goes on by a step of its own, such as
"258147036925" and "jhfdbjhfdbjh". The step shows after two characters, so the network
has to look back.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import zipjax

ALPHABETS = {"digits": "0123456789", "letters": "abcdefghij"}
CHARACTERS = "".join(ALPHABETS.values())
LENGTH, WIDTH, HEADS, HIDDEN, BLOCKS, STEPS = 12, 64, 4, 128, 1, 150


def lines_of(name, count, seed):
    """Returns lines of a text, characters by number ``[count, LENGTH]``."""
    rng = np.random.default_rng(seed)
    alphabet = np.array([CHARACTERS.index(x) for x in ALPHABETS[name]])
    start, step = rng.integers(1, len(alphabet), (2, count, 1))
    return alphabet[(start + step * np.arange(LENGTH)) % len(alphabet)]


def init(seed):
    rng, size = np.random.default_rng(seed), WIDTH // HEADS

    def drawn(fan_in, *shape):
        return np.float32(rng.normal(size=shape) / np.sqrt(fan_in))

    def block():
        return {
            "norm_1": np.ones(WIDTH, np.float32),
            "query": drawn(WIDTH, WIDTH, HEADS, size),
            "key": drawn(WIDTH, WIDTH, HEADS, size),
            "value": drawn(WIDTH, WIDTH, HEADS, size),
            "out": drawn(WIDTH, HEADS, size, WIDTH),
            "norm_2": np.ones(WIDTH, np.float32),
            "up": drawn(WIDTH, WIDTH, HIDDEN),
            "bias": np.zeros(HIDDEN, np.float32),
            "down": drawn(HIDDEN, HIDDEN, WIDTH),
        }

    return {
        "embed": drawn(WIDTH, len(CHARACTERS), WIDTH),
        "places": drawn(WIDTH, LENGTH, WIDTH),
        "blocks": [block() for _ in range(BLOCKS)],
        "norm": np.ones(WIDTH, np.float32),
        "logits": drawn(WIDTH, WIDTH, len(CHARACTERS)),
    }


def rms_norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


def attention(block, x):
    names = ("query", "key", "value")
    q, k, v = (jnp.einsum("btc,chd->bhtd", x, block[name]) for name in names)
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k) / np.sqrt(q.shape[-1])
    past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -1e9))
    return jnp.einsum("bhts,bhsd,hdc->btc", weights, v, block["out"])


def apply_fn(params, characters):
    """Returns the logits of every next character ``[lines, length, 20]``."""
    x = params["embed"][characters] + params["places"][: characters.shape[1]]
    for block in params["blocks"]:
        x = x + attention(block, rms_norm(x, block["norm_1"]))
        hidden = jax.nn.gelu(rms_norm(x, block["norm_2"]) @ block["up"] + block["bias"])
        x = x + hidden @ block["down"]
    return rms_norm(x, params["norm"]) @ params["logits"]


adam = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))


@jax.jit
def train_step(params, state, lines):
    def loss(params):
        logits = apply_fn(params, lines[:, :-1])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, lines[:, 1:])
        return losses[:, 1:].mean()  # The second character can only be guessed.

    updates, state = adam.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state


def trained(name, seed):
    params = init(seed)
    state = adam.init(params)
    for number in range(STEPS):
        lines = lines_of(name, 64, (seed, number))
        params, state = train_step(params, state, lines)
    return params


def accuracy(logits, lines):
    """Returns how often the next character is right, from the third one on."""
    return float(np.mean((np.argmax(logits, -1) == lines[:, 1:])[:, 1:]))


models = [trained(name, seed) for seed, name in enumerate(ALPHABETS)]

# Both texts, in every batch; what comes next is not told.
batches = [
    np.concatenate([lines_of(name, 128, (2, k)) for name in ALPHABETS])[:, :-1]
    for k in range(4)
]
spec = zipjax.infer_spec(apply_fn, models[0], batches[0])
zipjax.verify_spec(apply_fn, models[0], spec, batches[0], key=jax.random.key(0))
moments = zipjax.collect_moments(apply_fn, models, spec, batches)
zipped = zipjax.merge(models, spec, zipjax.zipit(), moments=moments)
networks = {
    "first": models[0],
    "second": models[1],
    "averaged": zipjax.merge(models, spec, zipjax.average()).params(),
    "zipped": zipped.params(),
    "refitted": zipjax.refit(apply_fn, models, zipped, batches).params(),
}

# The attention in common, the rest of the block each text's own.
cut = "after blocks/0/out"
early = zipjax.collect_moments(apply_fn, models, spec, batches, stop_at=cut)
shared = zipjax.merge(models, spec, zipjax.zipit(), moments=early, stop_at=cut)
shared = zipjax.refit(apply_fn, models, shared, batches)

texts = [lines_of(name, 256, 3) for name in ALPHABETS]
run = jax.jit(apply_fn)
scores = {
    name: [accuracy(run(params, lines[:, :-1]), lines) for lines in texts]
    for name, params in networks.items()
}
scores["shared attention"] = [
    accuracy(zipjax.apply(apply_fn, shared, lines[:, :-1])[head], lines)
    for head, lines in enumerate(texts)
]
for name, (digits, letters) in scores.items():
    print(f"{name:16} digits {digits:.1%}, letters {letters:.1%}")
