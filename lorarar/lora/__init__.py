"""LoRA files and what is in them: adapters, formats, base models. Needs torch and safetensors only."""
