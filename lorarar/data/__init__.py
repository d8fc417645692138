"""Subjects, styles, splits, prompts, controls and photographs."""
