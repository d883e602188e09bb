"""HunyuanVideo 1.5: video from text, or, with the checkpoint for it, from a first picture."""
