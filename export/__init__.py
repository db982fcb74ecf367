"""From a base model and a LoRA adapter to an artefact the runtime loads. Needs the extra `export` (torch,
transformers, peft)."""
