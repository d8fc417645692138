"""A page in the browser that merges two LoRA files: `lorarar app`."""
