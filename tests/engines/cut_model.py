"""Writes the first layers of a model: cut_model.py SOURCE TARGET LAYERS. Runs in the transformers environment."""

from __future__ import annotations

import sys

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

source, target, layers = sys.argv[1], sys.argv[2], int(sys.argv[3])
config = AutoConfig.from_pretrained(source)
config.num_hidden_layers = layers
if getattr(config, "layer_types", None):
    config.layer_types = config.layer_types[:layers]
AutoModelForCausalLM.from_pretrained(source, config=config, dtype="auto").save_pretrained(target)
AutoTokenizer.from_pretrained(source).save_pretrained(target)
