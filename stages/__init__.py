"""One short script per DVC stage: read parameters, call lorarar, write outs."""
