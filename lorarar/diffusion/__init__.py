"""The base model: loading, prompts, latents, sampling."""
