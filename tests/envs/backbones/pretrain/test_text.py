from __future__ import annotations

import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from envs.backbones.pretrain.text import build_text_encoder, build_tokenizer, phantom_captions

# Assigned characters only: Python and the tokenizer know different versions of Unicode.
TEXT = st.text(st.one_of(st.characters(exclude_categories=("Cc", "Cn", "Co", "Cs")), st.sampled_from(" \t\nabc'")))
TOKENIZER = build_tokenizer(phantom_captions())


def tokens(tokenizer: CLIPTokenizer, text: str) -> list[str]:
    return [str(token) for token in tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)]


# A byte-level vocabulary shows printable bytes of Latin-1 as they are and the others as the letters from U+0100 on.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = {chr(byte): byte for byte in PRINTABLE} | {
    chr(256 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in PRINTABLE)
}


def spelled(tokenizer: CLIPTokenizer, text: str) -> str:
    letters = "".join(token.removesuffix("</w>") for token in tokens(tokenizer, text)[1:-1])
    return bytes(BYTES[letter] for letter in letters).decode()


@given(TEXT)
def test_any_text_is_spelled(text: str) -> None:
    assert tokens(TOKENIZER, text)[0] == "<|startoftext|>"
    assert tokens(TOKENIZER, text)[-1] == "<|endoftext|>"
    assert spelled(TOKENIZER, text) == "".join(c.lower() for c in unicodedata.normalize("NFC", text) if not c.isspace())


@given(TEXT)
def test_ids_fit_the_text_encoder(text: str) -> None:
    ids = TOKENIZER([text * 3], padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (1, 32)
    assert ids.min() >= 0
    assert ids.max() == len(TOKENIZER) - 1 == TOKENIZER.eos_token_id
    assert ids[0, 0] == TOKENIZER.bos_token_id


def test_tokenizers_of_the_same_captions_are_equal() -> None:
    """A resumed pretraining builds its tokenizer again."""
    vocabularies = [build_tokenizer(phantom_captions()).get_vocab() for _ in range(4)]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
    assert tokens(TOKENIZER, "hyperkeratotic") == tokens(build_tokenizer(phantom_captions()), "hyperkeratotic")


def test_words_of_captions_are_single_tokens() -> None:
    assert tokens(TOKENIZER, "Chest radiograph phantom, nodule") == [
        "<|startoftext|>",
        *("chest</w>", "radiograph</w>", "phantom</w>", ",</w>", "nodule</w>"),
        "<|endoftext|>",
    ]


def test_captions_of_any_script_can_be_learned() -> None:
    tokenizer = build_tokenizer(["größe 漢字"] * 50)
    assert len(tokens(tokenizer, "größe 漢字")) == 4, "a token a word"
    assert spelled(tokenizer, "Größe 漢字") == "größe漢字"


@pytest.mark.parametrize("vocabulary", [514, 600, 1000])
def test_the_vocabulary_is_bounded(vocabulary: int) -> None:
    tokenizer = build_tokenizer(phantom_captions(), vocabulary)
    assert 514 <= len(tokenizer) <= vocabulary
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_the_text_encoder_takes_every_token() -> None:
    encoder = build_text_encoder(TOKENIZER)
    states = encoder(torch.arange(len(TOKENIZER) - 32, len(TOKENIZER))[None]).last_hidden_state
    assert states.shape == (1, 32, 64)


def test_phantom_captions_are_those_of_the_public_site() -> None:
    assert phantom_captions() == [
        "chest radiograph phantom, consolidation",
        "chest radiograph phantom, effusion",
        "chest radiograph phantom, no finding",
        "chest radiograph phantom, nodule",
        "dermoscopy phantom of a melanoma",
        "dermoscopy phantom of a nevus",
        "dermoscopy phantom of a seborrheic keratosis",
    ]
