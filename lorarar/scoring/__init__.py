"""Scores of generated images: CLIP-I, CLIP-T, DINO and MARS² (Section 4 of LoRA.rar), with their
statistics.
"""
