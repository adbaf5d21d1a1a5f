"""A CLIP tokenizer and text encoder, as Stable Diffusion has them, small enough for a handful of captions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from envs.datasets.phantom import FINDINGS, SITES, render

WIDTH = 64
"""Of the text states: the denoiser's cross-attention dimension."""

_TOKENS = 32
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_SUFFIX = "</w>"
# Words that captions of the kinds of image served here are made of; other words are spelled in bytes.
_WORDS = """
chest radiograph x-ray xray image photograph frontal lateral view portable erect supine pediatric paediatric adult child
normal abnormal no finding findings pneumonia bacterial viral covid tuberculosis cardiomegaly effusion pleural nodule
mass consolidation infiltration atelectasis pneumothorax emphysema fibrosis edema hernia opacity thickening device
catheter dermoscopy dermatoscope skin lesion lesions benign malignant melanoma nevus nevi seborrheic keratosis keratoses
basal cell carcinoma actinic dermatofibroma vascular pigmented brown red blue of a an the and with without in on left
right upper lower lobe year years old male female woman man patient magnetic resonance computed tomography ultrasound
retina fundus histology slide brain breast heart lung abdomen knee hand spine scan phantom polarized
"""


def build_tokenizer(captions: Iterable[str], vocabulary: int = 1000) -> CLIPTokenizer:
    """Learns byte-pair merges from captions and the imaging words above; any text can be spelled.

    Args:
        captions: Public captions only.
        vocabulary: Upper bound on the number of tokens; 514 of them are bytes and the two special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    corpus = [c.lower() for c in captions] + _WORDS.split() * 4
    learner = Tokenizer(models.BPE(end_of_word_suffix=_SUFFIX))
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), in_bytes])
    # Naming every letter beforehand fixes their numbers, by which the learner chooses between equally frequent pairs.
    # Else each process learns other merges, and a resumed pretraining would go on with another tokenizer.
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2,
        end_of_word_suffix=_SUFFIX,
        special_tokens=alphabet + [c + _SUFFIX for c in alphabet],
        show_progress=False,
    )
    learner.train_from_iterator(corpus, trainer)
    learned: Any = json.loads(learner.to_str())["model"]
    vocab = learned["vocab"] | {_BOS: len(learned["vocab"]), _EOS: len(learned["vocab"]) + 1}
    merges: Any = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Untrained; two layers of width 64. It learns with the denoiser and is frozen afterwards."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def phantom_captions() -> list[str]:
    """Every caption that public phantoms can have."""
    captions: set[str] = set()
    for kind, findings in FINDINGS.items():
        captions.update(render(kind, range(16 * len(findings)), seed=0, site=SITES[0], size=16).captions)
    return sorted(captions)
