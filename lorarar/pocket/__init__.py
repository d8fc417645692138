"""The miniature: a drawn world, its base model and its judges."""
