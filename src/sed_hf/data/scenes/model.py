"""The small SED that learns generated scenes, before training: what `sed-hf init scenes` writes."""

import json

import torch
from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTokenizer

from ... import SEDConfig, SEDForSemanticSegmentation, SEDImageProcessor, SEDProcessor
from .vocabulary import scene_vocabulary

PROMPT_TEMPLATES = ["{}", "a {}.", "a photo of a {}.", "the {} in the scene."]
MAX_PROMPT_LENGTH = 32
SIZE = 192


def build_scene_model() -> tuple[SEDForSemanticSegmentation, SEDProcessor]:
    """The model, of 2.6 million parameters with the same random weights each time, and its processor."""
    tokenizer = build_tokenizer()
    config = SEDConfig(
        projection_dim=128,
        prompt_templates=PROMPT_TEMPLATES,
        vision_config={
            "architecture": "convnext_base",
            # timm's layer scale of 1e-6 would stall so short a training.
            "model_args": {"depths": [1, 2, 4, 2], "dims": [32, 64, 128, 256], "ls_init_value": 0.5},
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "max_position_embeddings": MAX_PROMPT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        decoder_hidden_sizes=[64, 32, 16, 16],
        skip_guidance_sizes=[16, 8, 8],
        cost_guidance_sizes=[16, 8, 8],
        decoder_kernel_size=7,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SEDForSemanticSegmentation(config)
    image_processor = SEDImageProcessor(do_resize=False, input_size={"height": SIZE, "width": SIZE})
    return model, SEDProcessor(image_processor, tokenizer, prompt_templates=PROMPT_TEMPLATES)


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer: CLIP's byte alphabet, and merges learned from the names of the scenes' classes."""
    names = [synonym for name in scene_vocabulary() for synonym in name.split(", ")]
    prompts = [template.replace("{}", name) for template in PROMPT_TEMPLATES for name in names]
    learner = CLIPTokenizer().backend_tokenizer
    learner.train_from_iterator(prompts, trainers.BpeTrainer(end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), *("".join(merge) for merge in merges)]
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_PROMPT_LENGTH)
